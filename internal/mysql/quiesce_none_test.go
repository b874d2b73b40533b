package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// coveredFacts are those of a server of which one snapshot holds everything.
func coveredFacts(t *testing.T, s *Server) *Facts {
	t.Helper()
	f := mustFacts(t, s)
	f.Coverage = &Coverage{Volume: "vg/data"}
	return f
}

// testNoLock is about images without a lock, on a server that has InnoDB tables only.
func testNoLock(t *testing.T, b *box) {
	s := b.server(t)
	f := coveredFacts(t, s)
	mode, reason, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil || mode != respaldo.LockNone {
		t.Fatalf("auto is %s: %s, %v", mode, reason, err)
	}
	b.exec(t, "CREATE TABLE d.report (id INT PRIMARY KEY)", "INSERT INTO d.report VALUES (1)")
	report := b.conn(t)
	id, ended := b.id(t, report), make(chan struct{})
	go func() {
		report.ExecContext(context.Background(), "SELECT SLEEP(1000) FROM d.report")
		close(ended)
	}()
	t.Run("commits go on", func(t *testing.T) { testCommitsGoOn(t, b, s, quiet(f, mode)) })
	if strings.HasPrefix(b.name, "mysql") || b.name == "mariadb-10.5" { // those that watch DDL, or are near to it
		t.Run("crossed", func(t *testing.T) { testCrossed(t, b, s, f) })
	}
	t.Run("XA", func(t *testing.T) { testXA(t, b, s, f) })
	t.Run("DDL that runs", func(t *testing.T) { testRunningDDL(t, b, s, f) })
	t.Run("conditions", func(t *testing.T) { testConditions(t, b, s) })
	t.Run("account", func(t *testing.T) { testNoLockAccount(t, b) })
	for name, test := range map[string]func(*testing.T, *box, *Server, QuiesceRequest){"fn fails": testFnFails, "budget": testBudget, "killed": testKilled, "interrupted": testInterrupted} {
		t.Run(name, func(t *testing.T) { test(t, b, s, quiet(f, mode)) })
	}
	t.Run("changed since", func(t *testing.T) { testChangedSince(t, b, s, f) })
	t.Run("obstacles", func(t *testing.T) { testObstacles(t, b, s, quiet(coveredFacts(t, s), mode)) })
	b.exec(t, fmt.Sprintf("KILL %d", id))
	<-ended
	b.exec(t, "DROP TABLE d.report")
}

