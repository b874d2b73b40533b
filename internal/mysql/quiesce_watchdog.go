package mysql

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// How long to insist on KILL until the server confirms that the session is gone.
const killPatience = 5 * time.Second

// watchdog keeps the budget of one lock, whatever the rest of the program does: it ends
// the lock's connection when the time is up, or when the lock is no longer wanted while
// it is still being waited for.
type watchdog struct {
	l      *lock
	cancel context.CancelCauseFunc // of fn's context

	once    sync.Once
	isTaken chan struct{} // closed when the lock is granted
	broken  chan error    // buffered: the loss of the connection
	quit    chan struct{}
	done    chan struct{}
	reason  error // valid after done
}

func (l *lock) watch(ctx context.Context, cancel context.CancelCauseFunc) *watchdog {
	w := &watchdog{l: l, cancel: cancel, isTaken: make(chan struct{}), broken: make(chan error, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go w.run(ctx)
	return w
}

func (w *watchdog) granted() { w.once.Do(func() { close(w.isTaken) }) }

// lost reports the end of the pinned connection; only the first counts.
func (w *watchdog) lost(err error) {
	select {
	case w.broken <- err:
	default:
	}
}

// stop ends the watch and returns why the lock was broken, nil if it was not.
func (w *watchdog) stop() error {
	close(w.quit)
	<-w.done
	return w.reason
}

func (w *watchdog) run(ctx context.Context) {
	defer close(w.done)
	timer := time.NewTimer(w.l.budget)
	defer timer.Stop()
	interrupted, taken := ctx.Done(), w.isTaken
	for {
		select {
		case <-w.quit:
			select { // a loss that was noticed in the same instant still counts
			case err := <-w.broken:
				w.reason = lostError(err)
			default:
			}
			return
		case <-taken:
			// From now on an interruption ends fn, and fn the lock.
			interrupted, taken = nil, nil
		case <-interrupted:
			w.end(context.Cause(ctx))
			return
		case err := <-w.broken:
			w.fail(lostError(err))
			return
		case <-timer.C:
			if taken == nil {
				w.end(&respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf("the lock was given up after %s, before the snapshot was done", w.l.budget),
					Hint: "give --max-lock more time"})
				return
			}
			// First of all writers are freed: to find out who was in the way takes time.
			w.cancel(&respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf("the lock was not granted within %s", w.l.budget)})
			err := w.kill()
			w.fail(withCause(w.l.notGranted(nil), err))
			return
		}
	}
}

func (w *watchdog) fail(reason error) {
	w.reason = reason
	w.cancel(reason)
}

// end frees the writers and makes fn stop.
func (w *watchdog) end(reason error) {
	w.fail(reason)
	w.reason = withCause(reason, w.kill())
}

func withCause(err, more error) error {
	if more == nil {
		return err
	}
	return errors.Join(err, more)
}

// kill frees the writers: it closes our end of the connection, which is enough for an idle
// session, and has the server end it, which one that waits for its lock needs. It
// insists until the session is gone.
func (w *watchdog) kill() error {
	w.l.raw.Close()
	ctx, cancel := context.WithTimeout(context.Background(), killPatience)
	defer cancel()
	kill := fmt.Sprintf("KILL %d", w.l.id)
	for {
		_, err := w.l.killer.ExecContext(ctx, kill)
		if isConnectionLost(err) { // somebody ended that one, too
			_, err = w.l.s.db.ExecContext(ctx, kill)
		}
		if errorNumber(err) == errNoSuchThread {
			return nil
		}
		select {
		case <-ctx.Done():
			return &respaldo.Error{Kind: respaldo.Leftovers, What: "the server did not confirm the end of our locking connection", Hint: "see SHOW PROCESSLIST; if it is still there: " + kill, Err: err}
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// peek watches an idle connection and reports its end at once, without reading from it:
// a server that says anything unasked is about to hang up. The returned function ends the
// watch; only then may the connection be used again.
func peek(c net.Conn, lost func(error)) (stop func()) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return func() {}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var cause error
		err := raw.Read(func(fd uintptr) bool {
			var b [1]byte
			n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			switch {
			case err == syscall.EAGAIN || err == syscall.EINTR:
				return false // wait until there is something to read
			case err != nil:
				cause = err
			case n == 0:
				cause = io.EOF
			default:
				cause = errors.New("the server ended the session")
			}
			return true
		})
		if err == nil {
			lost(cause)
		}
		// Otherwise the deadline of stop, or the watchdog closed the connection itself.
	}()
	return func() {
		c.SetReadDeadline(time.Unix(1, 0))
		<-done
		c.SetReadDeadline(time.Time{})
	}
}
