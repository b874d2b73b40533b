//go:build guest

package main

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runner "github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// plainServer is a server as most are: on a filesystem that nobody can snapshot, binlogs and
// mysql-files beside its data directory, started and stopped by somebody else than us.
type plainServer struct {
	*stand
	kind   string
	pid    string // file
	mount  string
	tables map[string]string // checksums, while nobody writes
	more   []string          // arguments
}

const plainData = "/srv/old/mysql"

func newPlainServer(t *testing.T, kind, server string) *plainServer {
	t.Helper()
	s := &plainServer{stand: &stand{t: t, whole: t, dir: workDir(t)}, kind: kind, mount: "/srv/new"}
	if err := os.MkdirAll("/srv/old", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll("/srv/old") })
	for _, dir := range []string{"/srv/old/binlog", "/srv/old/mysql-files"} {
		if err := os.Mkdir(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		guest.Chown(t, dir)
	}
	first := guest.StartServer(t, guest.ServerSpec{Name: server, DataDir: plainData, Args: []string{"--log-bin=/srv/old/binlog/binlog", "--secure-file-priv=/srv/old/mysql-files"}})
	first.Exec(t, "CREATE DATABASE shop",
		"CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(100)) ENGINE=InnoDB",
		"CREATE TABLE shop.notes (id INT PRIMARY KEY, note TEXT) ENGINE=MyISAM",
		"INSERT INTO shop.customers VALUES (1, 'one'), (2, 'two')", "INSERT INTO shop.notes VALUES (1, 'not transactional')")
	s.server = first
	s.tables = guest.Checksums(t, first.DB)
	s.pid = first.Spec().Socket + ".pid"
	args := commandOf(t, first.PID())
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	s.manage(args)
	s.config = filepath.Join(s.dir, "respaldo.toml")
	s.write(s.config, 0o644, fmt.Sprintf("format = 1\nstate_dir = %q\nrun_dir = \"/run/respaldo\"\ncache_dir = %q\n[repository]\nurl = %q\npassword_file = %q\n"+
		"[server.main]\ndefaults_file = %q\nmax_lock = \"20s\"\nstart = [%q]\nstop = [%q]\n",
		s.dir+"/state", s.dir+"/cache", s.dir+"/repository", s.dir+"/password", first.OptionFile, s.dir+"/start", s.dir+"/stop"))
	s.write(s.dir+"/password", 0o600, "correct horse\n")
	guest.Run(t, s.dir+"/start")
	s.answers()
	return s
}

// commandOf is a process's command line.
func commandOf(t *testing.T, pid int) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// manage writes what starts and stops the server: with its data directory in an option file,
// as packages have it, and in the background, so that it outlives whoever starts it.
func (s *plainServer) manage(args []string) {
	s.t.Helper()
	for _, dir := range []string{s.dir + "/conf.d"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	s.write(s.dir+"/my.cnf", 0o644, "[mysqld]\ndatadir="+plainData+"\n!includedir "+s.dir+"/conf.d\n")
	var words []string
	for _, arg := range args {
		switch {
		case arg == "--no-defaults":
			arg = "--defaults-file=" + s.dir + "/my.cnf"
		case strings.HasPrefix(arg, "--datadir="):
			continue
		}
		words = append(words, runner.Quote(arg))
	}
	s.write(s.dir+"/start", 0o755, "#!/bin/sh\ncd /\nrm "+s.dir+"/refuse 2>/dev/null && exit 1\nsetsid "+strings.Join(words, " ")+" </dev/null >>/run/mysqld/plain.err 2>&1 &\n")
	s.write(s.dir+"/stop", 0o755, "#!/bin/sh\nexec kill $(cat "+s.pid+")\n")
	s.whole.Cleanup(func() {
		s.kill()
		s.forget()
	})
}

// kill ends the server, if it runs.
func (s *plainServer) kill() {
	text, err := os.ReadFile(s.pid)
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || convErr != nil {
		return
	}
	syscall.Kill(pid, syscall.SIGKILL)
	guest.Eventually(s.whole, testLimit, func() error {
		if syscall.Kill(pid, 0) == nil {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
	os.Remove(s.pid)
}

// forget destroys the volume and what names it, for the next one's blank disk.
func (s *plainServer) forget() {
	guest.Try("umount", s.mount)
	guest.Try("vgremove", "-qq", "-ff", "-y", "mysql")
	guest.Try("pvremove", "-qq", "-ff", "-y", guest.Disk(0))
	guest.Run(s.whole, "wipefs", "-qa", guest.Disk(0))
	os.Remove("/etc/fstab")
	os.Remove("/etc/fstab.before-respaldo")
	os.Remove(s.mount)
}

// answers waits for the server.
func (s *plainServer) answers() *sql.DB {
	s.t.Helper()
	db := s.server.Open()
	s.t.Cleanup(func() { db.Close() })
	guest.Eventually(s.t, testLimit, db.Ping)
	return db
}

// alive tells whether the server runs.
func (s *plainServer) alive() bool {
	text, _ := os.ReadFile(s.pid)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return err == nil && syscall.Kill(pid, 0) == nil
}
