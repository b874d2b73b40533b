package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// WatchOptions tune Watch; zero values choose what suits the kind of snapshot.
type WatchOptions struct {
	Every time.Duration // between looks; 1 s
	// Tick, when set, replaces the clock: one look for each value, at the time it says.
	Tick <-chan time.Time
	// ExtendAt is the fill at which a thick snapshot is extended; 0.7.
	ExtendAt float64
	// GiveUpAt is the fill of data at which the snapshot is given up: 0.9 of a thick
	// snapshot that cannot grow, 0.9 of a thin pool, 0.95 of a Btrfs filesystem.
	GiveUpAt float64
	// GiveUpMetadataAt is the same for metadata: 0.85 of a thin pool, 0.95 of Btrfs.
	GiveUpMetadataAt float64
	// Spare leaves the snapshot where it is: it was kept on purpose, and is not Watch's to
	// remove. The context is cancelled all the same.
	Spare  bool
	OnFill func(respaldo.Fill) // called after every look, from Watch's goroutine
}

// foresight is how far ahead a rising fill of shared storage is extrapolated, and brink
// the fill that it must not reach by then: a cancelled reader needs a while to let go.
const (
	foresight = 5 * time.Second
	brink     = 0.97
)

// Watch looks at a snapshot's fill until stop is called, extends it while that is
// possible, and cancels the returned context before it overflows, with a cause that is a
// *respaldo.Error of kind SnapshotLost.
//
// Where the snapshot shares its storage with the origin (thin pool, Btrfs), a full
// storage would stop the origin. There Watch itself, having cancelled, unmounts and
// removes the snapshot (unless told to Spare it) as soon as nobody has it open; users of the snapshot must close
// it when the context ends, and not wait for anything else first.
//
// stop ends the watch and makes the last check: nil means that the snapshot was valid
// from the first look to now, so what was read from it is what the origin was. It
// waits for a removal under way. It may be called again and returns the same.
func Watch(ctx context.Context, s Snapshot, o WatchOptions) (context.Context, func() error) {
	watched, cancel := context.WithCancelCause(ctx)
	w := &watch{snap: s, limits: limitsFor(s.Describe().Kind, o), onFill: o.OnFill, spare: o.Spare, cancel: cancel, done: make(chan struct{}), quit: make(chan struct{})}
	go w.loop(context.WithoutCancel(ctx), o)
	stop := sync.OnceValue(func() error {
		close(w.quit)
		<-w.done
		defer cancel(nil)
		if w.lost == nil {
			w.last(context.WithoutCancel(ctx))
		}
		return w.lost
	})
	return watched, stop
}

type watch struct {
	snap   Snapshot
	limits limits
	onFill func(respaldo.Fill)
	spare  bool
	cancel context.CancelCauseFunc
	quit   chan struct{}
	done   chan struct{}
	lost   error // why the snapshot is no good; read after done
}

func (w *watch) loop(ctx context.Context, o WatchOptions) {
	defer close(w.done)
	tick := o.Tick
	if tick == nil {
		every := o.Every
		if every <= 0 {
			every = time.Second
		}
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		tick = ticker.C
	}
	var before sample
	failures := 0
	refusedAt := 0.0 // the fill at which the group had no room
	for now := time.Now(); ; {
		fill, err := w.snap.Fill(ctx)
		switch {
		case err != nil:
			if failures++; failures >= 3 {
				w.giveUp(ctx, &respaldo.Error{Kind: respaldo.SnapshotLost, What: "cannot watch snapshot " + w.snap.Describe().Name, Err: err})
				return
			}
		default:
			failures = 0
			if w.onFill != nil {
				w.onFill(fill)
			}
			current := sample{now, fill}
			verdict, why := w.limits.judge(before, current, refusedAt)
			if verdict == extend {
				switch err := w.snap.Extend(ctx); {
				case err == nil:
					refusedAt, current = 0, sample{} // the scale has changed
				case errors.Is(err, errWhole):
					w.limits.extendAt, w.limits.giveUpAt = never, never
				default: // judged again as one that cannot grow
					refusedAt = fill.Data
					verdict, why = w.limits.judge(before, current, refusedAt)
				}
			}
			if verdict == abandon {
				w.giveUp(ctx, w.limits.error(w.snap.Describe(), fill, why))
				return
			}
			before = current
		}
		select {
		case <-w.quit:
			return
		case now = <-tick:
		}
	}
}

