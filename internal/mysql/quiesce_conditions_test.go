package mysql

import (
	"context"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// coveredFacts are those of a server of which one snapshot holds everything.
func coveredFacts(t *testing.T, s *Server) *Facts {
	t.Helper()
	f := mustFacts(t, s)
	f.Coverage = &Coverage{Volume: "vg/data"}
	return f
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
		{"mysql-9.7", "CREATE TABLE mysql.plain (id INT) ENGINE=MyISAM", "DROP TABLE mysql.plain", "there are tables of MyISAM (mysql.plain)"},
		{"mysql-9.7 mariadb-11.8", "CREATE TABLE sys.plain (id INT) ENGINE=MyISAM", "DROP TABLE sys.plain", "there are tables of MyISAM (sys.plain)"},
		{"mysql-5.6 mysql-9.7 mariadb-10.5 mariadb-10.11 mariadb-11.8", "CREATE DATABASE ndbinfo; CREATE TABLE ndbinfo.plain (id INT) ENGINE=MyISAM", "DROP DATABASE ndbinfo", "there are tables of MyISAM (ndbinfo.plain)"},
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
	if _, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), nothing); err != nil {
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
