package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

const (
	// defaultPatience is how long a lock is tried for where nobody said otherwise.
	defaultPatience = time.Minute
	// Between two tries writers get some air: firstPause after the first, twice as long after
	// each further one, up to longestPause.
	firstPause   = time.Second
	longestPause = 30 * time.Second
	// heldTries is how often a lock that was had may have been too short for the volume: the
	// volume will not be faster, unless it was a bad moment.
	heldTries = 2
	// crossedTries is how often a snapshot is taken that something crosses.
	crossedTries = 3
	// changedTries is how often the server is looked at anew because tables came to lie elsewhere.
	changedTries = 3
)

// freeze takes the snapshot of a quiesced server, again and again while there is hope and
// patience. Each try has a budget of its own for what it may cost the writers, and leaves
// nothing behind.
func (op *operation) freeze(ctx context.Context, o *Outlook, k keep) (*frozen, error) {
	patience := op.Patience
	if patience <= 0 {
		patience = defaultPatience
	}
	t := tries{deadline: time.Now().Add(patience), pause: firstPause}
	for {
		f, err := op.freezeOnce(ctx, o, k, max(time.Until(t.deadline), time.Millisecond))
		t.made++
		if err == nil {
			f.quiesced.Tries = t.made
			if err = op.readImage(ctx, o, f); err == nil {
				op.Report.Step("snapshot", fmt.Sprintf("%s at %s; %s (%s)", f.name, f.quiesced.Coordinates, WritersText(f.quiesced), f.quiesced.Mode))
				return f, nil
			}
			err = t.afterUnread(ctx, op, o, f.held, err)
		} else if !op.holds(f.name) { // else it could not even be undone
			err = t.again(ctx, op, o, f.quiesced, err)
		}
		if err != nil {
			return nil, err
		}
	}
}

// holds tells that a snapshot is in the ledger still.
func (op *operation) holds(name string) bool {
	return slices.ContainsFunc(op.ledger.Holding(), func(e ledger.Entry) bool { return e.Attrs["name"] == name })
}

// tries is what was tried so far.
type tries struct {
	deadline  time.Time
	pause     time.Duration // before the next one
	made      int
	held      int  // ended because the lock was not had for long enough
	crossed   int  // in the mode of now
	changed   int  // what the look at the server had found
	escalated bool // to a lock, since too much crossed
}

// again returns when it is time for the next try, or why there is none: a failed one's error,
// or an interruption.
func (t *tries) again(ctx context.Context, op *operation, o *Outlook, q respaldo.Quiesced, err error) error {
	switch {
	case ctx.Err() != nil || hasKind(err, respaldo.Leftovers): // a locking session may live on
		return err
	case errors.Is(err, mysql.ErrChanged):
		return t.lookAnew(ctx, op, o, err)
	case errors.Is(err, mysql.ErrCrossed):
		if stop := t.retake(op, o, err); stop != nil {
			return stop
		}
		return t.catchUp(ctx, q)
	case errors.Is(err, volume.ErrSuspendedAgain):
		op.Report.Warn(fmt.Sprintf("try %d: %v; taken again", t.made, err))
		return t.catchUp(ctx, q)
	case respaldo.KindOf(err) != respaldo.LockTimeout || q.WaitedSeconds == 0: // it was never asked for: patience is used up
		return err
	}
	if q.HeldSeconds > 0 {
		if t.held++; t.held == heldTries {
			return err
		}
	}
	pause := t.cost(q)
	if time.Until(t.deadline) < pause {
		return withTries(err, t.made)
	}
	op.Report.Warn(fmt.Sprintf("try %d: %v; trying again in %s", t.made, err, FormatDuration(pause)))
	return t.rest(ctx, pause)
}

// catchUp gives writers who were held time to catch up; those who were not need none.
func (t *tries) catchUp(ctx context.Context, q respaldo.Quiesced) error {
	if q.Mode == respaldo.LockNone {
		return nil
	}
	return t.rest(ctx, t.cost(q))
}