// testObstacles has a report that runs for long by now, and somebody's LOCK TABLES: only
// BACKUP STAGE cannot be had with the latter, and nobody waits for that.
func testObstacles(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	waitFor(t, "the report to run for long", func() bool {
		list, err := queryRows(context.Background(), b.root, lookStatement)
		return err != nil || slices.ContainsFunc(list, func(p row) bool { return strings.HasPrefix(p["info"], "SELECT SLEEP") && p["time"] != "0" })
	})
	nothing := func(context.Context, respaldo.Coordinates) error { return nil }
	if _, err := s.Quiesce(context.Background(), req, nothing); err != nil {
		t.Error(explained(err))
	}
	c := b.conn(t)
	if _, err := c.ExecContext(context.Background(), "LOCK TABLES d.other WRITE"); err != nil {
		t.Fatal(err)
	}
	req.Budget = patience / 10
	if req.Facts.wayWithoutLock() == byStageBlockDDL {
		req.Budget = 300 * time.Millisecond
	}
	_, err := s.Quiesce(context.Background(), req, nothing)
	if req.Facts.wayWithoutLock() != byStageBlockDDL {
		if err != nil {
			t.Error(explained(err))
		}
	} else {
		mustBe(t, err, respaldo.LockTimeout, "300ms")
	}
	if _, err := c.ExecContext(context.Background(), "UNLOCK TABLES"); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, b *box, table string) (n int) {
	t.Helper()
	if err := b.root.QueryRow("SELECT COUNT(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// testCommitsGoOn has a writer that commits while fn waits, and DDL that must not get
// through where it can be kept out.
func testCommitsGoOn(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ddl := make(chan error, 1)
	keptOut := req.Facts.wayWithoutLock() != byWatching
	q, err := s.Quiesce(context.Background(), req, func(_ context.Context, at respaldo.Coordinates) error {
		if at.File != "" {
			t.Errorf("coordinates %s of a server that goes on", at)
		}
		before := count(t, b, "d.t")
		for range 3 {
			if err := within(t, "a commit", func() error {
				_, err := b.root.Exec("INSERT INTO d.t (v) VALUES (1)")
				return err
			}); err != nil {
				t.Error(err)
			}
		}
		if after := count(t, b, "d.t"); after != before+3 {
			t.Errorf("%d rows, then %d", before, after)
		}
		if keptOut {
			go func() {
				_, err := b.root.Exec("CREATE TABLE d.kept_out (id INT)")
				ddl <- err
			}()
			waitFor(t, "DDL to wait", b.runs(t, "CREATE TABLE d.kept_out", "Waiting"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(explained(err))
	}
	if !q.FromImage || q.Mode != respaldo.LockNone || q.Coordinates.File != "" || q.HeldSeconds <= 0 || q.At.IsZero() {
		t.Errorf("quiesced: %+v", q)
	}
	if keptOut {
		if err := within(t, "DDL", func() error { return <-ddl }); err != nil {
			t.Error(err)
		}
		b.exec(t, "DROP TABLE d.kept_out")
	}
}

func mustBeCrossed(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, ErrCrossed) {
		t.Errorf("not crossed: %v", err)
		return
	}
	mustBe(t, err, respaldo.LockTimeout, words...)
}

// across has statements between the two looks of a watch.
func across(t *testing.T, s *Server, f *Facts, ddl bool, c *sql.Conn, statements ...string) error {
	t.Helper()
	w := &watch{s: s, q: s.db, f: f, ddl: ddl, own: !ddl && s.version.Flavor == respaldo.MariaDB}
	if err := w.begin(context.Background(), time.Now().Add(patience)); err != nil {
		t.Fatal(explained(err))
	}
	for _, statement := range statements {
		if _, err := c.ExecContext(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return w.end(context.Background())
}

// testXA has XA transactions, which no lock against DDL keeps out.
func testXA(t *testing.T, b *box, s *Server, f *Facts) {
	ctx, c := context.Background(), b.conn(t)
	mustBeCrossed(t, across(t, s, f, false, c, "XA START 'x'", "INSERT INTO d.t (v) VALUES (1)", "XA END 'x'", "XA PREPARE 'x'"), "XA PREPARE")
	w := &watch{s: s, q: s.db, f: f}
	mustBeCrossed(t, w.begin(ctx, time.Now()), "1 prepared XA transaction")
	if _, err := c.ExecContext(ctx, "XA ROLLBACK 'x'"); err != nil {
		t.Fatal(err)
	}
}

// testCrossed has statements of all kinds between the two looks of the watch that a server
// without a lock against DDL gets, whatever server this is.
func testCrossed(t *testing.T, b *box, s *Server, f *Facts) {
	ctx := context.Background()
	c := b.conn(t)
	b.exec(t, "CREATE PROCEDURE d.p() ALTER TABLE d.other ADD COLUMN b INT")
	counters := func() map[string]int64 {
		status, err := queryRows(ctx, s.db, "SHOW GLOBAL STATUS")
		if err != nil {
			t.Fatal(err)
		}
		counters, err := statementCounters(status)
		if err != nil {
			t.Fatal(err)
		}
		return counters
	}
	before := counters()
	for _, statement := range []string{
		"CREATE TABLE d.crossing (id INT)", "ALTER TABLE d.crossing ADD COLUMN a INT", "RENAME TABLE d.crossing TO d.crossed", "TRUNCATE TABLE d.crossed",
		"CREATE INDEX v ON d.crossed (a)", "OPTIMIZE TABLE d.crossed", "ANALYZE TABLE d.crossed", "DROP INDEX v ON d.crossed", "DROP TABLE d.crossed",
		"CREATE DATABASE dd", "DROP DATABASE dd", "CREATE VIEW d.w AS SELECT 1", "DROP VIEW d.w",
		"CREATE USER 'u'@'localhost'", "GRANT SELECT ON d.* TO 'u'@'localhost'", "REVOKE SELECT ON d.* FROM 'u'@'localhost'", "DROP USER 'u'@'localhost'",
		"CREATE FUNCTION d.one() RETURNS INT DETERMINISTIC RETURN 1", "DROP FUNCTION d.one", "CREATE TRIGGER d.g BEFORE INSERT ON d.other FOR EACH ROW SET @a = 1", "DROP TRIGGER d.g",
		"CREATE EVENT d.e ON SCHEDULE EVERY 1 DAY DO SELECT 1", "ALTER EVENT d.e DISABLE", "DROP EVENT d.e", "CALL d.p()",
	} {
		if _, err := c.ExecContext(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		after := counters()
		if moved(before, after, ddlCounters) == "" {
			t.Errorf("%s goes unnoticed", statement)
		}
		before = after
	}
	mustBeCrossed(t, across(t, s, f, true, c, "PREPARE s FROM 'ALTER TABLE d.other DROP COLUMN b'", "EXECUTE s"), "ALTER TABLE")
	b.exec(t, "DROP PROCEDURE d.p")
	if err := across(t, s, f, true, c, "INSERT INTO d.t (v) VALUES (1)", "SELECT 1", "SET @a = 1", "BEGIN", "DELETE FROM d.t LIMIT 1", "ROLLBACK"); err != nil {
		t.Errorf("nothing crossed: %v", err)
	}
	if b.name == "mysql-5.6" { // its own tables are files that know no transactions
		mustBeCrossed(t, across(t, s, f, true, c, "SET PASSWORD FOR 'root'@'localhost' = ''"), "user.MY")
		mustBeCrossed(t, across(t, s, f, true, c, "INSERT INTO mysql.time_zone_leap_second VALUES (1, 1)"), "time_zone_leap_second.MYD")
	}
	if s.version.Flavor == respaldo.MariaDB { // what BACKUP STAGE BLOCK_DDL lets through
		for _, statement := range []string{
			"CREATE USER 'u'@'localhost'", "GRANT SELECT ON d.* TO 'u'@'localhost'", "REVOKE SELECT ON d.* FROM 'u'@'localhost'", "SET PASSWORD FOR 'u'@'localhost' = PASSWORD('x')",
			"RENAME USER 'u'@'localhost' TO 'v'@'localhost'", "DROP USER 'v'@'localhost'", "CREATE ROLE r", "DROP ROLE r", "ANALYZE TABLE d.t PERSISTENT FOR ALL",
			"CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (HOST 'h')", "DROP SERVER s", "INSERT INTO mysql.db (Host, Db, User) VALUES ('h', 'd', 'u')", "DELETE FROM mysql.db WHERE Host = 'h'",
		} {
			if err := across(t, s, f, false, c, statement); !errors.Is(err, ErrCrossed) {
				t.Errorf("%s goes unnoticed: %v", statement, err)
			}
		}
		if err := across(t, s, f, false, c, "INSERT INTO d.t (v) VALUES (1)", "SELECT 1", "SET @a = 1", "CREATE TEMPORARY TABLE d.scratch AS SELECT * FROM d.t", "DROP TEMPORARY TABLE d.scratch"); err != nil {
			t.Errorf("nothing crossed: %v", err)
		}
	}
}

// testRunningDDL has an ALTER TABLE under way that is neither before nor after the snapshot.
func testRunningDDL(t *testing.T, b *box, s *Server, f *Facts) {
	ctx := context.Background()
	b.exec(t, "CREATE PROCEDURE d.p() ALTER TABLE d.other ADD COLUMN b INT")
	defer b.exec(t, "DROP PROCEDURE d.p")
	for _, statements := range [][]string{{"ALTER TABLE d.other ADD COLUMN b INT"}, {"CALL d.p()"}, {"PREPARE s FROM 'ALTER TABLE d.other ADD COLUMN b INT'", "EXECUTE s"}} {
		alter, reader := b.conn(t), b.conn(t)
		reader.ExecContext(ctx, "BEGIN")
		if _, err := queryRows(ctx, reader, "SELECT * FROM d.other LIMIT 1"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			var err error
			for _, statement := range statements {
				if err == nil {
					_, err = alter.ExecContext(ctx, statement)
				}
			}
			done <- err
		}()
		waitFor(t, "the DDL to wait", b.runs(t, "", "metadata lock"))
		w := &watch{s: s, q: s.db, f: f, ddl: true}
		mustBeCrossed(t, w.begin(ctx, time.Now()), "did not end", "ALTER TABLE d.other")
		began := make(chan error, 1)
		go func() { began <- w.begin(ctx, time.Now().Add(patience)) }()
		if _, err := reader.ExecContext(ctx, "COMMIT"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := <-began; err != nil {
			t.Errorf("the DDL has ended: %v", explained(err))
		}
		b.exec(t, "ALTER TABLE d.other DROP COLUMN b")
	}
}

// testChangedSince changes the server after it was looked at.
func testChangedSince(t *testing.T, b *box, s *Server, f *Facts) {
	b.exec(t, "CREATE TABLE d.late (id INT) ENGINE=MyISAM")
	_, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), func(context.Context, respaldo.Coordinates) error {
		t.Error("no snapshot should be taken")
		return nil
	})
	mustBeCrossed(t, err, "MyISAM (d.late)")
	if mode, _, ok := Stricter(f, respaldo.LockNone); !ok || mode == respaldo.LockNone || engine(f, "MyISAM").Tables != 1 {
		t.Errorf("then %s, %t, knowing of %v", mode, ok, f.Engines)
	}
	b.exec(t, "DROP TABLE d.late")
	f = coveredFacts(t, s)
	_, err = s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), func(context.Context, respaldo.Coordinates) error {
		b.exec(t, "SET GLOBAL sync_binlog = 0")
		return nil
	})
	b.exec(t, "SET GLOBAL sync_binlog = 1")
	mustBeCrossed(t, err, "sync_binlog is 0")
}

// testConditions breaks each condition that a running server lets one break.
func testConditions(t *testing.T, b *box, s *Server) {
	for _, c := range []struct {
		servers       string
		breaks, mends string
		mentions      string
	}{
		{"mysql-5.6 mariadb-10.11", "SET GLOBAL sync_binlog = 0", "SET GLOBAL sync_binlog = 1", "sync_binlog is 0"},
		{"mysql-5.6 mariadb-10.11", "SET GLOBAL innodb_flush_log_at_trx_commit = 2", "SET GLOBAL innodb_flush_log_at_trx_commit = 1", "innodb_flush_log_at_trx_commit is 2"},
		{"mysql-5.6", "SET GLOBAL innodb_support_xa = 0", "SET GLOBAL innodb_support_xa = 1", "innodb_support_xa is OFF"},
		{"mysql-9.7", "SET GLOBAL innodb_doublewrite = DETECT_ONLY", "SET GLOBAL innodb_doublewrite = DETECT_AND_RECOVER", "innodb_doublewrite is DETECT_ONLY"},
		{"mysql-9.7", "ALTER INSTANCE DISABLE INNODB REDO_LOG", "ALTER INSTANCE ENABLE INNODB REDO_LOG", "the redo log is OFF"},
		{"mariadb-11.8", "SET GLOBAL innodb_doublewrite = fast", "SET GLOBAL innodb_doublewrite = ON", "innodb_doublewrite is fast"},
		{"mariadb-11.8", "SET GLOBAL innodb_doublewrite = OFF", "SET GLOBAL innodb_doublewrite = ON", "innodb_doublewrite is OFF"},
		{"mysql-9.7 mariadb-10.5", "CREATE TABLE d.plain (id INT) ENGINE=MyISAM", "DROP TABLE d.plain", "there are tables of MyISAM (d.plain)"},
		{"mysql-9.7 mariadb-10.5", "XA START 'x'; INSERT INTO d.t (v) VALUES (1); XA END 'x'; XA PREPARE 'x'", "XA ROLLBACK 'x'", "XA RECOVER lists 1 prepared XA transaction"},
	} {
		if !strings.Contains(c.servers, b.name) {
			continue
		}
		conn := b.conn(t)
		for _, statement := range strings.Split(c.breaks, "; ") {
			if _, err := conn.ExecContext(context.Background(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		f := coveredFacts(t, s)
		if failing := f.failing(); len(failing) != 1 || failing[0] != c.mentions {
			t.Errorf("%s: failing %q", c.mentions, failing)
		}
		_, _, err := ChooseLock(f, respaldo.LockNone)
		mustBe(t, err, respaldo.Refused, "--lock=none is not safe here", c.mentions)
		if mode, reason, err := ChooseLock(f, respaldo.LockAuto); err != nil || mode == respaldo.LockNone || !strings.Contains(reason, c.mentions) {
			t.Errorf("auto is %q (%s), %v", mode, reason, err)
		}
		_, err = s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), nil)
		mustBeCrossed(t, err, c.mentions)
		if _, err := conn.ExecContext(context.Background(), c.mends); err != nil {
			t.Fatalf("%s: %v", c.mends, err)
		}
	}
	if failing := coveredFacts(t, s).failing(); len(failing) > 0 {
		t.Errorf("all is mended, but %q", failing)
	}
}

// testNoLockAccount has accounts that see part of it, all of it, and all of it without the
// right to lock.
func testNoLockAccount(t *testing.T, b *box) {
	const account = "'seer'@'localhost'"
	grant := func(grants ...string) *Server {
		for _, g := range grants {
			b.exec(t, strings.ReplaceAll(g, grantee, account))
		}
		return b.serverAs(t, "seer", "pw")
	}
	v := b.server(t).Version()
	b.exec(t, "CREATE USER "+account+" IDENTIFIED BY 'pw'")
	f := coveredFacts(t, grant(Grants(v)...))
	if mode, reason, err := ChooseLock(f, respaldo.LockAuto); err != nil || mode == respaldo.LockNone || !strings.Contains(reason, "GRANT SELECT ON *.* TO "+account) {
		t.Errorf("with the least privileges: %s, %s, %v", mode, reason, err)
	}
	if v.Flavor == respaldo.MySQL && v.Major >= 8 {
		f := coveredFacts(t, grant(SelectGrant()))
		if mode, reason, err := ChooseLock(f, respaldo.LockAuto); err != nil || mode == respaldo.LockNone || !strings.Contains(reason, "GRANT XA_RECOVER_ADMIN ON *.* TO "+account) {
			t.Errorf("without XA_RECOVER_ADMIN: %s, %s, %v", mode, reason, err)
		}
	}
	s := grant(NoLockGrants(v)...)
	f = coveredFacts(t, s)
	if mode, reason, err := ChooseLock(f, respaldo.LockAuto); err != nil || mode != respaldo.LockNone {
		t.Fatalf("with %q: %s, %s, %v", NoLockGrants(v), mode, reason, err)
	}
	if _, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), func(context.Context, respaldo.Coordinates) error { return nil }); err != nil {
		t.Fatal(explained(err))
	}
	if v.Flavor != respaldo.MySQL {
		b.exec(t, "DROP USER "+account)
		return
	}
	if v.Major >= 8 {
		s = grant("REVOKE BACKUP_ADMIN ON *.* FROM " + grantee)
	}
	f = coveredFacts(t, s)
	for _, statement := range []string{"CREATE TABLE d.crossing (id INT)", "DROP TABLE d.crossing"} {
		_, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), func(context.Context, respaldo.Coordinates) error {
			b.exec(t, statement)
			return nil
		})
		mustBeCrossed(t, err, statement[:len("DROP TABLE")])
	}
	b.exec(t, "DROP USER "+account)
}

// TestMustNotCross has what processlists show.
func TestMustNotCross(t *testing.T) {
	for statement, want := range map[string][2]bool{ // while DDL is kept out, while it is not
		"":                                      {false, false},
		"SELECT * FROM create_table":            {false, false},
		"/* app */ (SELECT 1)":                  {false, false},
		"SET NAMES utf8mb4":                     {false, false},
		"call p()":                              {false, false},
		"SET  PASSWORD = 'x'":                   {true, true},
		"ALTER TABLE t ADD a INT":               {false, true},
		"/*!50003 CREATE TRIGGER t":             {false, true},
		"-- a comment\nDROP TABLE t":            {false, true},
		"-- a report\n# of two\nSELECT 1":       {false, false},
		"-- a report that is cut off":           {false, true},
		"/*!50000 CREATE TABLE t */ SELECT 1":   {false, true},
		"/* a */ /*M! DROP TABLE t */ SELECT 1": {false, true},
		"/*!50000 RESET MASTER */":              {true, true},
		"/** a *//* b */ SELECT 1":              {false, false},
		"SET STATEMENT lock_wait_timeout=60 FOR ALTER TABLE t": {false, true},
		"/* " + strings.Repeat("long ", 20):                    {false, true}, // cut: it may be anything
		"GRANT ALL ON *.* TO bob":                              {false, true},
		"RESET MASTER":                                         {true, true},
		"xa prepare 'x'":                                       {true, true},
		"XA START 'x'":                                         {false, false},
		"SHUTDOWN":                                             {false, true},
		"INSTALL PLUGIN x SONAME 'x'":                          {false, true},
		"LOAD DATA INFILE 'x' INTO TABLE t":                    {false, false},
		"FLUSH TABLES":                                         {false, false},
		"some statement of a version to come":                  {false, true},
		"selection of a word that only begins":                 {false, true},
	} {
		if got := [2]bool{mustNotCross(statement, false), mustNotCross(statement, true)}; got != want {
			t.Errorf("%q must not cross: %t, want %t", statement, got, want)
		}
	}
}