// last is the check after the last byte was read.
func (w *watch) last(ctx context.Context) {
	fill, err := w.snap.Fill(ctx)
	switch {
	case err != nil:
		w.lost = &respaldo.Error{Kind: respaldo.SnapshotLost, What: "cannot tell whether snapshot " + w.snap.Describe().Name + " was valid to the end", Err: err}
	case !fill.Valid:
		w.lost = w.limits.error(w.snap.Describe(), fill, "")
	}
}

// sacrifice is what snapshots are that can harm their origin: away with them.
type sacrifice interface {
	sacrifice(ctx context.Context) error
}

func (w *watch) giveUp(ctx context.Context, why error) {
	w.lost = why
	w.cancel(why)
	if s, ok := w.snap.(sacrifice); ok && !w.spare {
		if err := s.sacrifice(ctx); err != nil {
			w.lost = errors.Join(why, err)
		}
	}
}

// sacrificeFor is how long readers get to let go.
const sacrificeFor = time.Minute

func (t thinSnapshot) sacrifice(ctx context.Context) error {
	return t.sys.unmountAndRemove(ctx, t, func() []string { return mountsOf(t.desc.Path) })
}

func (s *btrfsSnapshot) sacrifice(ctx context.Context) error {
	return s.sys.unmountAndRemove(ctx, s, s.mounts)
}

func (s *System) unmountAndRemove(ctx context.Context, snap Snapshot, mounts func() []string) error {
	ctx, cancel := context.WithTimeout(ctx, sacrificeFor)
	defer cancel()
	for {
		var err error
		for _, dir := range mounts() {
			err = errors.Join(err, s.Unmount(ctx, dir))
		}
		if err == nil {
			err = snap.Remove(ctx)
		}
		if err == nil || ctx.Err() != nil || respaldo.KindOf(err) == respaldo.Refused {
			return err
		}
	}
}

// Overdue says why a snapshot that nobody has watched cannot stay, "" if it can. A thick one
// that has overflowed is worthless. A thin one whose pool is as full as Watch would let it
// become is about to stop its origin. One on Btrfs stays: the kernel gives its space back
// some time after a removal, so nobody could tell whether the next has to go too.
func Overdue(ctx context.Context, s Snapshot, o WatchOptions) (why string, err error) {
	d := s.Describe()
	if d.Kind == respaldo.Btrfs {
		return "", nil
	}
	fill, err := s.Fill(ctx)
	switch {
	case err != nil:
		return "", err
	case d.Kind == respaldo.LVMThin:
		fill.Valid = true // inactive since a reboot, it fills the pool all the same
		if verdict, full := limitsFor(d.Kind, o).judge(sample{}, sample{fill: fill}, 0); verdict == abandon {
			return "its thin pool's " + full + ", and a full pool stops " + d.Volume, nil
		}
	case !fill.Valid && fill.Data >= 1: // not merely inactive
		return "it has overflowed and is worthless", nil
	}
	return "", nil
}

// margin is how far below the fill at which a snapshot is given up people are told.
const margin = 0.10

// Crowded warns that what holds a volume's snapshots is nearly as full as it may become, and
// says what to do; "" while there is room. What names it: "snapshot NAME" on thick LVM, else
// the volume.
func Crowded(kind respaldo.VolumeKind, what string, f respaldo.Fill, o WatchOptions) string {
	l := limitsFor(kind, o)
	if f.Data < l.giveUpAt-margin && (kind == respaldo.LVMThick || f.Metadata < l.giveUpMetadataAt-margin) {
		return ""
	}
	of := func(fill, limit float64) string { return fmt.Sprintf("%.0f%% of at most %.0f%%", fill*100, limit*100) }
	switch kind {
	case respaldo.LVMThick:
		return fmt.Sprintf("%s is %.0f%% full, and worthless when it is full: remove it when it is of no more use, or extend it with lvextend", what, f.Data*100)
	case respaldo.LVMThin:
		return fmt.Sprintf("the thin pool of %s fills up: data %s, metadata %s; then snapshots go, since a full pool stops the server. Extend it with lvextend (--poolmetadatasize for metadata), or remove snapshots",
			what, of(f.Data, l.giveUpAt), of(f.Metadata, l.giveUpMetadataAt))
	}
	return fmt.Sprintf("the filesystem of %s fills up: data %s, metadata %s; a full one stops the server. Give it more space, or remove snapshots",
		what, of(f.Data, l.giveUpAt), of(f.Metadata, l.giveUpMetadataAt))
}

