package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// testKillBlockers has a report, a report in a transaction that has changed rows, and a long
// UPDATE. Only the first may be ended.
func testKillBlockers(t *testing.T, b *box) {
	ctx := context.Background()
	s := b.serverAs(t, "respaldo", "pw")
	b.exec(t, "CREATE USER 'app'@'localhost' IDENTIFIED BY 'pw'", "GRANT ALL ON d.* TO 'app'@'localhost'")
	app := func() *sql.Conn { // not root: to end SYSTEM_USER's takes SYSTEM_USER
		c, _, closeConn, err := b.serverAs(t, "app", "pw").open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(closeConn)
		return c
	}
	report, changed, update := app(), app(), app()
	if _, err := changed.ExecContext(ctx, "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if _, err := changed.ExecContext(ctx, "INSERT INTO d.other (v) VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	running := map[*sql.Conn]chan error{}
	ids := map[*sql.Conn]uint64{}
	for c, statement := range map[*sql.Conn]string{
		report:  "SELECT SLEEP(1000), 'secret' FROM d.t LIMIT 1",
		changed: "SELECT SLEEP(1000) FROM d.t LIMIT 1",
		update:  "UPDATE d.t SET v = SLEEP(1000) LIMIT 1",
	} {
		done := make(chan error, 1)
		running[c], ids[c] = done, b.id(t, c)
		go func() {
			_, err := c.ExecContext(ctx, statement)
			done <- err
		}()
	}
	end := func() {
		for _, id := range ids {
			b.root.Exec(fmt.Sprintf("KILL %d", id))
		}
	}
	defer end()
	want := []uint64{ids[report], ids[changed], ids[update]}
	if s.version.Flavor == respaldo.MariaDB { // reads are in nobody's way there
		want = want[2:]
	}
	waitFor(t, "them to run for long", func() bool {
		found, _, err := s.blockers(ctx, s.db, respaldo.LockGlobal)
		if err != nil {
			t.Fatal(err)
		}
		return len(found) == len(want)
	})
	var ended []Statement
	req := quiet(mustFacts(t, s), respaldo.LockGlobal)
	req.Patience = 400 * time.Millisecond
	req.KillBlockers = func(t Statement) { ended = append(ended, t) }
	try := func() error {
		_, err := s.Quiesce(ctx, req, nothing)
		return err
	}
	if s.version.Flavor == respaldo.MySQL {
		mustBe(t, try(), respaldo.Refused, "may not end", "TO 'respaldo'@'localhost'", strings.Fields(KillGrants(s.version)[0])[1])
		b.exec(t, KillGrants(s.version)...)
		if len(ended) > 0 {
			t.Errorf("ended without the privilege: %v", ended)
		}
	}
	behind := ""
	req.Patience = 1200 * time.Millisecond // longer than nothing is said
	req.Waiting = func(whom string) { behind = whom }
	err := try()
	if !strings.Contains(behind, "UPDATE d.t SET v = SLEEP(?)") {
		t.Errorf("waited for %q", behind)
	}
	mustBe(t, err, respaldo.LockTimeout, "UPDATE d.t SET v = SLEEP(?)", fmt.Sprintf("connection %d was not ended: it is not a read", ids[update]))
	if s.version.Flavor == respaldo.MySQL {
		mustBe(t, err, respaldo.LockTimeout, fmt.Sprintf("connection %d was not ended: its transaction has changed rows", ids[changed]))
		if len(ended) != 1 || ended[0].ID != ids[report] || ended[0].User != "app" || ended[0].Text != "SELECT SLEEP(?), ? FROM d.t LIMIT ?" {
			t.Errorf("ended: %v", ended)
		}
		within(t, "the report", func() error { return <-running[report] })
		if id := b.id(t, report); id != ids[report] {
			t.Errorf("its connection is now %d, it was %d", id, ids[report])
		}
	} else if len(ended) > 0 {
		t.Errorf("ended: %v", ended)
	}
	if still := []bool{len(running[changed]) == 0, len(running[update]) == 0}; slices.Contains(still, false) {
		t.Errorf("they run on: %v", still)
	}
	end()
	<-running[changed]
	<-running[update]
	if s.version.Flavor == respaldo.MySQL {
		testStranded(t, b, s, req, app())
	}
	// Who gives way by themselves are not ended, and with nobody in the way the lock is had.
	ended = nil
	req.Patience = patience
	if err := try(); err != nil || len(ended) > 0 {
		t.Errorf("%v, ended %v", err, ended)
	}
}

// testStranded has a report that begins right before the lock is asked for, whose table then
// hangs for everybody.
func testStranded(t *testing.T, b *box, s *Server, req QuiesceRequest, report *sql.Conn) {
	id := b.id(t, report)
	defer b.root.Exec(fmt.Sprintf("KILL %d", id))
	var ended []Statement
	req.KillBlockers = func(t Statement) { ended = append(ended, t) }
	req.Budget = 1200 * time.Millisecond // longer than a report that is seen to run
	done := make(chan error, 1)
	req.BeforeLock = func() error {
		go func() {
			_, err := report.ExecContext(context.Background(), "SELECT SLEEP(1000) FROM d.t LIMIT 1")
			done <- err
		}()
		waitFor(t, "the report", b.runs(t, "SELECT SLEEP", "User sleep"))
		return nil
	}
	_, err := s.Quiesce(context.Background(), req, never(t))
	mustBe(t, err, respaldo.LockTimeout, "not granted within 1.2s")
	if len(ended) != 1 || ended[0].ID != id {
		t.Errorf("ended: %v, not connection %d", ended, id)
	}
	within(t, "the report", func() error { return <-done })
	b.writesTo(t, "d.t") // the table that the report reads
}

// TestNeverEnded has what must not be ended, whatever asks for it.
func TestNeverEnded(t *testing.T) {
	for _, c := range []struct {
		p    row
		ends bool
	}{
		{row{"command": "Query", "user": "app", "info": "SELECT * FROM t"}, true},
		{row{"command": "Execute", "user": "app", "info": "/* report */ WITH x AS (SELECT 1) SELECT REPLACE(a, 'b', 'c') FROM x"}, true},
		{row{"command": "Query", "user": "app", "info": "SELECT * FROM t", "length": "70000"}, false},
		{row{"command": "Query", "user": "app", "info": "WITH x AS (SELECT 1) UPDATE t SET a = 1"}, false},
		{row{"command": "Query", "user": "app", "info": "SELECT * FROM t FOR UPDATE"}, false},
		{row{"command": "Query", "user": "app", "info": "SELECT /* don't */ * FROM t FOR UPDATE /* won't */"}, false},
		{row{"command": "Query", "user": "app", "info": "SELECT * FROM t INTO OUTFILE '/tmp/x'"}, false},
		{row{"command": "Query", "user": "app", "info": "/*!50000 CREATE TABLE x */ SELECT * FROM t"}, false},
		{row{"command": "Query", "user": "app", "info": "/*M!100100 SET @a = 1 */ SELECT 1"}, false},
		{row{"command": "Query", "user": "dba", "info": "ALTER TABLE t ADD COLUMN a INT"}, false},
		{row{"command": "Query", "user": "dba", "info": "OPTIMIZE TABLE t"}, false},
		{row{"command": "Query", "user": "app", "info": "CALL p()"}, false},
		{row{"command": "Query", "user": "app", "info": ""}, false},
		{row{"command": "Connect", "user": "app", "info": "SELECT * FROM t"}, false}, // an event
		{row{"command": "Query", "user": "system user", "info": "SELECT * FROM t"}, false},
		{row{"command": "Binlog Dump GTID", "user": "repl"}, false},
	} {
		if why := neverEnd(c.p); (why == "") != c.ends {
			t.Errorf("%v: %q", c.p, why)
		}
	}
}