// cost is how long writers get to catch up: what made them wait for so long must not come
// again before they have.
func (t *tries) cost(q respaldo.Quiesced) time.Duration {
	held := time.Duration((q.WaitedSeconds + q.HeldSeconds) * float64(time.Second))
	pause := time.Duration(float64(max(t.pause, held)) * (0.75 + rand.Float64()/2))
	t.pause = min(2*t.pause, longestPause)
	return pause
}

// rest returns after a pause, or with the cause of an interruption.
func (t *tries) rest(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// waiting tells why nothing happens. Where reads are to be ended, that comes next.
func (op *operation) waiting(patience time.Duration) func(string) {
	return func(behind string) {
		op.Report.Warn(fmt.Sprintf("waiting, for %s at most, for what stands in the way: %s", FormatDuration(patience), behind))
	}
}

// killBlockers is what Quiesce ends reads with, if it is to, and tells of each.
func (op *operation) killBlockers() func(mysql.Statement) {
	if !op.KillBlockers {
		return nil
	}
	return func(t mysql.Statement) { op.Report.Warn("ended by KILL QUERY, as asked: " + t.String()) }
}

// withTries says of an error that it was not for want of trying.
func withTries(err error, made int) error {
	if made == 1 {
		return err
	}
	return &respaldo.Error{Kind: respaldo.KindOf(err), What: "given up after " + english.Plural(made, "try", "tries"), Err: err}
}

// hasKind tells that an error of a kind is anywhere among the causes of another.
func hasKind(err error, kind respaldo.Kind) bool {
	if e, ok := err.(*respaldo.Error); ok && e.Kind == kind {
		return true
	}
	switch u := err.(type) {
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(u.Unwrap(), func(err error) bool { return hasKind(err, kind) })
	case interface{ Unwrap() error }:
		return hasKind(u.Unwrap(), kind)
	}
	return false
}

// lookAnew replaces what was found at first, when DDL has changed it since: what can no longer
// be backed up is refused, and what came to lie elsewhere is included.
func (t *tries) lookAnew(ctx context.Context, op *operation, o *Outlook, err error) error {
	if t.changed++; t.changed > changedTries {
		return withTries(err, t.made)
	}
	op.Report.Warn(fmt.Sprintf("try %d: %v; looking at the server anew", t.made, err))
	fresh, err := op.look(ctx)
	if err != nil {
		return err
	}
	o.close()
	stricter, reason := o.Lock, o.LockReason
	*o = *fresh
	if t.escalated && o.Lock == respaldo.LockNone {
		o.Lock, o.LockReason = stricter, reason
	}
	return o.Refusal()
}

// retake is for a snapshot that something crossed. A server on which that happens again and
// again needs a stricter lock, unless it was said which one to take.
func (t *tries) retake(op *operation, o *Outlook, err error) error {
	if t.crossed++; t.crossed < crossedTries {
		op.Report.Warn(fmt.Sprintf("try %d: %v; taken again", t.made, err))
		return nil
	}
	return t.underLock(op, o, err, fmt.Sprintf("under the lock %q something crossed the snapshot %d times", o.Lock, crossedTries))
}

// afterUnread is for an image without a lock whose binlogs do not say where they end: under a
// lock the server says it. The snapshot goes first, there may be no room for two.
func (t *tries) afterUnread(ctx context.Context, op *operation, o *Outlook, snapshot *ledger.Held, err error) error {
	if _, only := err.(unread); !only || ctx.Err() != nil { // an image that was lost, or could not be closed, is another matter
		return err
	}
	if stop := t.underLock(op, o, err, "the binlogs of an image without a lock could not be read"); stop != nil {
		return stop
	}
	return snapshot.Release(ctx)
}

// underLock has the next try take the next stricter lock, unless it was said which one to take.
func (t *tries) underLock(op *operation, o *Outlook, err error, because string) error {
	if op.Lock == respaldo.LockNone || op.Lock == respaldo.LockBackup {
		return withTries(err, t.made)
	}
	mode, reason, ok := mysql.Stricter(o.facts, o.Lock)
	if !ok {
		return withTries(err, t.made)
	}
	op.Report.Warn(fmt.Sprintf("try %d: %v; the next one is under the lock %s", t.made, err, mode))
	t.escalated = true
	o.Lock, o.LockReason, t.crossed = mode, reason+"; "+because, 0
	o.addStandstill()
	return nil
}
