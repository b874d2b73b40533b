package mysql

import (
	"context"
	"errors"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// QuiesceRequest is how to quiesce a server.
type QuiesceRequest struct {
	Mode   respaldo.LockMode // LockNone, LockBackup or LockGlobal, as ChooseLock said
	Reason string            // why, for the record
	// Budget bounds waiting for the lock and holding it together: the time that a writer
	// may have to wait because of this one attempt. Where nothing is locked fn's time is not part
	// of it.
	Budget time.Duration
	// Patience bounds looking for a moment without long statements before the lock is
	// asked for, during which nobody waits for us; 0 is as long as Budget.
	Patience time.Duration
	// BeforeLock, if set, is called when the calm moment has come, right before the lock is
	// asked for; its error ends the attempt, and is returned as it is. Writers do not wait
	// for it, but it should be quick: another long statement may begin meanwhile.
	BeforeLock func() error
	// Waiting, if set, is told once when that takes longer than a second, and because of whom.
	Waiting func(behind string)
	// KillBlockers, if set, has long reads that stand in the way of the lock ended when they do
	// not end by themselves, and is told of each. Nothing else is ever ended.
	KillBlockers func(Statement)
	// Probe, if set, measures what writers really wait for; Quiesce waits for what it has to
	// see before the lock and after it.
	Probe *StallProbe
	Facts *Facts // of this server; one that was restarted since is refused
	// unready, if set, is called when the lock cannot be asked for after all, BeforeLock having
	// been called: it is called again later.
	unready func() error
	// released, if set, is called as soon as the lock is gone; its error is that of the attempt.
	released func() error
}

// Quiesce calls fn while the server is quiesced, with the coordinates at which it stands
// still. The lock lives on a connection of its own and is released on every path, a panic
// in fn included.
//
// When the budget is used up or the connection is lost, the lock is ended by KILL from
// a second connection, fn's context is cancelled with the *respaldo.Error as its cause,
// and Quiesce returns that error even if fn succeeds: what fn made is then not
// consistent and must be discarded. Quiesce always waits for fn to return; writers do not.
//
// In LockNone commits go on: fn gets no coordinates, which are to be read in the image
// (Quiesced.FromImage). DDL is kept out, or watched where that is not possible. If
// something crossed that may make the image inexact, the error has ErrCrossed in its chain.
//
// fn must do nothing slow. Quiesce itself logs nothing while the lock is held.
func (s *Server) Quiesce(ctx context.Context, req QuiesceRequest, fn func(ctx context.Context, at respaldo.Coordinates) error) (respaldo.Quiesced, error) {
	q := respaldo.Quiesced{Mode: req.Mode, Reason: req.Reason}
	l, err := s.prepareLock(ctx, req)
	if err != nil {
		return q, err
	}
	defer l.close()
	patience := req.Patience
	if patience <= 0 {
		patience = req.Budget
	}
	if err := req.Probe.lead(ctx); err != nil {
		return q, err
	}
	calm := calmWait{l: l, patience: patience, waiting: req.Waiting, kill: req.KillBlockers, unready: req.unready, began: time.Now()}
	if err := calm.then(ctx, func() error { return l.beforeLock(ctx, req.BeforeLock) }); err != nil {
		return q, err
	}
	if err := l.settings(ctx); err != nil {
		return q, s.explain(err, "preparing the lock")
	}
	req.Probe.begin()
	err = l.hold(ctx, &q, fn)
	if req.released != nil {
		if failed := req.released(); err == nil {
			err = failed
		}
	}
	if err == nil {
		err = l.tablesHold()
	}
	if err == nil {
		req.Probe.end(ctx, &q)
	} else if q.HeldSeconds == 0 {
		calm.endStranded(ctx)
	}
	s.log.Debug("quiesced", "mode", q.Mode, "waited", q.WaitedSeconds, "held", q.HeldSeconds, "coordinates", q.Coordinates.String(), "error", err)
	return q, err
}

// hold takes the lock, calls fn, gives the lock back and tells whether it was held all
// the time. Statements on the pinned connection are not bound to ctx: a driver that
// drops the connection leaves the server waiting for the lock on its own. The watchdog
// ends them.
func (l *lock) hold(ctx context.Context, q *respaldo.Quiesced, fn func(context.Context, respaldo.Coordinates) error) (err error) {
	unbound := context.WithoutCancel(ctx)
	fnCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := l.watch(ctx, cancel)
	asked := time.Now()

	err = l.acquire(unbound)
	granted := time.Now()
	q.WaitedSeconds = granted.Sub(asked).Seconds()
	if err != nil { // nothing is granted: the budget may be used up in this very instant
		l.release(unbound) // the parts that were granted; closing the connection would do it as well
		if broken := dog.stop(); broken != nil {
			return broken
		}
		if errorNumber(err) == errLockWaitTimeout {
			return l.notGranted(err)
		}
		return l.s.explain(err, "taking the lock")
	}
	dog.granted()
	l.lookAtTables(ctx)
	defer func() { // also when fn panics
		unlockErr := l.release(unbound)
		q.HeldSeconds = time.Since(granted).Seconds()
		err = l.verdict(dog.stop(), err, unlockErr)
	}()
	if l.mode == respaldo.LockNone {
		return l.unlocked(fnCtx, q, asked.Add(l.budget/2), func() error { return l.run(fnCtx, q, dog, fn) })
	}
	if q.Coordinates, err = readCoordinates(unbound, l.conn, l.s.version, l.facts.Replica); err != nil {
		return l.s.explain(err, "reading the binlog coordinates under the lock")
	}
	if err = l.run(fnCtx, q, dog, fn); err != nil || l.mode != respaldo.LockBackup {
		return err
	}
	return l.s.explain(l.halfDone(unbound), "looking for what the lock has stopped midway")
}

// run calls fn and watches the connection, which belongs to nobody else meanwhile.
func (l *lock) run(ctx context.Context, q *respaldo.Quiesced, dog *watchdog, fn func(context.Context, respaldo.Coordinates) error) error {
	stopPeek := peek(l.raw, dog.lost)
	defer stopPeek()
	q.At = time.Now().UTC()
	return dog.freely(func() error { return fn(ctx, q.Coordinates) })
}

// unlocked calls run between two looks at what must not cross it, the first of which may
// wait until the time given for a moment without.
func (l *lock) unlocked(ctx context.Context, q *respaldo.Quiesced, until time.Time, run func() error) error {
	q.FromImage = true
	w := &watch{s: l.s, q: l.conn, f: l.facts, ddl: len(l.take) == 0, own: l.s.version.Flavor == respaldo.MariaDB}
	if err := w.begin(ctx, until); err != nil {
		return l.s.explain(err, "looking for what might cross the snapshot")
	}
	if err := run(); err != nil {
		return err
	}
	return l.s.explain(w.end(context.WithoutCancel(ctx)), "looking for what has crossed the snapshot")
}

// beforeLock does what is done right before the lock, and sees that what is known of the
// tables still holds: first, since that may take long, and once more.
func (l *lock) beforeLock(ctx context.Context, before func() error) error {
	if err := l.s.refresh(ctx, l.s.db, l.facts, l.mode); err != nil || before == nil {
		return err
	}
	if err := before(); err != nil {
		return err
	}
	return l.s.refresh(ctx, l.s.db, l.facts, l.mode)
}

// lookAtTables begins to see, on another connection, that there was no DDL right before the
// lock which changed what is known of the tables. The lock, which keeps DDL out, does not
// last longer for it.
func (l *lock) lookAtTables(ctx context.Context) {
	if len(l.take) == 0 {
		return // DDL is watched
	}
	ctx, cancel := context.WithCancel(ctx)
	l.closers = append(l.closers, cancel)
	l.tables, l.tablesNow = make(chan error, 1), *l.facts // which others read meanwhile
	go func() { l.tables <- l.s.refresh(ctx, l.s.db, &l.tablesNow, l.mode) }()
}

// tablesHold waits for what that came to. If it ends after the lock, it may count what came
// after that: an image is then discarded that was good.
func (l *lock) tablesHold() error {
	if l.tables == nil {
		return nil
	}
	err := <-l.tables
	l.facts.takeOver(&l.tablesNow)
	return err
}

// verdict says what the whole came to: broken is why the watchdog ended the lock, fnErr
// what fn said.
func (l *lock) verdict(broken, fnErr, unlockErr error) error {
	switch {
	case broken != nil && (fnErr == nil || errors.Is(broken, fnErr) || errors.Is(fnErr, broken) || errors.Is(fnErr, context.Canceled)):
		return broken
	case broken != nil:
		return errors.Join(broken, fnErr)
	case fnErr != nil:
		return fnErr
	case unlockErr != nil:
		return l.lostError(unlockErr)
	}
	return nil
}