// limits are the fills at which something is done.
type limits struct {
	extendAt, giveUpAt, giveUpMetadataAt float64
	shared                               bool // with the origin, which a full storage would stop
}

func limitsFor(kind respaldo.VolumeKind, o WatchOptions) limits {
	l := limits{extendAt: 0.7, giveUpAt: 0.9, giveUpMetadataAt: 1}
	switch kind {
	case respaldo.LVMThin:
		l = limits{extendAt: 1, giveUpAt: 0.9, giveUpMetadataAt: 0.85, shared: true}
	case respaldo.Btrfs:
		l = limits{extendAt: 1, giveUpAt: 0.95, giveUpMetadataAt: 0.95, shared: true}
	}
	set := func(limit *float64, asked float64) {
		if asked > 0 {
			*limit = asked
		}
	}
	set(&l.extendAt, o.ExtendAt)
	set(&l.giveUpAt, o.GiveUpAt)
	set(&l.giveUpMetadataAt, o.GiveUpMetadataAt)
	return l
}

// never is more than full.
const never = 1e9

type sample struct {
	at   time.Time
	fill respaldo.Fill
}

type verdict int

const (
	carryOn verdict = iota
	extend
	abandon
)

// judge decides from two looks, the earlier perhaps zero. refusedAt is the fill at which
// an extension last found no room, 0 for never: it is asked for again every 5%.
func (l limits) judge(before, now sample, refusedAt float64) (verdict, string) {
	switch {
	case !now.fill.Valid:
		return abandon, ""
	case l.shared && now.fill.Metadata >= l.giveUpMetadataAt:
		return abandon, fmt.Sprintf("metadata is %.0f%% full", now.fill.Metadata*100)
	case l.shared && now.fill.Data >= l.giveUpAt:
		return abandon, fmt.Sprintf("data is %.0f%% full", now.fill.Data*100)
	}
	data, metadata := l.ahead(before, now)
	if l.shared {
		if data >= brink || metadata >= brink {
			return abandon, fmt.Sprintf("data is %.0f%%, metadata %.0f%% full and would be full in seconds", now.fill.Data*100, now.fill.Metadata*100)
		}
		return carryOn, ""
	}
	wants := now.fill.Data >= l.extendAt || data >= l.giveUpAt
	if wants && (refusedAt == 0 || now.fill.Data >= refusedAt+0.05) {
		return extend, ""
	}
	if now.fill.Data >= l.giveUpAt {
		return abandon, fmt.Sprintf("it is %.0f%% full and cannot grow", now.fill.Data*100)
	}
	return carryOn, ""
}

// ahead extrapolates both fills.
func (l limits) ahead(before, now sample) (data, metadata float64) {
	data, metadata = now.fill.Data, now.fill.Metadata
	if before.at.IsZero() {
		return
	}
	passed := now.at.Sub(before.at).Seconds()
	if passed <= 0 {
		return
	}
	factor := foresight.Seconds() / passed
	data += max(0, now.fill.Data-before.fill.Data) * factor
	metadata += max(0, now.fill.Metadata-before.fill.Metadata) * factor
	return
}

func (l limits) error(d respaldo.Snapshot, fill respaldo.Fill, why string) error {
	e := &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + d.Name + " of " + d.Volume + " was given up: " + why}
	switch {
	case why == "" && d.Kind == respaldo.LVMThick:
		e.What = "snapshot " + d.Name + " of " + d.Volume + " has overflowed or is gone; what was read from it is worthless"
		e.Hint = "give the volume group more free space or a larger --snapshot-size, or back up when fewer writes are made"
	case why == "":
		e.What = "snapshot " + d.Name + " of " + d.Volume + " is gone or broken; what was read from it is worthless"
		e.Hint = "see dmsetup status, and the kernel's log: dmesg"
	case d.Kind == respaldo.LVMThick:
		e.Hint = "give the volume group more free space or a larger --snapshot-size, or back up when fewer writes are made"
	case d.Kind == respaldo.LVMThin:
		e.What += "; the thin pool would have stopped the origin"
		e.Hint = "extend the thin pool (lvextend; --poolmetadatasize for its metadata)"
	default:
		e.What += "; the filesystem would have had no space for the origin"
		e.Hint = "give the filesystem more space"
	}
	return e
}
