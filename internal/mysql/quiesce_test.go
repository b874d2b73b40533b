package mysql

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// quiet is a request with time enough for any machine.
func quiet(f *Facts, mode respaldo.LockMode) QuiesceRequest {
	return QuiesceRequest{Mode: mode, Reason: "test", Budget: patience, Facts: f}
}

// writes says that a commit goes through, soon.
func (b *box) writes(t *testing.T) {
	t.Helper()
	if err := within(t, "a commit", func() error {
		_, err := b.root.Exec("INSERT INTO d.other (v) VALUES (1)")
		return err
	}); err != nil {
		t.Errorf("a commit: %v", err)
	}
}

func testQuiesce(t *testing.T, b *box) {
	s := b.server(t)
	f := mustFacts(t, s)
	modes := []respaldo.LockMode{respaldo.LockGlobal}
	if f.Version.Flavor == respaldo.MariaDB {
		modes = append(modes, respaldo.LockBackup)
	}
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Run("exact under writes", func(t *testing.T) { testExact(t, b, s, quiet(f, mode)) })
			t.Run("fn fails", func(t *testing.T) { testFnFails(t, b, s, quiet(f, mode)) })
			t.Run("budget", func(t *testing.T) { testBudget(t, b, s, quiet(f, mode)) })
			t.Run("killed", func(t *testing.T) { testKilled(t, b, s, quiet(f, mode)) })
			t.Run("interrupted", func(t *testing.T) { testInterrupted(t, b, s, quiet(f, mode)) })
			t.Run("long select", func(t *testing.T) { testLongSelect(t, b, s, quiet(f, mode)) })
			t.Run("lock tables", func(t *testing.T) { testLockTables(t, b, s, quiet(f, mode)) })
		})
	}
	t.Run("frozen", func(t *testing.T) { testFrozen(t, b, s, quiet(f, modes[len(modes)-1])) })
	t.Run("ddl", func(t *testing.T) { testDDL(t, b, s, quiet(f, respaldo.LockGlobal)) })
	t.Run("no such lock", func(t *testing.T) {
		if f.Version.Flavor == respaldo.MariaDB {
			t.Logf("%s has them all", f.Version)
			return
		}
		_, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockBackup), nil)
		mustBe(t, err, respaldo.Refused, `no lock "backup"`)
	})
	waitFor(t, "every connection that locked to be gone", func() bool {
		list, err := queryRows(context.Background(), b.root, "SHOW PROCESSLIST")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if strings.Contains(p["state"], "lock") || strings.Contains(p["info"], "LOCK") || strings.Contains(p["info"], "BACKUP") {
				return false
			}
		}
		return true
	})
	b.writes(t)
}

// testExact has writers that commit all the time, to transactional and other tables: as
// long as fn runs the server must stay where its coordinates are.
func testExact(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ctx, cancel := context.WithCancel(context.Background())
	var commits atomic.Int64
	done := make(chan struct{})
	for _, table := range []string{"d.t", "d.my"} {
		column := map[string]string{"d.t": "v", "d.my": "id"}[table]
		go func() {
			defer func() { done <- struct{}{} }()
			for ctx.Err() == nil {
				if _, err := b.root.Exec(fmt.Sprintf("INSERT INTO %s (%s) VALUES (1)", table, column)); err != nil {
					t.Error(err)
					return
				}
				commits.Add(1)
			}
		}()
	}
	waitFor(t, "writers to write", func() bool { return commits.Load() > 10 })
	q, err := s.Quiesce(context.Background(), req, func(_ context.Context, at respaldo.Coordinates) error {
		waitFor(t, "both writers to wait", func() bool { return b.stalled(t) == 2 })
		for range 3 {
			now, err := s.Coordinates(context.Background())
			if err != nil {
				return err
			}
			if now.String() != at.String() || now.GTIDSet != at.GTIDSet {
				t.Errorf("%s went on under the lock to %s", at, now)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(explained(err))
	}
	after := commits.Load()
	waitFor(t, "writers to go on", func() bool { return commits.Load() > after+10 })
	cancel()
	<-done
	<-done
	if q.Coordinates.File == "" || q.Coordinates.Position == 0 || q.Coordinates.GTIDSet == "" || q.HeldSeconds <= 0 || q.Reason != "test" || q.Mode != req.Mode {
		t.Errorf("quiesced: %+v", q)
	}
}

// stalled counts the inserts that wait for a lock of ours.
func (b *box) stalled(t *testing.T) (n int) {
	list, err := queryRows(context.Background(), b.root, "SHOW FULL PROCESSLIST")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if strings.HasPrefix(p["info"], "INSERT") && (strings.Contains(p["state"], "lock") || strings.Contains(p["state"], "flush")) {
			n++
		}
	}
	return n
}

func testFnFails(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	failed := &respaldo.Error{Kind: respaldo.SnapshotLost, What: "no room", Hint: "make some"}
	_, err := s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error { return failed })
	mustBe(t, err, respaldo.SnapshotLost, "no room")
	b.writes(t)

	before := req
	before.BeforeLock = func() error {
		b.writes(t) // nobody waits yet
		return failed
	}
	_, err = s.Quiesce(context.Background(), before, func(context.Context, respaldo.Coordinates) error {
		t.Error("locked")
		return nil
	})
	mustBe(t, err, respaldo.SnapshotLost, "no room")

	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("fn's panic became %v", r)
			}
		}()
		s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error { panic("oops") })
	}()
	b.writes(t)
}

