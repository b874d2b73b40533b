package mysql

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// testQuiesceBlindly has an obstacle that an account with the least privileges cannot
// foresee. The budget bounds the wait, and so does Ctrl-C.
func testQuiesceBlindly(t *testing.T, b *box, s *Server, f *Facts) {
	defer obstruct(t, b)()
	mode, _, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil {
		t.Fatal(err)
	}
	locked := never(t)
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
		_, err := s.Quiesce(context.Background(), req, nothing)
		if err != nil {
			t.Error(explained(err))
		}
		return
	}
	req.Budget = 200 * time.Millisecond
	_, err := s.Quiesce(context.Background(), req, never(t))
	mustBe(t, err, respaldo.LockTimeout, fmt.Sprintf("connection %d of user root", id), "SELECT SLEEP(?) FROM d.t", fmt.Sprintf("KILL %d", id))
	b.writes(t)
	b.writesTo(t, "d.t") // the table that the report reads
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
	if _, err := s.Quiesce(context.Background(), req, nothing); err != nil {
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
	_, err := s.Quiesce(context.Background(), req, never(t))
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

// testLockTablesAmongOthers has short statements run all the time, which before MySQL 8 hide
// who holds LOCK TABLES: it is named all the same when the lock was not granted.
func testLockTablesAmongOthers(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	c := b.conn(t)
	if _, err := c.ExecContext(context.Background(), "LOCK TABLES d.t WRITE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	const others = 3
	for range others {
		go func() {
			for ctx.Err() == nil {
				if _, err := b.root.Exec("SELECT SLEEP(0.02) FROM d.other LIMIT 1"); err != nil {
					t.Error(err)
				}
			}
			done <- struct{}{}
		}()
	}
	waitFor(t, "others", b.runs(t, "SELECT SLEEP", "User sleep"))
	req.Budget = 100 * time.Millisecond
	_, err := s.Quiesce(context.Background(), req, never(t))
	mustBe(t, err, respaldo.LockTimeout, "LOCK TABLES on", "d.t")
	cancel()
	for range others {
		<-done
	}
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
	_, err := s.Quiesce(ctx, req, never(t))
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
		{row{"command": "Killed", "user": "app"}, false, false, false}, // and does not go, on 5.6
		{row{"command": "Killed", "user": "system user"}, true, false, false},
		{row{"command": "Connect", "user": "unauthenticated user", "state": "login"}, false, false, false},
		{row{"command": "Quit", "user": "app"}, false, false, false},
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
