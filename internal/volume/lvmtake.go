package volume

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// lvmPending takes an LVM snapshot so that of all that LVM's command does, only the
// suspension of the origin and what leads to it lie between Take's call and its return.
//
// Before: a thick snapshot's store is made and wiped, as a volume of its own that is tagged
// as ours. The command that takes the snapshot is started and held at LVM's own lock on the
// volume group, which we hold: it has read its configuration and scanned the disks by then,
// and changed nothing. If we die, the kernel lets it go, and what it makes is found by its tag.
//
// After: LVM changes a group under its lock alone, and this command suspends the origin once.
// So when it has the lock, and the origin is then seen to be suspended and resumed, the
// instant of the snapshot has passed. What follows, mostly waiting for udev, concerns nobody
// but us; if it fails there is no snapshot.
type lvmPending struct {
	volume  *lvmVolume
	desc    respaldo.Snapshot
	bytes   int64
	started func(pid int)
	locks   string // the directory of LVM's locks; empty: a command cannot be held
	plain   bool   // one suspension is all that LVM needs for it

	ready   bool
	command *lvmCommand
	watch   *suspensions // from Take to Finish
	letGo   time.Time    // when the command was
	alone   time.Time    // from when on it was seen to have the group's lock
	early   bool         // Take did not wait for its end
	passed  bool         // the instant of the snapshot
	taken   bool
	pause   time.Duration
}

const (
	// busyGroup is how long Ready waits while another LVM command has the group.
	busyGroup = 10 * time.Second
	// heldFor is how long others may wait for the group because we are ready: calm and a
	// lock may come late. Then everybody goes on, and Take starts the command anew.
	heldFor = 5 * time.Second
)

func (p *lvmPending) Describe() respaldo.Snapshot { return p.desc }
func (p *lvmPending) Bytes() int64                { return p.bytes }
func (p *lvmPending) Pause() time.Duration        { return p.pause }

func (p *lvmPending) Ready(ctx context.Context) error {
	p.ready = true
	if p.command != nil { // somebody began to stand in the way meanwhile, so this comes again
		p.command.abandon()
		p.command = nil
	}
	if p.locks == "" {
		return nil
	}
	lock, err := lockGroup(ctx, p.locks, p.volume.vg, busyGroup)
	if err != nil {
		p.volume.sys.log().Debug("the snapshot's command will wait for the volume group", "err", err)
		return context.Cause(ctx)
	}
	p.command = p.start(ctx)
	err = p.command.hold(ctx, lock)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errDidNotWait): // so there is a snapshot, and it is too early
		p.volume.sys.log().Warn("the snapshot's command cannot be held: "+err.Error(), "group", p.volume.vg)
		p.locks, p.command = "", nil
		if err := p.discard(ctx); err != nil {
			return err
		}
		return p.makeStore(ctx)
	case err != nil:
		return p.failed(err)
	}
	return nil
}

// makeStore makes what a thick snapshot keeps the origin's old blocks in, empty and inactive.
func (p *lvmPending) makeStore(ctx context.Context) error {
	if p.bytes == 0 {
		return nil
	}
	p.desc.Created = time.Now()
	s, name := p.volume.sys, p.volume.vg+"/"+p.desc.Name
	argv := []string{"lvcreate", "--yes", "--autobackup", "n", "--type", "linear", "--zero", "y", "--wipesignatures", "y",
		"--name", p.desc.Name, "--size", strconv.FormatInt(p.bytes, 10) + "b"}
	for _, t := range encodeTags(p.desc) {
		argv = append(argv, "--addtag", t)
	}
	for _, argv := range [][]string{append(argv, p.volume.vg), {"lvchange", "--activate", "n", name}} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Uninterruptible: true, Started: p.started}); err != nil {
			return p.failed(err)
		}
	}
	return nil
}

func (p *lvmPending) failed(err error) error {
	return lvmError(respaldo.SnapshotLost, "cannot snapshot logical volume "+p.volume.desc.Name, err)
}

