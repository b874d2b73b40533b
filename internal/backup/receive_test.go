package backup

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// What could not be done in the end is refused before anything is sent, with what to do, and
// without a trace.
func TestReceiverRefusesFirst(t *testing.T) {
	t.Setenv("SSH_CONNECTION", "")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	program := func(t *testing.T, says string) []string {
		path := filepath.Join(t.TempDir(), "mysqld")
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+path+"  Ver "+says+" for Linux on x86_64'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return []string{path}
	}
	for name, c := range map[string]struct {
		change     func(*testing.T, *arrival)
		kind       respaldo.Kind // 0 where nothing is refused
		says, hint string
	}{
		"nothing":       {func(*testing.T, *arrival) {}, 0, "", ""},
		"port taken":    {func(_ *testing.T, a *arrival) { a.Server.Port = taken.Addr().(*net.TCPAddr).Port }, respaldo.Refused, "is not to be had", "--port"},
		"older program": {func(t *testing.T, a *arrival) { a.Server.Mysqld = program(t, "8.0.35") }, respaldo.Refused, "older MySQL 8.0.35", "install"},
		"no program":    {func(_ *testing.T, a *arrival) { a.Server.Mysqld = []string{"/no/such/mysqld"} }, respaldo.Refused, "no server program", "--mysqld"},
		"encrypted":     {func(_ *testing.T, a *arrival) { a.Manifest.Encrypted = true }, respaldo.Refused, "encrypted tables", "without --start"},
		"not empty":     {func(t *testing.T, a *arrival) { a.put(t, "/ibdata1", "precious") }, respaldo.Refused, "not empty", "--force"},
		"its own state": {func(_ *testing.T, a *arrival) {
			a.Targets[dataName] = filepath.Join(filepath.Dir(a.Targets[dataName]), "state")
		}, respaldo.Refused, "respaldo's own", "nothing else"},
		"origin unknown":  {func(_ *testing.T, a *arrival) { a.Replica = &mysql.Source{Port: 3306} }, respaldo.Usage, "where the origin is reached", "--replica-host"},
		"relative socket": {func(_ *testing.T, a *arrival) { a.Server.Socket = "mysqld.sock" }, respaldo.Usage, "no absolute path", "from the root"},
	} {
		t.Run(name, func(t *testing.T) {
			a := arrivalAt(t)
			top := filepath.Dir(a.Targets[dataName])
			site := &Site{Server: Receivers, StateDir: filepath.Join(top, "state"), RunDir: filepath.Join(top, "run"), Report: &said{}}
			a.Manifest.Version = respaldo.Version{Flavor: respaldo.MySQL, Major: 8, Minor: 0, Patch: 36}
			a.Start, a.Server.Mysqld = true, program(t, "8.0.36")
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			a.Server.Port = free.Addr().(*net.TCPAddr).Port
			free.Close()
			c.change(t, &a)
			_, err = site.lookAround(t.Context(), nil, a)
			if c.kind == 0 {
				if err != nil {
					t.Error(err)
				}
			} else if hints := strings.Join(respaldo.HintsOf(err), "; "); respaldo.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || !strings.Contains(hints, c.hint) {
				t.Errorf("%v; hints: %s", err, hints)
			}
			if left, err := os.ReadDir(top); err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
