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

	tables    chan error // what a look at the tables under the lock has come to
	tablesNow Facts      // valid after
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
	set := []string{fmt.Sprintf("SET SESSION lock_wait_timeout = %d", seconds), "SET SESSION autocommit = 1"}
	if len(l.take) > 0 {
		set = append(set, fmt.Sprintf("SET SESSION wait_timeout = %d", seconds+1))
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

// notGranted explains why the lock was not to be had, naming what stands in the way as
// far as it is still there.
func (l *lock) notGranted(err error) error {
	e := &respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf("%s was not granted within %s", l, l.budget),
		Hint: "run again when the server is less busy, or give --max-lock more time", Err: err}
	if l.s.version.Flavor == respaldo.MariaDB && l.mode != respaldo.LockGlobal {
		e.Hint += "; does another backup (mariadb-backup) run?"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if found := l.inTheWay(ctx); len(found) > 0 {
		e.What += ", perhaps because of " + nameAll(found)
		if l.s.version.Flavor == respaldo.MySQL && found[0].ID != 0 {
			// Measured on 5.6 and 9.7; nothing but the end of the statement helps.
			e.Hint += fmt.Sprintf("; the tables that it uses may hang for others (\"Waiting for table flush\") until it has ended: KILL %d", found[0].ID)
		}
	}
	return e
}

func (l *lock) lostError(err error) error {
	what := "the connection that held the lock was lost, so the snapshot may not be consistent"
	if l.mode == respaldo.LockNone {
		what = "the connection that watched what crosses the snapshot was lost, so it may not be consistent"
	}
	return &respaldo.Error{Kind: respaldo.LockTimeout, What: what,
		Hint: "was the server stopped, or our connection killed? look at its error log, then run again", Err: err}
}

// String is what is held, for people.
func (l *lock) String() string {
	switch {
	case l.mode != respaldo.LockNone:
		return "the lock"
	case len(l.take) > 0:
		return "the lock against DDL"
	}
	return "the look at what crosses the snapshot"
}
