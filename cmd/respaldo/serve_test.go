//go:build !guest

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

// serveConfig is a configuration whose state is the test's own.
func serveConfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "respaldo.toml")
	text := fmt.Sprintf("format = 1\nstate_dir = %q\nrun_dir = %q\ncache_dir = %q\n", dir+"/state", dir+"/run", dir+"/cache")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestServeIsRefused(t *testing.T) {
	config := serveConfig(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		code int
		args []string
		says string
	}{
		{2, []string{"serve"}, "IMAGE is missing"},
		{2, []string{"serve", "now", "--port", "70000"}, "no TCP port"},
		{2, []string{"serve", "now", "--ttl", "0s"}, "--ttl"},
		{2, []string{"serve", "now", "--bind", "nowhere"}, "no IP address"},
		{3, []string{"serve", "now", "--port", port}, "another --port"},
		{3, []string{"serve", "now", "--detach", "--port", port}, "another --port"}, // said by the process in the background
		{3, []string{"serve", "now", "--socket", config}, "exists"},
		{2, []string{"stop", "--all", "serve-1"}, "contradict"},
		{10, []string{"stop", "serve-1"}, "nothing is served as serve-1"},
		{10, []string{"stop"}, "nothing is being served"},
		{0, []string{"stop", "--all"}, ""},
	} {
		r := respaldoRuns(t, append(c.args, "--config", config)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%q: %+v", c.args, r)
		}
	}
	if r := respaldoRuns(t, "list", "--served", "--json", "--config", config); r.code != 0 || strings.TrimSpace(r.stdout) != "[]" {
		t.Errorf("nothing is served: %+v", r)
	}
}

// What is printed when it is ready is what one types next.
func TestServedIsShown(t *testing.T) {
	s := backup.Served{Name: "serve-3f9a", Server: "main", Image: "now", Taken: time.Now(), At: respaldo.Coordinates{File: "binlog.000007", Position: 4711},
		Version: respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11, Patch: 14}, Bind: "127.0.0.1", Port: 3307,
		Socket: "/run/respaldo/served/main.serve-3f9a/socket/mysqld.sock", Login: "/run/respaldo/served/main.serve-3f9a/root.cnf", Since: time.Now()}
	shown := func(s backup.Served) string {
		var text bytes.Buffer
		showServed(&page{Writer: &text}, s)
		showServing(&page{Writer: &text}, []backup.Served{s})
		return text.String()
	}
	for _, words := range []string{"MariaDB 10.11.14", "binlog.000007:4711", "--port=3307", "--socket=" + s.Socket, "--defaults-file=" + s.Login,
		"respaldo stop serve-3f9a", "It is read-only", "Nothing of it reaches the origin"} {
		if !strings.Contains(shown(s), words) {
			t.Errorf("%q is not in:\n%s", words, shown(s))
		}
	}
	s.Writable, s.Until = true, s.Since.Add(time.Hour)
	if text := shown(s); !strings.Contains(text, "thrown away") || strings.Contains(text, "read-only") || !strings.Contains(text, formatTime(s.Until)) {
		t.Errorf("writable, for an hour:\n%s", text)
	}
}