// testBudget has a volume command that hangs: writers must not.
func testBudget(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	req.Budget = 300 * time.Millisecond
	q, err := s.Quiesce(context.Background(), req, func(ctx context.Context, _ respaldo.Coordinates) error {
		b.writes(t) // while we are still here
		return within(t, "fn's context", func() error {
			<-ctx.Done()
			mustBe(t, context.Cause(ctx), respaldo.LockTimeout, "300ms")
			return nil // what it did looks fine to it
		})
	})
	mustBe(t, err, respaldo.LockTimeout, "300ms", "--max-lock")
	if q.HeldSeconds == 0 {
		t.Errorf("quiesced: %+v", q)
	}
	b.writes(t)
}

// testFrozen has us hang altogether, watchdog included: the server ends the lock.
func testFrozen(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	req.Budget = time.Second
	l, err := s.prepareLock(context.Background(), req)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer l.close()
	if err := l.settings(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.acquire(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.writes(t)
	if err := l.release(context.Background()); !isConnectionLost(err) {
		t.Errorf("released a lock that the server had ended: %v", err)
	}
}

// testKilled has a zealous script that ends what sleeps.
func testKilled(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	req.Budget = patience / 3 // see settings: 5.6 may take as long to let go of the lock
	_, err := s.Quiesce(context.Background(), req, func(ctx context.Context, _ respaldo.Coordinates) error {
		c := b.conn(t)
		waitFor(t, "fn's context to end", func() bool {
			list, err := queryRows(context.Background(), c, "SHOW PROCESSLIST")
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				if p["command"] == "Sleep" {
					c.ExecContext(context.Background(), "KILL "+p["id"])
				}
			}
			return ctx.Err() != nil
		})
		return context.Cause(ctx)
	})
	mustBe(t, err, respaldo.LockTimeout, "lost", "killed")
	b.writes(t)
}

// testInterrupted is Ctrl-C while the lock is held.
func testInterrupted(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := s.Quiesce(ctx, req, func(ctx context.Context, _ respaldo.Coordinates) error {
		cancel()
		<-ctx.Done()
		return context.Cause(ctx)
	})
	mustBe(t, err, respaldo.Interrupted)
	b.writes(t)

}

// testQuiesceBlindly has an obstacle that an account with the least privileges cannot
// foresee. The budget bounds the wait, and so does Ctrl-C.
func testQuiesceBlindly(t *testing.T, b *box, s *Server, f *Facts) {
	defer obstruct(t, b)()
	mode, _, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil {
		t.Fatal(err)
	}
	locked := func(context.Context, respaldo.Coordinates) error {
		t.Error("locked")
		return nil
	}
	for _, mode := range []respaldo.LockMode{mode, respaldo.LockGlobal} {
		req := quiet(f, mode)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			waitFor(t, "us to wait", func() bool {
				return b.runs(t, "FLUSH TABLES WITH", "Waiting")() || b.runs(t, "BACKUP STAGE", "Waiting")()
			})
			cancel()
		}()
		_, err = s.Quiesce(ctx, req, locked)
		mustBe(t, err, respaldo.Interrupted)
		b.writes(t)

		req.Budget = 300 * time.Millisecond
		q, err := s.Quiesce(context.Background(), req, locked)
		mustBe(t, err, respaldo.LockTimeout, "not granted within 300ms", "--max-lock")
		if q.HeldSeconds != 0 {
			t.Errorf("never had, but held: %+v", q)
		}
		b.writes(t)
	}
}

