package volume

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/internal/run"
)

// lvmCommand is an LVM command that runs while we do something else.
type lvmCommand struct {
	pid   int // and its process group: what is called lvcreate may be a wrapper
	ended chan struct{}
	err   error // once ended

	mu      sync.Mutex
	lock    *groupLock // what it is held at; nil when it is not
	tooLong *time.Timer
}

// startLVM starts a command and returns when started has been told of it. It is quiet: that
// it failed is told by whoever waits for it, and where it was abandoned it did not.
func (s *System) startLVM(ctx context.Context, argv []string, started func(pid int)) *lvmCommand {
	c := &lvmCommand{ended: make(chan struct{})}
	begun := make(chan struct{})
	go func() {
		defer close(c.ended)
		_, c.err = s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Uninterruptible: true, Quiet: true, Started: func(pid int) {
			if started != nil {
				started(pid)
			}
			c.pid = pid
			close(begun)
		}})
	}()
	select {
	case <-begun:
	case <-c.ended:
	}
	return c
}

// errDidNotWait is an LVM that does not keep to its own lock.
var errDidNotWait = errors.New("it did not wait for the lock on its volume group")

// hold returns when the command waits for the lock, which we have. After heldFor, whether it
// waits by then or not, it is abandoned, which is no error here.
func (c *lvmCommand) hold(ctx context.Context, lock *groupLock) error {
	c.lock = lock
	c.tooLong = time.AfterFunc(heldFor, c.abandon)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !lock.seen(c.pid, true) {
		select {
		case <-c.ended:
			if c.letGo() == nil { // abandoned
				return nil
			}
			return cmp.Or(c.err, errDidNotWait)
		case <-ctx.Done():
			c.abandon()
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// letGo gives the lock to the command, and returns it, or nil if it was not held any more.
func (c *lvmCommand) letGo() *groupLock {
	c.mu.Lock()
	defer c.mu.Unlock()
	lock := c.lock
	if lock != nil {
		c.tooLong.Stop()
		lock.release()
		c.lock = nil
	}
	return lock
}

// abandon ends a command that is held, and lets others have the group. LVM's commands give
// up waiting for a lock when they are interrupted. Killing it would be as good: without the
// lock it can have changed nothing.
func (c *lvmCommand) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock == nil {
		return
	}
	c.tooLong.Stop()
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
		select {
		case <-c.ended:
		default:
			unix.Kill(-c.pid, signal)
			select {
			case <-c.ended:
			case <-time.After(time.Second):
			}
		}
	}
	c.lock.release() // also where it waits for a device that does not answer: what was killed runs no more
	c.lock = nil
}