// start starts the command that takes the snapshot.
func (p *lvmPending) start(ctx context.Context) *lvmCommand {
	if p.desc.Created.IsZero() {
		p.desc.Created = time.Now()
	}
	argv, s := createArgv(p.desc, p.volume.desc.Name), p.volume.sys
	if p.bytes > 0 {
		// No copy of the metadata, as in createArgv; here LVM has no option for it.
		argv, s = []string{"lvconvert", "--yes", "--type", "snapshot", "--zero", "n", p.volume.desc.Name, p.volume.vg + "/" + p.desc.Name},
			s.with("backup/backup=0 backup/archive=0")
	}
	return s.startLVM(ctx, argv, p.started)
}

// createArgv makes a thin snapshot and its tags in one command. It is active at
// once and keeps the flag that leaves it inactive at the next boot (-K ignores the flag
// this time only): it carries the origin's filesystem UUID, and an fstab line by UUID
// could mount it as production. -An leaves out the copy of the group's metadata below
// /etc/lvm, whose fsyncs would be under the lock; removing the snapshot writes it.
func createArgv(d respaldo.Snapshot, origin string) []string {
	argv := []string{"lvcreate", "--yes", "--autobackup", "n", "--snapshot", "--name", d.Name, "--ignoreactivationskip"}
	for _, t := range encodeTags(d) {
		argv = append(argv, "--addtag", t)
	}
	return append(argv, origin)
}

func (p *lvmPending) Take(ctx context.Context) error {
	if !p.ready {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p.watch = p.volume.sys.watchSuspensions(p.volume.desc.Device)
	p.letGo = time.Now()
	var lock *groupLock
	if p.command != nil {
		lock = p.command.letGo()
	}
	if lock == nil { // it could not be held, or not for so long
		p.command = p.start(ctx)
	}
	if err := p.pass(ctx, lock); err != nil {
		return err
	}
	p.passed = true
	return nil
}

// pass returns nil when the instant of the snapshot has passed. The lock is the one that
// the command was held at, if it was.
func (p *lvmPending) pass(ctx context.Context, lock *groupLock) error {
	var over <-chan struct{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.command.ended:
			if p.command.err != nil {
				return p.failed(p.command.err)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			switch {
			case lock == nil || p.watch == nil || !p.plain || p.volume.patient.Load():
				tick.Stop()
			case lock.seen(p.command.pid, false):
				tick.Stop()
				over, p.alone = p.watch.over, time.Now()
			}
		case <-over:
			if p.early = len(p.watch.since(p.alone)) > 0; p.early {
				return nil
			}
		}
	}
}

func (p *lvmPending) Finish() (Snapshot, error) {
	if p.command == nil {
		return nil, nil
	}
	p.command.abandon()
	<-p.command.ended
	once := true
	if p.watch != nil {
		p.watch.end()
		if spans := p.watch.since(p.letGo); len(spans) > 0 {
			last := spans[len(spans)-1]
			p.pause = last.to.Sub(last.from)
		}
		once = !p.early || len(p.watch.since(p.alone)) == 1
		p.watch = nil
	}
	switch {
	case !p.passed:
		return nil, nil
	case p.command.err != nil:
		return nil, p.failed(p.command.err)
	case !once:
		p.volume.patient.Store(true)
		return nil, &respaldo.Error{Kind: respaldo.SnapshotLost, What: "logical volume " + p.volume.desc.Name + " was suspended more than once while its snapshot was taken",
			Hint: "it is not known of which instant the snapshot is; run again", Err: ErrSuspendedAgain}
	}
	p.taken = true
	return p.volume.sys.lvmSnapshot(p.desc, p.volume.vg, p.volume.pool), nil
}

func (p *lvmPending) Cancel(ctx context.Context) error {
	if p.taken {
		return nil
	}
	p.passed = false
	p.Finish()
	return p.discard(ctx)
}

// discard leaves alone what another run has made under the same name meanwhile.
func (p *lvmPending) discard(ctx context.Context) error {
	snap := &lvmSnapshot{sys: p.volume.sys, desc: p.desc, vg: p.volume.vg, pool: p.volume.pool}
	row, ok, err := snap.row(ctx)
	if err != nil {
		return err
	}
	if d, ours := decodeTags(row.tags()); ok && (!ours || d.Server != p.desc.Server || d.Run != p.desc.Run) {
		return nil
	}
	return snap.Remove(ctx)
}
