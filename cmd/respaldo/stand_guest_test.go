//go:build guest

package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// stand is what a user's machine is: a server on a volume, a configuration, a repository.
// Commands are run as the user would, from the binary on the PATH.
type stand struct {
	t      *testing.T // of the subtest that runs
	whole  *testing.T // at whose end the server goes
	volume *guest.Volume
	server *guest.Server
	config string
	dir    string // the repository, the password, the state
	before guest.State
}

// testLimit is when a condition that should come about at once is given up. Nothing is
// measured with it.
const testLimit = 30 * time.Second

// standOptions vary what newStand makes.
type standOptions struct {
	args    []string // of the server
	folders []string // that the server owns beside its data directory
	redo    string   // one of them, for the redo log
	config  string   // more lines of the [server.main] section
	// subvolume makes the data directory a Btrfs subvolume of its own.
	subvolume bool
}

func newStand(t *testing.T, kind, server string, o standOptions) *stand {
	t.Helper()
	disk := 0
	if kind == "btrfs" {
		disk = 1
	}
	s := &stand{t: t, whole: t, dir: workDir(t)}
	s.volume = guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Disk: disk, Bytes: 1 << 30})
	if o.subvolume {
		guest.Run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(s.volume.Path, "mysql"))
	}
	for _, dir := range o.folders {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		guest.Chown(t, dir)
	}
	if o.redo != "" {
		moveRedo(t, server, filepath.Join(s.volume.Path, "mysql"), o.redo)
	}
	s.server = guest.StartServer(t, guest.ServerSpec{Name: server, DataDir: filepath.Join(s.volume.Path, "mysql"), Args: o.args})
	s.config = filepath.Join(s.dir, "respaldo.toml")
	s.write(s.config, 0o644, fmt.Sprintf(`format = 1
state_dir = %q
run_dir = "/run/respaldo"
cache_dir = %q
[repository]
url = %q
password_file = %q
[server.main]
defaults_file = %q
max_lock = "20s"
%s`, s.dir+"/state", s.dir+"/cache", s.dir+"/repository", s.dir+"/password", s.server.OptionFile, o.config))
	s.write(s.dir+"/password", 0o600, "correct horse\n")
	s.server.Exec(t, "CREATE DATABASE shop",
		"CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(100)) ENGINE=InnoDB",
		"CREATE TABLE shop.notes (id INT PRIMARY KEY, note TEXT) ENGINE=MyISAM")
	var rows []string
	for i := range 200 {
		rows = append(rows, fmt.Sprintf("(%d, 'customer %d')", i, i))
	}
	s.server.Exec(t, "INSERT INTO shop.customers VALUES "+strings.Join(rows, ", "), "INSERT INTO shop.notes VALUES (1, 'not transactional')")
	s.ok("init")
	s.before = guest.Look(t)
	return s
}

// moveRedo makes the data directory and puts its redo log elsewhere.
func moveRedo(t *testing.T, server, datadir, redo string) {
	t.Helper()
	if err := servers.Init(t.Context(), server, datadir); err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "mv", datadir+"/ib_logfile0", redo)
	guest.Chown(t, redo)
}

// workDir is one that the user mysql may pass through, unlike t.TempDir's.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "stand")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *stand) write(path string, mode os.FileMode, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
}

// outcome is what a command printed and how it ended.
type outcome struct {
	stdout, stderr string
	code           int
}

func (s *stand) command(args ...string) *exec.Cmd {
	cmd := exec.Command("respaldo", append([]string{"--config", s.config}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+s.dir)
	return cmd
}

// run runs respaldo to its end, with the environment added.
func (s *stand) run(env []string, args ...string) outcome {
	s.t.Helper()
	return s.watched(nil, env, args...)
}

// watched is run with somebody who sees what respaldo says as it says it, if not nil.
func (s *stand) watched(see func(part []byte), env []string, args ...string) outcome {
	s.t.Helper()
	cmd := s.command(args...)
	cmd.Env = append(cmd.Env, env...)
	var stdout bytes.Buffer
	stderr := &listener{see: see}
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	start := time.Now()
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		s.t.Fatal(err)
	}
	o := outcome{stdout: stdout.String(), stderr: stderr.text.String(), code: cmd.ProcessState.ExitCode()}
	s.t.Logf("respaldo %v: exit code %d after %s", args, o.code, time.Since(start).Round(time.Millisecond))
	return o
}

