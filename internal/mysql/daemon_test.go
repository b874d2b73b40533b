package mysql

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// newDaemon is a server of an option file, over fresh data.
func newDaemon(t *testing.T, name string) Daemon {
	t.Helper()
	if err := servers.Ensure(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	d := Daemon{Binary: respaldo.Binary{Argv: []string{servers.Binary(name, "mysqld")}}, DataDir: filepath.Join(dir, "data"),
		OptionFile: filepath.Join(dir, "data.cnf"), Log: filepath.Join(dir, "data.err"), UID: os.Geteuid(), GID: os.Getegid()}
	d.Socket = filepath.Join(d.DataDir, "mysqld.sock")
	if err := servers.Init(t.Context(), name, d.DataDir); err != nil {
		t.Fatal(err)
	}
	lines := []string{"[mysqld]", "datadir=" + d.DataDir, "socket=mysqld.sock", "log_error=" + d.Log, "pid_file=mysqld.pid", "skip_networking", "innodb_buffer_pool_size=32M",
		"loose_innodb_buffer_pool_size_max=64M", "loose_performance_schema=OFF"}
	if os.Geteuid() == 0 {
		lines = append(lines, "user=root")
	}
	for _, option := range servers.Options(name) {
		lines = append(lines, strings.TrimPrefix(option, "--"))
	}
	if err := os.WriteFile(d.OptionFile, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// A server that lives by itself is known by what it is, not by a word on a command line.
func TestDaemon(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mysql-5.6", "mariadb-10.11"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			d := newDaemon(t, name)
			decoy := exec.Command("/bin/sh", "-c", "read forever", "sh", d.argument())
			decoy.Dir = d.DataDir
			in, err := decoy.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := decoy.Start(); err != nil {
				t.Fatal(err)
			}
			defer decoy.Wait()
			defer in.Close()
			if pid := d.PID(); pid != 0 {
				t.Errorf("process %d is taken for the server", pid)
			}
			if stopped, err := d.Stop(t.Context()); stopped || err != nil {
				t.Errorf("nothing runs: %v, %v", stopped, err)
			}
			pid, err := d.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if d.PID() != pid || d.Running(t.Context()) != pid {
				t.Errorf("started as %d, found as %d, answers as %d", pid, d.PID(), d.Running(t.Context()))
			}
			if told, err := d.Told(); told["socket"] != d.Socket || told["pid_file"] != "mysqld.pid" || err != nil {
				t.Errorf("its option file says %s, %v", told, err)
			}
			other := d
			other.OptionFile += ".other"
			if other.Running(t.Context()) != 0 || other.isAt(pid) {
				t.Error("the server of another option file at the same socket is taken for it")
			}
			if stopped, err := d.Stop(t.Context()); !stopped || err != nil || d.PID() != 0 {
				t.Errorf("stopped %v, %v", stopped, err)
			}
			if err := syscall.Kill(decoy.Process.Pid, 0); err != nil {
				t.Errorf("the other process: %v", err)
			}
		})
	}
}

// The log is given to the server's user: what leads elsewhere, or is a file with another
// name too, is not.
func TestLogIsAPlainFile(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, lay := range map[string]func(path string) error{
		"a link":            func(path string) error { return os.Symlink(victim, path) },
		"another name":      func(path string) error { return os.Link(victim, path) },
		"a pipe":            func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a link to nothing": func(path string) error { return os.Symlink(filepath.Join(dir, "new"), path) },
	} {
		d := Daemon{Log: filepath.Join(dir, "log"), UID: os.Geteuid(), GID: os.Getegid()}
		if err := lay(d.Log); err != nil {
			t.Fatal(err)
		}
		if f, err := d.openLog(); respaldo.KindOf(err) != respaldo.Refused || f != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := os.Remove(d.Log); err != nil {
			t.Fatal(err)
		}
		f, err := d.openLog()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Close(), os.Remove(d.Log)); err != nil {
			t.Fatal(err)
		}
	}
}
