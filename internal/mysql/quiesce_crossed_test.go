package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// testHalfDone has a statement begin under each lock, and wait for its end. An INSERT has done
// nothing yet; a GRANT under BACKUP STAGE may be in the binlog already, and not in its table.
func testHalfDone(t *testing.T, b *box, s *Server, f *Facts) {
	b.exec(t, "CREATE USER 'half'@'localhost'")
	defer b.exec(t, "DROP USER 'half'@'localhost'")
	c := b.conn(t)
	during := func(mode respaldo.LockMode, statement string) error {
		waits, done := b.runs(t, statement, "Waiting for"), make(chan error, 1)
		_, err := s.Quiesce(context.Background(), quiet(f, mode), func(context.Context, respaldo.Coordinates) error {
			go func() {
				_, err := c.ExecContext(context.Background(), statement)
				done <- err
			}()
			waitFor(t, statement+" to wait for the lock", waits)
			return nil
		})
		if err := <-done; err != nil {
			t.Errorf("%s: %v", statement, err)
		}
		return err
	}
	const insert, grant = "INSERT INTO d.t (v) VALUES (5)", "GRANT SELECT ON d.* TO 'half'@'localhost'"
	for _, statement := range []string{insert, grant} {
		if err := during(respaldo.LockGlobal, statement); err != nil {
			t.Errorf("%s under the global lock: %v", statement, explained(err))
		}
	}
	if f.Version.Flavor != respaldo.MariaDB {
		return
	}
	if err := during(respaldo.LockBackup, insert); err != nil {
		t.Errorf("%s under BACKUP STAGE: %v", insert, explained(err))
	}
	mustBeCrossed(t, during(respaldo.LockBackup, grant), "stopped a statement midway", "GRANT SELECT ON d.*")
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
	waitFor(t, "the DDL before to be over", func() bool {
		if err := s.refresh(context.Background(), s.db, f, respaldo.LockNone); err != nil {
			t.Fatal(explained(err))
		}
		return !f.ddlRan
	})
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
	mustBeCrossed(t, w.begin(ctx, time.Now().Add(patience)), "1 prepared XA transaction") // the statement is listed a little longer
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
		counters, _, err := status(ctx, s.db)
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
		mustBeCrossed(t, <-began, "DDL came right before") // and has ended
		if err := across(t, s, f, true, alter); err != nil {
			t.Errorf("the DDL has ended: %v", explained(err))
		}
		b.exec(t, "ALTER TABLE d.other DROP COLUMN b")
	}
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

// TestAppliedXAIsNoticed has a replica apply an XA PREPARE across a snapshot, which it does
// not count as a statement of that name. MariaDB's replicas get a lock.
func TestAppliedXAIsNoticed(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	source := startBox(t, "mysql-9.7", func(_ *box, spec *servers.Spec) { spec.Port = port })
	replica := startBox(t, "mysql-9.7", func(_ *box, spec *servers.Spec) { spec.Args = []string{"--server-id=2"} })
	source.exec(t, "CREATE USER 'repl'@'%' IDENTIFIED BY 'pw'", "GRANT REPLICATION SLAVE ON *.* TO 'repl'@'%'", "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY)")
	replica.exec(t, fmt.Sprintf("CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=%d, SOURCE_USER='repl', SOURCE_PASSWORD='pw', GET_SOURCE_PUBLIC_KEY=1, SOURCE_AUTO_POSITION=1", port), "START REPLICA")
	waitFor(t, "the replica to have the table", func() bool { _, err := replica.root.Exec("SELECT * FROM d.t"); return err == nil })
	s, ctx := replica.server(t), context.Background()
	f, c := coveredFacts(t, s), source.conn(t)
	apply := func(prepared int, statements ...string) {
		for _, statement := range statements {
			if _, err := c.ExecContext(ctx, statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		waitFor(t, "the replica to apply "+statements[len(statements)-1], func() bool {
			n, _, err := s.preparedXA(ctx, s.db)
			if err != nil {
				t.Fatal(err)
			}
			return n == prepared
		})
	}
	begin := func() *watch {
		w := &watch{s: s, q: s.db, f: f}
		if err := w.begin(ctx, time.Now().Add(patience)); err != nil {
			t.Fatal(explained(err))
		}
		return w
	}
	w := begin()
	apply(1, "XA START 'x'", "INSERT INTO d.t VALUES (1)", "XA END 'x'", "XA PREPARE 'x'")
	mustBeCrossed(t, w.end(ctx), "1 prepared XA transaction")
	apply(0, "XA COMMIT 'x'")
	w = begin()
	apply(1, "XA START 'y'", "INSERT INTO d.t VALUES (2)", "XA END 'y'", "XA PREPARE 'y'")
	apply(0, "XA COMMIT 'y'")
	mustBeCrossed(t, w.end(ctx), "XA COMMIT")
}
