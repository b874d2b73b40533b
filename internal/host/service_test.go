package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// systemd answers systemctl as Debian 12's does. The real one is asked in the lab.
type systemd struct {
	units map[string]string // unit → its own ID
	calls [][]string
}

func (s *systemd) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	if c.Argv[1] != "show" {
		s.calls = append(s.calls, c.Argv)
		return run.Result{}, nil
	}
	property, unit := strings.TrimPrefix(c.Argv[2], "--property="), c.Argv[4]
	id, loaded := s.units[unit]
	switch {
	case property == "TriggeredBy" && unit == "mariadb.service":
		return run.Result{Stdout: []byte("TriggeredBy=mariadb.socket mariadb-extra.socket mariadb.path\n")}, nil
	case property == "TriggeredBy":
		return run.Result{Stdout: []byte("TriggeredBy=\n")}, nil
	case property == "Id" && loaded:
		return run.Result{Stdout: []byte("Id=" + id + "\n")}, nil
	case property == "Id":
		return run.Result{Stdout: []byte("Id=" + unit + "\n")}, nil
	case loaded:
		return run.Result{Stdout: []byte("LoadState=loaded\n")}, nil
	}
	return run.Result{Stdout: []byte("LoadState=not-found\n")}, nil
}

func booted(t *testing.T, units map[string]string) (*Host, *systemd) {
	t.Helper()
	s := &systemd{units: units}
	h := &Host{Run: s, Root: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(h.Root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	return h, s
}

func TestServiceOfProcess(t *testing.T) {
	for name, c := range map[string]struct{ cgroup, unit string }{
		"unified":   {"0::/system.slice/mariadb.service\n", "mariadb.service"},
		"instance":  {"0::/system.slice/system-mariadb.slice/mariadb@shop.service\n", "mariadb@shop.service"},
		"hybrid":    {"12:pids:/system.slice/x.service\n1:name=systemd:/system.slice/mysql.service\n0::/\n", "mysql.service"},
		"session":   {"0::/user.slice/user-0.slice/session-3.scope\n", ""},
		"user unit": {"0::/user.slice/user-0.slice/user@0.service/app.slice/db.service\n", ""},
		"container": {"0::/system.slice/docker-0123.scope\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := booted(t, nil)
			dir := filepath.Join(h.Root, "proc/42")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(c.cgroup), 0o644); err != nil {
				t.Fatal(err)
			}
			s, err := h.Service(t.Context(), 42, Commands{})
			if c.unit == "" {
				if respaldo.KindOf(err) != respaldo.Refused || len(respaldo.HintsOf(err)) == 0 {
					t.Fatalf("error %v, want a refusal that says what to configure", err)
				}
				return
			}
			if err != nil || s.Unit != c.unit {
				t.Fatalf("unit %+v, error %v; want %s", s, err, c.unit)
			}
		})
	}
}

func TestServiceOfStoppedServer(t *testing.T) {
	for name, c := range map[string]struct {
		units map[string]string
		want  string
	}{
		"Debian's names are one": {map[string]string{"mariadb.service": "mariadb.service", "mysql.service": "mariadb.service"}, "mariadb.service"},
		"two servers":            {map[string]string{"mariadb.service": "mariadb.service", "mysqld.service": "mysqld.service"}, ""},
		"none":                   {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := booted(t, c.units)
			s, err := h.Service(t.Context(), 0, Commands{})
			switch {
			case c.want == "" && respaldo.KindOf(err) != respaldo.Refused:
				t.Fatalf("service %v, error %v, want a refusal", s, err)
			case c.want != "" && (err != nil || s.Unit != c.want):
				t.Fatalf("service %+v, error %v; want %s", s, err, c.want)
			}
		})
	}
}

// What starts the server at the next connection goes and comes with it.
func TestServiceStopsItsSockets(t *testing.T) {
	h, manager := booted(t, map[string]string{"mariadb.service": "mariadb.service"})
	s, err := h.Service(t.Context(), 0, Commands{})
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	if err := s.Stop(t.Context(), func() bool { looks++; return looks == 3 }); err != nil {
		t.Fatal(err)
	}
	if looks != 3 {
		t.Fatalf("Stop returned after %d looks, while the process was there", looks)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"systemctl", "stop", "--", "mariadb.socket", "mariadb-extra.socket", "mariadb.service"},
		{"systemctl", "reset-failed", "--", "mariadb.service"},
		{"systemctl", "start", "--", "mariadb.socket", "mariadb-extra.socket", "mariadb.service"},
	}
	if !slices.EqualFunc(manager.calls, want, slices.Equal) {
		t.Fatalf("ran %q", manager.calls)
	}
}

func TestServiceByCommands(t *testing.T) {
	dir := t.TempDir()
	up := filepath.Join(dir, "up")
	h := &Host{Run: run.Local{}, Root: dir} // no systemd below it
	if _, err := h.Service(t.Context(), 42, Commands{}); respaldo.KindOf(err) != respaldo.Refused {
		t.Fatalf("error %v without systemd and without commands", err)
	}
	s, err := h.Service(t.Context(), 42, Commands{Stop: []string{"rm", up}, Start: []string{"touch", up}})
	if err != nil {
		t.Fatal(err)
	}
	there := func() bool { _, err := os.Stat(up); return err == nil }
	if err := s.Start(t.Context()); err != nil || !there() {
		t.Fatalf("not started: %v", err)
	}
	if err := s.Stop(t.Context(), func() bool { return !there() }); err != nil || there() {
		t.Fatalf("not stopped: %v", err)
	}
	if err := s.Stop(t.Context(), func() bool { return true }); err == nil || len(respaldo.HintsOf(err)) == 0 {
		t.Fatalf("a stop command that fails: %v", err)
	}
}
