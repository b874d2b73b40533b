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
	// crossedTries is how often a snapshot without a lock is taken that something crosses.
	crossedTries = 3
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
			if err := op.readImage(ctx, o, f); err != nil {
				return nil, err
			}
			op.Report.Step("snapshot", fmt.Sprintf("%s at %s; %s (%s)", f.name, f.quiesced.Coordinates, WritersText(f.quiesced), f.quiesced.Mode))
			return f, nil
		}
		if !op.holds(f.name) { // else it could not even be undone
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
	deadline time.Time
	pause    time.Duration // before the next one
	made     int
	held     int // ended because the lock was not had for long enough
	crossed  int // in the mode of now
}

// again returns when it is time for the next try, or why there is none: a failed one's error,
// or an interruption.
func (t *tries) again(ctx context.Context, op *operation, o *Outlook, q respaldo.Quiesced, err error) error {
	switch {
	case ctx.Err() != nil || hasKind(err, respaldo.Leftovers): // a locking session may live on
		return err
	case errors.Is(err, mysql.ErrCrossed):
		return t.retake(op, o, err)
	case errors.Is(err, volume.ErrSuspendedAgain):
		op.Report.Warn(fmt.Sprintf("try %d: %v; taken again", t.made, err))
		return nil
	case respaldo.KindOf(err) != respaldo.LockTimeout || q.WaitedSeconds == 0: // it was never asked for: patience is used up
		return err
	}
	if q.HeldSeconds > 0 {
		if t.held++; t.held == heldTries {
			return err
		}
	}
	// What made writers wait for so long must not come again before they have caught up.
	cost := time.Duration((q.WaitedSeconds + q.HeldSeconds) * float64(time.Second))
	pause := time.Duration(float64(max(t.pause, cost)) * (0.75 + rand.Float64()/2))
	t.pause = min(2*t.pause, longestPause)
	if time.Until(t.deadline) < pause {
		return withTries(err, t.made)
	}
	op.Report.Warn(fmt.Sprintf("try %d: %v; trying again in %s", t.made, err, FormatDuration(pause)))
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

// retake is for a snapshot without a lock that something crossed: nobody has waited for it, so
// the next may come at once. A server on which it happens again and again needs a lock, unless
// it was said that there must be none.
func (t *tries) retake(op *operation, o *Outlook, err error) error {
	if t.crossed++; t.crossed < crossedTries {
		op.Report.Warn(fmt.Sprintf("try %d: %v; taken again", t.made, err))
		return nil
	}
	if op.Lock == respaldo.LockNone {
		return withTries(err, t.made)
	}
	mode, reason, ok := mysql.Stricter(o.facts, o.Lock)
	if !ok {
		return withTries(err, t.made)
	}
	op.Report.Warn(fmt.Sprintf("try %d: %v; the next one is under the lock %s", t.made, err, mode))
	o.Lock, o.LockReason, t.crossed = mode, fmt.Sprintf("%s; without a lock something crossed the snapshot %d times", reason, crossedTries), 0
	return nil
}