// listener keeps what is written, and shows each part of it to see.
type listener struct {
	text bytes.Buffer
	see  func(part []byte)
}

func (l *listener) Write(part []byte) (int, error) {
	if l.see != nil {
		l.see(part)
	}
	return l.text.Write(part)
}

// ok runs respaldo, which must succeed.
func (s *stand) ok(args ...string) outcome {
	s.t.Helper()
	o := s.run(nil, args...)
	if o.code != 0 {
		s.t.Fatalf("respaldo %v failed with exit code %d\n%s%s", args, o.code, o.stdout, o.stderr)
	}
	return o
}

// fails runs respaldo, which must end with the exit code.
func (s *stand) fails(code int, args ...string) outcome {
	s.t.Helper()
	o := s.run(nil, args...)
	if o.code != code {
		s.t.Errorf("respaldo %v: exit code %d, not %d\n%s%s", args, o.code, code, o.stdout, o.stderr)
	}
	return o
}

// asked runs respaldo at a terminal, where it asks, and somebody answers. It returns what
// the terminal shows, and the exit code.
func (s *stand) asked(question, answer string, args ...string) (shown string, code int) {
	s.t.Helper()
	terminal, program := guest.Terminal(s.t)
	cmd := s.command(args...)
	cmd.Stdin, cmd.Stderr = program, program
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if err := program.Close(); err != nil { // the terminal has an end then
		s.t.Fatal(err)
	}
	part := make([]byte, 4096)
	for answered := false; ; {
		n, err := terminal.Read(part)
		shown += string(part[:n])
		if !answered && strings.Contains(shown, question) {
			answered = true
			if _, err := terminal.WriteString(answer + "\n"); err != nil {
				s.t.Fatal(err)
			}
		}
		if err != nil { // nobody writes to it any more
			break
		}
	}
	cmd.Wait()
	return shown, cmd.ProcessState.ExitCode()
}

// into runs respaldo with --json and decodes what it prints.
func (s *stand) into(v any, args ...string) {
	s.t.Helper()
	o := s.ok(append(args, "--json")...)
	if err := json.Unmarshal([]byte(o.stdout), v); err != nil {
		s.t.Fatalf("respaldo %v --json printed no JSON: %v\n%s", args, err, o.stdout)
	}
}

func (s *stand) backup(args ...string) backup.Made {
	s.t.Helper()
	var made backup.Made
	s.into(&made, append([]string{"backup"}, args...)...)
	return made
}

// restored restores a backup into a new directory and starts a server on it, with the
// printed options and none of the laboratory's for the binlog, and with more.
func (s *stand) restored(id string, more ...string) *guest.Server {
	s.t.Helper()
	return s.restoredTo(filepath.Join(s.volume.Path, "restored-"+id[:8]), id, more...) // a real filesystem: memory knows no O_DIRECT
}

// restoredTo is restored with a directory of the caller's choice.
func (s *stand) restoredTo(to, id string, more ...string) *guest.Server {
	s.t.Helper()
	var done backup.Restored
	s.into(&done, "restore", id, "--to", to)
	args := []string{"--skip-log-bin"}
	for _, line := range done.Options {
		if !strings.HasPrefix(line, "datadir=") {
			args = append(args, "--"+line)
		}
	}
	return guest.StartServer(s.t, guest.ServerSpec{Name: s.server.Name, DataDir: to, Args: append(args, more...)})
}

// sameShop fails the test unless the tables that nobody writes to are those of the origin.
func (s *stand) sameShop(db *sql.DB) {
	s.t.Helper()
	want, got := guest.Checksums(s.t, s.server.DB), guest.Checksums(s.t, db)
	for _, table := range []string{"shop.customers", "shop.notes"} {
		if want[table] == "" || want[table] != got[table] {
			s.t.Errorf("%s has checksum %q, at the origin %q", table, got[table], want[table])
		}
	}
}
