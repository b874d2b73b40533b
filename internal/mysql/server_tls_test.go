package mysql

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// testTLS has a server with certificates that it made itself (MySQL) or without TLS (5.6,
// and MariaDB unless it makes one in memory).
func testTLS(t *testing.T, b *box) {
	connect := func(t *testing.T, lines string) (cipher string, err error) {
		t.Helper()
		file := b.write(t, "tls.cnf", fmt.Sprintf("[client]\nhost=127.0.0.1\nport=%d\nuser=bob\npassword='it\\'s \"#secret'\n%s\n", b.running.Spec().Port, lines))
		s, err := Connect(context.Background(), Options{DefaultsFile: file}, nil)
		if err != nil {
			return "", err
		}
		defer s.Close()
		status, err := queryRows(context.Background(), s.DB(), "SHOW STATUS LIKE 'Ssl_cipher'")
		if err != nil {
			t.Fatal(err)
		}
		return status[0]["value"], nil
	}
	have, err := queryRows(context.Background(), b.root, "SHOW VARIABLES LIKE 'have_ssl'")
	if err != nil {
		t.Fatal(err)
	}
	capable := b.name == "mysql-9.7" || have[0]["value"] == "YES"
	for _, c := range []struct {
		lines     string
		encrypted bool
		refused   string
	}{
		{"", true, ""},
		{"ssl-mode=DISABLED", false, ""},
		{"skip-ssl", false, ""},
		{"ssl", true, ""},
		{"ssl-mode=REQUIRED\ntls-version=TLSv1.2", true, ""},
		{"ssl-ca=" + b.path("data/ca.pem"), true, ""},
		{"ssl-mode=VERIFY_CA\nssl-ca=" + b.path("data/ca.pem") + "\nssl-cert=" + b.path("data/client-cert.pem") + "\nssl-key=" + b.path("data/client-key.pem"), true, ""},
		{"ssl-mode=VERIFY_CA", false, "cannot speak TLS"},
		{"ssl-mode=VERIFY_IDENTITY\nssl-ca=" + b.path("data/ca.pem"), false, "cannot speak TLS"},
	} {
		if b.name != "mysql-9.7" && strings.Contains(c.lines, "ssl-ca") || !capable && c.refused != "" {
			continue // has no files
		}
		cipher, err := connect(t, c.lines)
		switch {
		case c.refused != "":
			mustBe(t, err, respaldo.Unreachable, c.refused, "ssl-ca")
		case !capable && c.encrypted && c.lines != "":
			mustBe(t, err, respaldo.Unreachable, "offers no TLS", "ssl-mode=PREFERRED")
		case err != nil:
			t.Errorf("%q: %s", c.lines, explained(err))
		case (cipher != "") != (c.encrypted && capable):
			t.Errorf("%q: cipher %q", c.lines, cipher)
		}
	}
}

// testQuiesceTCP loses a connection that is encrypted where the server can.
func testQuiesceTCP(t *testing.T, b *box) {
	b.exec(t, "GRANT ALL ON *.* TO 'bob'@'%'")
	file := b.write(t, "tcp-bob.cnf", fmt.Sprintf("[client]\nuser=bob\npassword='it\\'s \"#secret'\nport=%d\nprotocol=tcp\n", b.running.Spec().Port))
	s, err := Connect(context.Background(), Options{DefaultsFile: file}, nil)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer s.Close()
	f := mustFacts(t, s)
	if _, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockGlobal), func(context.Context, respaldo.Coordinates) error { return nil }); err != nil {
		t.Error(explained(err))
	}
	testKilled(t, b, s, quiet(f, respaldo.LockGlobal))
}
