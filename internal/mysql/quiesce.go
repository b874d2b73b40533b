package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// QuiesceRequest is how to quiesce a server.
type QuiesceRequest struct {
	Mode   respaldo.LockMode // LockNone, LockBackup or LockGlobal, as ChooseLock said
	Reason string            // why, for the record
	// Budget bounds waiting for the lock and holding it together: the time that a writer
	// may have to wait because of this one attempt.
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
	calm := calmWait{l: l, patience: patience, waiting: req.Waiting, kill: req.KillBlockers, began: time.Now()}
	if err := calm.then(ctx, req.BeforeLock); err != nil {
		return q, err
	}
	if err := l.settings(ctx); err != nil {
		return q, s.explain(err, "preparing the lock")
	}
	req.Probe.begin()
	if err = l.hold(ctx, &q, fn); err == nil {
		req.Probe.end(ctx, &q)
	} else if q.HeldSeconds == 0 {
		calm.endStranded(ctx)
	}
	s.log.Debug("quiesced", "mode", q.Mode, "waited", q.WaitedSeconds, "held", q.HeldSeconds, "coordinates", q.Coordinates.String(), "error", err)
	return q, err
}

// lock is one attempt to quiesce: the connection that holds the lock and the one that can end it.
type lock struct {
	s      *Server
	mode   respaldo.LockMode
	budget time.Duration
	facts  *Facts
	take   []string // statements, in order; none where nobody is kept out
	give   []string // the reverse

	conn    *sql.Conn // nothing but the lock's own statements runs on it
	raw     net.Conn  // the network connection beneath conn
	id      uint64    // conn's, for KILL
	killer  *sql.Conn
	closers []func()
}

// lockStatements are what takes and gives back a lock.
//
// Global, on MySQL 8: LOCK INSTANCE FOR BACKUP comes first, where the account may. It waits
// for running DDL without stalling any writer, so that FLUSH TABLES WITH READ LOCK, which
// stalls all of them while it waits, finds none to wait for.
//
// Backup: the stages before BLOCK_COMMIT wait for DDL and writes to non-transactional
// tables while transactions go on committing.
//
// None: what stops DDL and no commit, if there is such a thing.
func (s *Server) lockStatements(ctx context.Context, q queryer, mode respaldo.LockMode) (take, give []string, err error) {
	switch {
	case mode == respaldo.LockNone && s.version.AtLeast(respaldo.MariaDB, 10, 4, 1):
		return []string{"BACKUP STAGE START", "BACKUP STAGE FLUSH", "BACKUP STAGE BLOCK_DDL"}, []string{"BACKUP STAGE END"}, nil
	case mode == respaldo.LockNone:
		may, err := s.hasBackupAdmin(ctx, q)
		if err != nil || !may {
			return nil, nil, err
		}
		return []string{"LOCK INSTANCE FOR BACKUP"}, []string{"UNLOCK INSTANCE"}, nil
	case mode == respaldo.LockBackup && s.version.AtLeast(respaldo.MariaDB, 10, 4, 1):
		return []string{"BACKUP STAGE START", "BACKUP STAGE FLUSH", "BACKUP STAGE BLOCK_DDL", "BACKUP STAGE BLOCK_COMMIT"}, []string{"BACKUP STAGE END"}, nil
	case mode != respaldo.LockGlobal:
		return nil, nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s has no lock %q", s.version, mode), Hint: "use --lock=auto"}
	case s.version.AtLeast(respaldo.MySQL, 8, 0, 0):
		may, err := s.hasBackupAdmin(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		if may {
			return []string{"LOCK INSTANCE FOR BACKUP", "FLUSH TABLES WITH READ LOCK"}, []string{"UNLOCK TABLES", "UNLOCK INSTANCE"}, nil
		}
	}
	return []string{"FLUSH TABLES WITH READ LOCK"}, []string{"UNLOCK TABLES"}, nil
}

// hasBackupAdmin reads the list of privileges: trying LOCK INSTANCE FOR BACKUP might wait.
// Before MySQL 8.0 there is neither.
func (s *Server) hasBackupAdmin(ctx context.Context, q queryer) (bool, error) {
	if !s.version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		return false, nil
	}
	granted, err := queryRows(ctx, q, `SELECT 1 AS may FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE = 'BACKUP_ADMIN'
		AND GRANTEE = CONCAT('\'', REPLACE(CURRENT_USER(), '@', '\'@\''), '\'')`)
	return len(granted) > 0, err
}