// obstruct makes every lock wait in a way that the processlist does not give away: on MySQL
// a function that reads a table, on MariaDB LOCK TABLES while something else runs.
func obstruct(t *testing.T, b *box) (remove func()) {
	t.Helper()
	ctx := context.Background()
	sleeper, holder := b.conn(t), b.conn(t)
	statement := "SELECT SLEEP(1000) FROM d.t LIMIT 1"
	if strings.HasPrefix(b.name, "mysql") {
		b.exec(t, "DROP FUNCTION IF EXISTS d.nap", "CREATE FUNCTION d.nap() RETURNS INT READS SQL DATA NOT DETERMINISTIC RETURN (SELECT SLEEP(1000) FROM d.t LIMIT 1)")
		statement = "SELECT d.nap()"
	} else if _, err := holder.ExecContext(ctx, "LOCK TABLES d.my WRITE"); err != nil {
		t.Fatal(err)
	}
	id := b.id(t, sleeper)
	done := make(chan error, 1)
	go func() {
		_, err := sleeper.ExecContext(ctx, statement)
		done <- err
	}()
	waitFor(t, "the obstacle", b.runs(t, statement, "User sleep"))
	return func() {
		b.root.Exec(fmt.Sprintf("KILL %d", id))
		<-done
		if _, err := holder.ExecContext(ctx, "UNLOCK TABLES"); err != nil {
			t.Error(err)
		}
	}
}

// testLongSelect has a report that runs for long. On MySQL nothing must be asked for: it
// would stall every writer. On MariaDB it is no obstacle.
func testLongSelect(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	c := b.conn(t)
	id := b.id(t, c)
	done := make(chan error, 1)
	go func() {
		_, err := c.ExecContext(context.Background(), "SELECT SLEEP(1000) FROM d.t LIMIT 1")
		done <- err
	}()
	defer func() {
		b.root.Exec(fmt.Sprintf("KILL %d", id))
		<-done
	}()
	waitFor(t, "the report to run for long", func() bool {
		found, _, err := s.blockers(context.Background(), s.db, respaldo.LockGlobal)
		if err != nil {
			t.Fatal(err)
		}
		if s.version.Flavor == respaldo.MariaDB {
			return b.runs(t, "SELECT SLEEP", "")()
		}
		return len(found) == 1 && found[0].ID == id
	})
	if s.version.Flavor == respaldo.MariaDB {
		_, err := s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error { return nil })
		if err != nil {
			t.Error(explained(err))
		}
		return
	}
	req.Budget = 200 * time.Millisecond
	_, err := s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error {
		t.Error("locked")
		return nil
	})
	mustBe(t, err, respaldo.LockTimeout, fmt.Sprintf("connection %d of user root", id), "SELECT SLEEP(?) FROM d.t", fmt.Sprintf("KILL %d", id))
	b.writes(t)
	if err := within(t, "a write to the table that the report reads", func() error {
		_, err := b.root.Exec("INSERT INTO d.t (v) VALUES (1)")
		return err
	}); err != nil {
		t.Error(err)
	}
	if f := mustFacts(t, s); len(f.Long) != 1 || f.Long[0].ID != id {
		t.Errorf("check would show %v", f.Long)
	}
	// With patience the lock is had as soon as the report has ended.
	req.Budget, req.Patience = patience, patience
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		b.root.Exec(fmt.Sprintf("KILL QUERY %d", id))
	}()
	calm := false
	req.BeforeLock = func() error {
		found, _, err := s.blockers(context.Background(), s.db, req.Mode)
		calm = len(found) == 0
		return err
	}
	if _, err := s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error { return nil }); err != nil {
		t.Error(explained(err))
	}
	if !calm {
		t.Error("what comes right before the lock came before the calm")
	}
	<-waited
}

// testLockTables has a session that holds LOCK TABLES and sleeps.
func testLockTables(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	c := b.conn(t)
	id := b.id(t, c)
	if _, err := c.ExecContext(context.Background(), "LOCK TABLES d.t WRITE"); err != nil {
		t.Fatal(err)
	}
	req.Budget = 300 * time.Millisecond
	_, err := s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error {
		t.Error("locked")
		return nil
	})
	mustBe(t, err, respaldo.LockTimeout, "LOCK TABLES on d.t")
	if b.name == "mysql-9.7" {
		mustBe(t, err, respaldo.LockTimeout, fmt.Sprintf("connection %d of user root", id), fmt.Sprintf("KILL %d", id))
	}
	b.writes(t)
	if _, err := c.ExecContext(context.Background(), "UNLOCK TABLES"); err != nil {
		t.Fatal(err)
	}
	b.writes(t)
}

