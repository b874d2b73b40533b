package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// systemd answers systemctl as Debian 12's does. The real one is asked in the lab.
type systemd struct {
	units map[string]string // unit → its own ID
	props map[string]string // "unit property" → value, where it is not that of one at rest
	calls [][]string
}

func (s *systemd) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	if c.Argv[1] != "show" {
		s.calls = append(s.calls, c.Argv)
		return run.Result{}, nil
	}
	property, unit := strings.TrimPrefix(c.Argv[2], "--property="), c.Argv[4]
	id, loaded := s.units[unit]
	if value, ok := s.props[unit+" "+property]; ok {
		return run.Result{Stdout: []byte(property + "=" + value + "\n")}, nil
	}
	switch {
	case property == "MainPID":
		return run.Result{Stdout: []byte("MainPID=0\n")}, nil
	case property == "ActiveState":
		return run.Result{Stdout: []byte("ActiveState=inactive\n")}, nil
	case property == "UnitFileState":
		return run.Result{Stdout: []byte("UnitFileState=disabled\n")}, nil
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
	type process struct {
		parent       int
		line, cgroup string
	}
	const db, cron = "0::/system.slice/mariadb.service\n", "0::/system.slice/cron.service\n"
	safe := process{1, "/bin/sh\x00/usr/bin/mysqld_safe\x00", "0::/system.slice/mysql.service\n"}
	for name, c := range map[string]struct {
		processes map[int]process // the server is 42
		main      string          // MainPID
		unit      string
	}{
		"unified":       {map[int]process{42: {1, "mariadbd", db}}, "42", "mariadb.service"},
		"instance":      {map[int]process{42: {1, "mariadbd", "0::/system.slice/system-mariadb.slice/mariadb@shop.service\n"}}, "42", "mariadb@shop.service"},
		"hybrid":        {map[int]process{42: {1, "mysqld", "12:pids:/system.slice/x.service\n1:name=systemd:/system.slice/mysql.service\n0::/\n"}}, "42", "mysql.service"},
		"mysqld_safe":   {map[int]process{42: {40, "mysqld", safe.cgroup}, 40: safe}, "40", "mysql.service"},
		"init script":   {map[int]process{42: {40, "mysqld", safe.cgroup}, 40: safe, 43: {40, "logger", safe.cgroup}, 44: {1, "sshd", "0::/system.slice/ssh.service\n"}}, "0", "mysql.service"},
		"session":       {map[int]process{42: {1, "mysqld", "0::/user.slice/user-0.slice/session-3.scope\n"}}, "", ""},
		"user unit":     {map[int]process{42: {1, "mysqld", "0::/user.slice/user-0.slice/user@0.service/app.slice/db.service\n"}}, "42", ""},
		"container":     {map[int]process{42: {1, "mysqld", "0::/system.slice/docker-0123.scope\n"}}, "", ""},
		"cron's":        {map[int]process{42: {7, "mysqld", cron}, 7: {1, "/usr/sbin/cron", cron}}, "7", ""},
		"two daemons":   {map[int]process{42: {1, "mysqld", db}, 43: {1, "mysqld", db}}, "0", ""},
		"another safe":  {map[int]process{42: {40, "mysqld", safe.cgroup}, 40: safe, 50: safe, 52: {50, "mysqld", safe.cgroup}}, "0", ""},
		"nobody's main": {map[int]process{42: {1, "mysqld", db}}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, manager := booted(t, nil)
			manager.props = map[string]string{}
			for _, unit := range []string{"mariadb.service", "mariadb@shop.service", "mysql.service", "cron.service", "db.service"} {
				manager.props[unit+" MainPID"] = c.main
			}
			for pid, p := range c.processes {
				dir := filepath.Join(h.Root, "proc", strconv.Itoa(pid))
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				for file, text := range map[string]string{"cgroup": p.cgroup, "cmdline": p.line, "status": fmt.Sprintf("Name:\tx\nPPid:\t%d\n", p.parent)} {
					if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
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
		units, props map[string]string
		want         string
	}{
		"Debian's names are one": {map[string]string{"mariadb.service": "mariadb.service", "mysql.service": "mariadb.service"}, nil, "mariadb.service"},
		"two servers":            {map[string]string{"mariadb.service": "mariadb.service", "mysqld.service": "mysqld.service"}, nil, ""},
		"none":                   {nil, nil, ""},
		"failed":                 {map[string]string{"mysql.service": "mysql.service"}, map[string]string{"mysql.service ActiveState": "failed"}, "mysql.service"},
		"another one runs":       {map[string]string{"mysql.service": "mysql.service"}, map[string]string{"mysql.service ActiveState": "active"}, ""},
		"another one starts":     {map[string]string{"mysql.service": "mysql.service"}, map[string]string{"mysql.service ActiveState": "activating", "mysql.service MainPID": "7"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, manager := booted(t, c.units)
			manager.props = c.props
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

// What starts the server at the next connection goes and comes with it; a socket that
// nobody uses stays as it is.
func TestServiceStopsItsSockets(t *testing.T) {
	h, manager := booted(t, map[string]string{"mariadb.service": "mariadb.service"})
	manager.props = map[string]string{"mariadb.service TriggeredBy": "mariadb.socket mariadb-extra.socket mariadb.path", "mariadb.socket ActiveState": "active"}
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
		{"systemctl", "stop", "--", "mariadb.socket", "mariadb.service"},
		{"systemctl", "reset-failed", "--", "mariadb.service"},
		{"systemctl", "start", "--", "mariadb.socket", "mariadb.service"},
	}
	if !slices.EqualFunc(manager.calls, want, slices.Equal) {
		t.Fatalf("ran %q", manager.calls)
	}

	// Noted, and found again when the socket is not active any more, it is the same: also one
	// that systemd has given up on is started.
	noted, err := json.Marshal(s.Commands())
	var found Commands
	if err := errors.Join(err, json.Unmarshal(noted, &found)); err != nil {
		t.Fatal(err)
	}
	manager.props, manager.calls = nil, nil
	again, err := h.Service(t.Context(), 0, found)
	if err != nil || again.String() != s.String() {
		t.Fatalf("found again: %v, %v", again, err)
	}
	if err := errors.Join(again.Stop(t.Context(), func() bool { return true }), again.Start(t.Context())); err != nil || !slices.EqualFunc(manager.calls, want, slices.Equal) {
		t.Fatalf("found again, ran %q: %v", manager.calls, err)
	}

	// Whoever comes after a crash finds them stopped, and knows them by the next boot.
	manager.props = map[string]string{"mariadb.service TriggeredBy": "mariadb.socket mariadb-extra.socket", "mariadb.socket UnitFileState": "enabled"}
	s, err = h.UnitService(t.Context(), "mariadb.service")
	if want := []string{"systemctl", "start", "--", "mariadb.socket", "mariadb.service"}; err != nil || !slices.Equal(s.StartCommand(), want) {
		t.Fatalf("would run %q: %v", s.StartCommand(), err)
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
