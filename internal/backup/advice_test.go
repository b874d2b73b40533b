package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAdviceAfterARestore(t *testing.T) {
	root, data := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	targets := map[string]string{dataName: data, "binlog": "/var/lib/mysql/logs"}
	if advice := adviceFor(root, targets); len(advice) > 0 {
		t.Errorf("nothing stands in the way: %q", advice)
	}

	// As MySQL 9.7 writes it.
	write(filepath.Join(data, "mysqld-auto.cnf"), `{"Version": 2, "mysql_dynamic_parse_early_variables": {"max_connections": {"Value": "77", "Metadata": {"Host": "localhost", "User": "root", "Timestamp": 1764000000000000}}}, "mysql_dynamic_variables": {"event_scheduler": {"Value": "ON", "Metadata": {"Host": "localhost", "User": "root", "Timestamp": 1764000000000001}}}}`)
	write(filepath.Join(root, "sys/fs/selinux/enforce"), "1")
	write(filepath.Join(root, "sys/kernel/security/apparmor/profiles"), "docker-default (enforce)\n/usr/sbin/mysqld (enforce)\n")
	advice := strings.Join(adviceFor(root, targets), "\n")
	for _, words := range []string{"event_scheduler, max_connections", "persisted_globals_load=OFF", "restorecon -R " + data + " /var/lib/mysql/logs", "/usr/sbin/mysqld must allow " + data + ":"} {
		if !strings.Contains(advice, words) {
			t.Errorf("%q is missing in:\n%s", words, advice)
		}
	}

	write(filepath.Join(root, "sys/kernel/security/apparmor/profiles"), "/usr/sbin/mysqld (complain)\n")
	write(filepath.Join(data, "mysqld-auto.cnf"), "torn")
	if advice := adviceFor(root, targets); len(advice) != 1 {
		t.Errorf("a profile that only complains, and no settings: %q", advice)
	}
}