// testDDL has an ALTER TABLE that waits for somebody's open transaction. FLUSH TABLES WITH READ
// LOCK would wait for it, and every writer for that.
func testDDL(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ctx := context.Background()
	reader, alter := b.conn(t), b.conn(t)
	if _, err := reader.ExecContext(ctx, "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if _, err := queryRows(ctx, reader, "SELECT * FROM d.t LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	id := b.id(t, alter)
	done := make(chan error, 1)
	go func() {
		_, err := alter.ExecContext(ctx, "ALTER TABLE d.t ADD COLUMN more INT")
		done <- err
	}()
	waitFor(t, "the DDL to run for long", func() bool {
		found, _, err := s.blockers(ctx, s.db, req.Mode)
		if err != nil {
			t.Fatal(err)
		}
		return len(found) == 1 && found[0].ID == id
	})
	req.Budget = 200 * time.Millisecond
	_, err := s.Quiesce(ctx, req, func(context.Context, respaldo.Coordinates) error {
		t.Error("locked")
		return nil
	})
	mustBe(t, err, respaldo.LockTimeout, fmt.Sprintf("connection %d of user root", id), "ALTER TABLE d.t ADD COLUMN")
	b.writes(t)
	if _, err := reader.ExecContext(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestStandsInTheWay has what processlists show that no short test can bring about.
func TestStandsInTheWay(t *testing.T) {
	const backup, global = respaldo.LockBackup, respaldo.LockGlobal
	maria := respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11}
	for _, c := range []struct {
		p              row
		active         bool
		mysql, mariadb bool // in the way of FLUSH TABLES WITH READ LOCK
	}{
		{row{"command": "Query", "user": "app", "info": "UPDATE t SET a=1"}, true, true, true},
		{row{"command": "Query", "user": "app", "info": "SELECT * FROM t"}, true, true, false},
		{row{"command": "Execute", "user": "app", "info": "/* report */ (SELECT 1 FROM t)"}, true, true, false},
		{row{"command": "Query", "user": "app", "info": "WITH x AS (SELECT 1) DELETE FROM t"}, true, true, true},
		{row{"command": "Query", "user": "app", "info": "SELECT SLEEP(100)", "state": "User sleep"}, false, true, false},
		{row{"command": "Query", "user": "app", "info": "DO GET_LOCK('a', 100)", "state": "User lock"}, false, true, true},
		{row{"command": "Query", "user": "app", "info": "SELECT SLEEP(1) FROM t", "state": "User sleep"}, true, true, false},
		{row{"command": "Query", "user": "app", "info": "SELECT SLEEP(1) AS " + strings.Repeat("x", 81), "state": "User sleep"}, true, true, false}, // cut: it may go on with FROM
		{row{"command": "Killed", "user": "app", "info": "DELETE FROM t", "state": "query end"}, true, true, true},
		{row{"command": "Connect", "user": "app", "info": "INSERT INTO t SELECT 1"}, true, true, true}, // an event
		{row{"command": "Connect", "user": "system user", "info": "INSERT INTO t VALUES (1)"}, true, false, false},
		{row{"command": "Slave_SQL", "user": "system user", "info": "ALTER TABLE t ADD COLUMN a INT"}, true, true, true},
		{row{"command": "Connect", "user": "system user", "info": "", "state": "Waiting for master to send event"}, true, false, false},
		{row{"command": "Sleep", "user": "app"}, false, false, false},
		{row{"command": "Binlog Dump GTID", "user": "repl"}, false, false, false},
		{row{"command": "Daemon", "user": "event_scheduler", "state": "Waiting on empty queue"}, false, false, false},
	} {
		if got := isActive(c.p); got != c.active {
			t.Errorf("active %t: %v", got, c.p)
		}
		if !c.active {
			continue
		}
		if got := standsInTheWay(respaldo.Version{Flavor: respaldo.MySQL, Major: 8}, c.p, global); got != c.mysql {
			t.Errorf("in the way on MySQL %t: %v", got, c.p)
		}
		if got := standsInTheWay(maria, c.p, global); got != c.mariadb {
			t.Errorf("in the way on MariaDB %t: %v", got, c.p)
		}
		if standsInTheWay(maria, c.p, backup) {
			t.Errorf("in the way of BACKUP STAGE: %v", c.p)
		}
	}
}

// TestLiterals keeps customers' data and passwords out of messages.
func TestLiterals(t *testing.T) {
	for text, want := range map[string]string{
		"SELECT *\n FROM t  WHERE name = 'O''Brien' AND n=42": "SELECT * FROM t WHERE name = ? AND n=?",
		`ALTER USER bob IDENTIFIED BY "pa\"ss"`:               "ALTER USER bob IDENTIFIED BY ?",
		"UPDATE t2 SET a='unfinished":                         "UPDATE t2 SET a=?",
	} {
		if got := withoutLiterals(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