// prepareLock does everything that can be done before the lock.
func (s *Server) prepareLock(ctx context.Context, req QuiesceRequest) (l *lock, err error) {
	if req.Budget <= 0 {
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: "no time given for the lock", Hint: "--max-lock must be more than zero"}
	}
	if req.Facts == nil {
		return nil, errors.New("quiesce: no facts about the server")
	}
	if failing := req.Facts.failing(); req.Mode == respaldo.LockNone && len(failing) > 0 {
		return nil, crossed("%s", strings.Join(failing, "; "))
	}
	if p := req.Facts.Process; p.PID != 0 && !p.Alive() {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "the server was restarted or stopped after we had looked at it", Hint: "nothing was touched; run again"}
	}
	l = &lock{s: s, mode: req.Mode, budget: req.Budget, facts: req.Facts}
	defer func() {
		if err != nil {
			l.close()
			err = s.explain(err, "preparing the lock")
		}
	}()
	var closeConn func()
	if l.conn, l.raw, closeConn, err = s.open(ctx); err != nil {
		return l, err
	}
	l.closers = append(l.closers, closeConn)
	if l.killer, _, closeConn, err = s.open(ctx); err != nil {
		return l, err
	}
	l.closers = append(l.closers, closeConn)
	if l.take, l.give, err = s.lockStatements(ctx, l.killer, req.Mode); err != nil {
		return l, err
	}
	// Looking for a calm moment takes as long as it takes, and later the killer sits idle until
	// it is needed: then there may be no other connection to be had, with all writers waiting.
	for _, c := range []*sql.Conn{l.conn, l.killer} {
		if _, err = c.ExecContext(ctx, "SET SESSION wait_timeout = 86400"); err != nil {
			return l, err
		}
	}
	err = l.conn.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&l.id)
	return l, err
}

// settings have the server itself keep the budget, to whole seconds, should we be
// stopped, frozen or cut off with the watchdog: it gives up waiting (its default on MySQL
// is a year), and it ends a session that has been idle for longer. Once, 5.6 let a killed
// session keep its lock until the latter. They come last before the lock, since looking
// for a calm moment may take longer, and end with the connection.
func (l *lock) settings(ctx context.Context) error {
	seconds := int(math.Ceil(l.budget.Seconds()))
	set := []string{
		fmt.Sprintf("SET SESSION lock_wait_timeout = %d", seconds),
		fmt.Sprintf("SET SESSION wait_timeout = %d", seconds+1),
		"SET SESSION autocommit = 1",
	}
	if l.s.version.Flavor == respaldo.MariaDB {
		set = append(set, "SET SESSION max_statement_time = 0")
	}
	for _, statement := range set {
		if _, err := l.conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func (l *lock) close() {
	for i := len(l.closers) - 1; i >= 0; i-- {
		l.closers[i]()
	}
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
	defer func() { // also when fn panics
		unlockErr := l.release(unbound)
		q.HeldSeconds = time.Since(granted).Seconds()
		err = verdict(dog.stop(), err, unlockErr)
	}()
	if l.mode == respaldo.LockNone {
		return l.unlocked(fnCtx, q, asked.Add(l.budget/2), func() error { return l.run(fnCtx, q, dog, fn) })
	}
	if q.Coordinates, err = readCoordinates(unbound, l.conn, l.s.version, l.facts.Replica); err != nil {
		return l.s.explain(err, "reading the binlog coordinates under the lock")
	}
	return l.run(fnCtx, q, dog, fn)
}

// run calls fn and watches the connection, which belongs to nobody else meanwhile.
func (l *lock) run(ctx context.Context, q *respaldo.Quiesced, dog *watchdog, fn func(context.Context, respaldo.Coordinates) error) error {
	stopPeek := peek(l.raw, dog.lost)
	defer stopPeek()
	q.At = time.Now().UTC()
	return fn(ctx, q.Coordinates)
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

func (l *lock) acquire(ctx context.Context) error {
	for _, statement := range l.take {
		if _, err := l.conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// release gives back every part of the lock. That it succeeds on the pinned connection
// proves that the session, and so the lock, lived until now.
func (l *lock) release(ctx context.Context) error {
	var failed []error
	for _, statement := range l.give {
		if _, err := l.conn.ExecContext(ctx, statement); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// verdict says what the whole came to: broken is why the watchdog ended the lock, fnErr
// what fn said.
func verdict(broken, fnErr, unlockErr error) error {
	switch {
	case broken != nil && (fnErr == nil || errors.Is(broken, fnErr) || errors.Is(fnErr, broken) || errors.Is(fnErr, context.Canceled)):
		return broken
	case broken != nil:
		return errors.Join(broken, fnErr)
	case fnErr != nil:
		return fnErr
	case unlockErr != nil:
		return lostError(unlockErr)
	}
	return nil
}

// notGranted explains why the lock was not to be had, naming what stands in the way as
// far as it is still there.
func (l *lock) notGranted(err error) error {
	e := &respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf("the lock was not granted within %s", l.budget),
		Hint: "run again when the server is less busy, or give --max-lock more time", Err: err}
	if l.s.version.Flavor == respaldo.MariaDB && l.mode != respaldo.LockGlobal {
		e.Hint += "; does another backup (mariadb-backup) run?"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// What would be no obstacle to BACKUP STAGE at first sight may have been one all the same.
	if found, _, err := l.s.blockers(ctx, l.killer, respaldo.LockGlobal); err == nil && len(found) > 0 {
		e.What += ", perhaps because of " + nameAll(found)
		if l.s.version.Flavor == respaldo.MySQL && found[0].ID != 0 {
			// Measured on 5.6 and 9.7; nothing but the end of the statement helps.
			e.Hint += fmt.Sprintf("; the tables that it uses may hang for others (\"Waiting for table flush\") until it has ended: KILL %d", found[0].ID)
		}
	}
	return e
}

func lostError(err error) error {
	return &respaldo.Error{Kind: respaldo.LockTimeout, What: "the connection that held the lock was lost, so the snapshot may not be consistent",
		Hint: "was the server stopped, or our connection killed? look at its error log, then run again", Err: err}
}
