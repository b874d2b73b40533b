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
	"sync"
	"syscall"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// A private server on every kind of image, as a user has it: it shows what was, lets people
// in as the origin did, is in nobody's way, and leaves nothing, however it ends.
func TestServe(t *testing.T) {
	type stands []struct {
		volume, server string
		turns          func(*stand, *testing.T)
	}
	list := stands{
		{"thin-ext4", "mariadb-10.11", (*stand).servesNow},
		{"thick-ext4", "mysql-5.6", (*stand).servesKept},
		{"btrfs", "mysql-9.7", (*stand).servesBackup},
	}
	if soak {
		list = nil
		for _, server := range servers.Names {
			list = append(list, stands{{"thin-xfs", server, (*stand).servesNow}, {"thick-xfs", server, (*stand).servesKept},
				{"btrfs", server, (*stand).servesBackup}}...)
		}
	}
	for _, c := range list {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			s := newStand(t, c.volume, c.server, standOptions{})
			for _, host := range []string{"localhost", "127.0.0.1"} {
				s.server.Exec(t, fmt.Sprintf("CREATE USER ana@'%s' IDENTIFIED BY 'her own'", host), fmt.Sprintf("GRANT SELECT, INSERT ON shop.* TO ana@'%s'", host))
			}
			s.before = guest.Look(t)
			c.turns(s, t)
			s.nothingServed(t)
		})
	}
}

// later is what happens at the origin after the image was taken.
func (s *stand) later(t *testing.T) {
	s.server.Exec(t, "INSERT INTO shop.customers SELECT id + 1000, 'came later' FROM shop.customers WHERE id < 10")
}

// nothingServed looks for what a server might have left.
func (s *stand) nothingServed(t *testing.T, keep ...string) {
	t.Helper()
	s.before.NothingLeft(t, keep...)
	for _, dir := range []string{s.dir + "/state", s.dir + "/state/work", "/run/respaldo", "/run/respaldo/work", "/run/respaldo/mounts", "/run/respaldo/served"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if strings.Contains(e.Name(), ".serve-") || strings.Contains(e.Name(), ".restore-") {
				t.Errorf("left behind: %s/%s", dir, e.Name())
			}
		}
	}
}

// serving is a respaldo serve that runs.
type serving struct {
	backup.Served
	s              *stand
	cmd            *exec.Cmd
	stdout, stderr *lockedBuffer
}

// serve starts respaldo serve and returns when it says that it is ready.
func (s *stand) serve(args ...string) *serving {
	s.t.Helper()
	v := &serving{s: s, cmd: s.command(append([]string{"serve", "--json"}, args...)...), stdout: &lockedBuffer{}, stderr: &lockedBuffer{}}
	v.cmd.Stdout, v.cmd.Stderr = v.stdout, v.stderr
	if err := v.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { v.cmd.Wait(); close(done) }()
	s.t.Cleanup(func() { v.cmd.Process.Kill(); <-done })
	guest.Eventually(s.t, 2*testLimit, func() error {
		select {
		case <-done:
			s.t.Fatalf("respaldo serve %v has ended\n%s%s", args, v.stdout, v.stderr)
		default:
		}
		return json.Unmarshal(v.stdout.Bytes(), &v.Served)
	})
	return v
}

// open connects as a user would: over the socket without an address.
func (v *serving) open(user, password, address string) *sql.DB {
	c := driver.NewConfig()
	c.Net, c.Addr, c.User, c.Passwd, c.Logger = "unix", v.Socket, user, password, &driver.NopLogger{}
	if address != "" {
		c.Net, c.Addr = "tcp", address
	}
	connector, err := driver.NewConnector(c)
	if err != nil {
		v.s.t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	v.s.t.Cleanup(func() { db.Close() })
	return db
}

// customers counts the rows that a user sees.
func (v *serving) customers(db *sql.DB) int {
	v.s.t.Helper()
	var n int
	if err := db.QueryRow("SELECT COUNT(*) FROM shop.customers").Scan(&n); err != nil {
		v.s.t.Error(err)
	}
	return n
}

// ends waits for its end and asserts the exit code.
func (v *serving) ends(code int) {
	v.s.t.Helper()
	guest.Eventually(v.s.t, testLimit, func() error {
		if v.cmd.ProcessState == nil {
			return fmt.Errorf("still running:\n%s", v.stderr)
		}
		return nil
	})
	if got := v.cmd.ProcessState.ExitCode(); got != code {
		v.s.t.Errorf("respaldo serve ended with exit code %d, not %d\n%s", got, code, v.stderr)
	}
}

// shows asserts what a user sees, and that nobody can write.
func (v *serving) shows(customers int) {
	t := v.s.t
	t.Helper()
	tcp := v.open("ana", "her own", fmt.Sprintf("%s:%d", v.Bind, v.Port))
	if n := v.customers(tcp); n != customers {
		t.Errorf("%d customers are served, not the %d of then", n, customers)
	}
	if n := v.customers(v.open("ana", "her own", "")); n != customers {
		t.Errorf("%d customers over the socket", n)
	}
	if err := v.open("ana", "wrong", "").Ping(); err == nil {
		t.Error("a wrong password does")
	}
	_, err := tcp.Exec("INSERT INTO shop.customers VALUES (9999, 'x')")
	if v.Writable != (err == nil) || err != nil && !strings.Contains(err.Error(), "read-only") {
		t.Errorf("writing: %v", err)
	}
	if _, err := v.root().Exec("CREATE DATABASE roots"); v.Writable && err != nil {
		t.Errorf("root may not do everything: %v", err)
	}
}

// isModest sees that the server stays within what it was given, and that the origin goes first:
// for the processor, the disk, and when memory runs out.
func (v *serving) isModest(memory int) {
	t := v.s.t
	t.Helper()
	var pool int
	if err := v.root().QueryRow("SELECT @@innodb_buffer_pool_size").Scan(&pool); err != nil || pool > memory/2 || pool < memory/4 {
		t.Errorf("a buffer pool of %d bytes, of %d that it may use, %v", pool, memory, err)
	}
	instances, err := mysql.FindInstances("main." + v.Name)
	if err != nil || len(instances) != 1 {
		t.Fatalf("its servers: %+v, %v", instances, err)
	}
	pid := fmt.Sprint(instances[0].PID)
	for what, argv := range map[string][]string{
		"10":                  {"ps", "-o", "ni=", "-p", pid},
		"best-effort: prio 7": {"ionice", "-p", pid},
		"1000":                {"cat", "/proc/" + pid + "/oom_score_adj"},
	} {
		if got := strings.TrimSpace(guest.Run(t, argv[0], argv[1:]...)); got != what {
			t.Errorf("%v says %q, not %q", argv, got, what)
		}
	}
	var core unix.Rlimit
	if err := unix.Prlimit(instances[0].PID, unix.RLIMIT_CORE, nil, &core); err != nil || core.Max != 0 {
		t.Errorf("it may leave a core of %d bytes, %v", core.Max, err)
	}
}

// root connects with the option file that only root can read.
func (v *serving) root() *sql.DB {
	t := v.s.t
	t.Helper()
	info, err := os.Stat(v.Login)
	if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Fatalf("root's option file: %v, %v", info, err)
	}
	login := map[string]string{}
	for _, line := range strings.Split(v.s.read(v.Login), "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			login[name] = value
		}
	}
	return v.open(login["user"], login["password"], "")
}

// On thin LVM: a snapshot taken on the spot, and every way in which it can end.
func (s *stand) servesNow(t *testing.T) {
	link := s.dir + "/served.sock"
	v := s.serve("now", "--socket", link, "--ttl", "1h")
	s.later(t)
	v.shows(200)
	if v.Socket != link || v.Until.Sub(v.Since).Hours() != 1 {
		t.Errorf("served as %+v", v.Served)
	}
	s.fails(int(respaldo.Refused), "serve", "now", "--port", fmt.Sprint(v.Port)) // taken
	if made := s.backup("--prove", "none"); made.Backup.ID == "" {
		t.Errorf("a backup meanwhile: %+v", made)
	}
	v.shows(200)
	var list []backup.Served
	if s.into(&list, "list", "--served"); len(list) != 1 || list[0].Name != v.Name || list[0].Port != v.Port {
		t.Errorf("listed: %+v", list)
	}
	if o := s.fails(int(respaldo.Overdue), "status"); strings.Contains(o.stderr, "left behind") { // no backup is proved here
		t.Errorf("what is served is taken for a leftover:\n%s", o.stderr)
	}
	s.ok("stop")
	v.ends(0)
	s.fails(int(respaldo.NotFound), "stop")
	if _, err := os.Lstat(link); !os.IsNotExist(err) {
		t.Errorf("the link to its socket: %v", err)
	}
	s.nothingServed(t)

	// In the background, and into a kept snapshot that stays as it is.
	kept := s.take().Snapshot.Name
	var d backup.Served
	s.into(&d, "serve", kept, "--detach", "--read-only=false", "--memory", "128MiB")
	v = &serving{Served: d, s: s}
	v.shows(210)
	v.isModest(128 << 20)
	if o := s.fails(int(respaldo.Busy), "snapshot", "remove", kept); !strings.Contains(o.stderr, "respaldo stop "+d.Name) {
		t.Errorf("it does not say who uses it:\n%s", o.stderr)
	}
	if o := s.ok("snapshot", "list"); !strings.Contains(o.stdout, d.Name) {
		t.Errorf("listed without its user:\n%s", o.stdout)
	}
	s.ok("stop", d.Name)
	s.nothingServed(t, kept, strings.ReplaceAll(kept, "-", "--"))

	// Killed, and its ledger lost: the next operation cleans up all the same.
	v = s.serve(kept)
	v.shows(210) // not what was written into it
	v.cmd.Process.Kill()
	v.ends(-1)
	for _, dir := range []string{s.dir + "/state", "/run/respaldo"} {
		files, _ := filepath.Glob(dir + "/main." + v.Name + ".*")
		if len(files) == 0 {
			t.Errorf("%s has no file of %s", dir, v.Name)
		}
		for _, file := range files {
			os.Remove(file)
		}
	}
	if o := s.ok("cleanup"); !strings.Contains(o.stdout, "removed mount") || !strings.Contains(o.stdout, "removed snapshot") {
		t.Errorf("cleaned up:\n%s%s", o.stdout, o.stderr)
	}
	s.nothingServed(t, kept, strings.ReplaceAll(kept, "-", "--"))
	config := s.other("keep.toml", s.read(s.config)+"\n[keep_snapshots]\nlast = 1\n")
	newer := s.take("--config", config).Snapshot.Name
	if list := s.snapshots(); len(list) != 1 || list[0].Snapshot.Name != newer {
		t.Errorf("one snapshot was to be kept: %+v", list)
	}
	s.ok("snapshot", "remove", newer)
}

// On thick LVM: a kept snapshot, which must not be changed; and one that overflows.
func (s *stand) servesKept(t *testing.T) {
	kept := s.take("--snapshot-size", "64MiB").Snapshot.Name
	s.later(t)
	copied := s.restored(kept)
	var n int
	if err := copied.DB.QueryRow("SELECT COUNT(*) FROM shop.customers").Scan(&n); err != nil || n != 200 {
		t.Errorf("the snapshot was restored with %d customers, %v", n, err)
	}
	if err := copied.Kill(); err != nil {
		t.Error(err)
	}
	o := s.ok("serve", kept, "--ttl", "1s")
	if !strings.Contains(o.stderr, "time has passed") || !strings.Contains(o.stdout, "copied") && !strings.Contains(o.stderr, "copied") {
		t.Errorf("it does not say what it did, and why it ended:\n%s%s", o.stdout, o.stderr)
	}
	s.ok("snapshot", "remove", kept)
	s.nothingServed(t)

	guest.Run(t, "lvcreate", "--yes", "--size", "48m", "--name", "room", s.volume.Group)
	guest.Run(t, "lvcreate", "--yes", "--extents", "100%FREE", "--name", "filler", s.volume.Group)
	guest.Run(t, "lvremove", "--yes", s.volume.Group+"/room")
	defer guest.Run(t, "lvremove", "--yes", s.volume.Group+"/filler")
	before := s.before
	s.before = guest.Look(t)
	defer func() { s.before = before }()
	small := s.other("small.toml", s.read(s.config)+"\nsnapshot_size = \"32MiB\"\n")
	v := s.serve("now", "--config", small)
	v.shows(210)
	stop := s.overwrite(t, 96<<20)
	defer stop()
	v.ends(int(respaldo.SnapshotLost))
	if !strings.Contains(v.stderr.String(), "snapshot") {
		t.Errorf("it does not say why it ended:\n%s", v.stderr)
	}
	s.nothingServed(t)
}

// On Btrfs: a backup, whose server crashes; then a snapshot.
func (s *stand) servesBackup(t *testing.T) {
	id := s.backup("--prove", "none").Backup.ID
	s.later(t)
	v := s.serve(id[:12])
	v.shows(200)
	instances, err := mysql.FindInstances("main." + v.Name)
	if err != nil || len(instances) != 1 {
		t.Fatalf("its servers: %+v, %v", instances, err)
	}
	if err := instances[0].Kill(); err != nil {
		t.Fatal(err)
	}
	v.ends(int(respaldo.Failed))
	if !strings.Contains(v.stderr.String(), "ended by itself") || !strings.Contains(v.stderr.String(), "/state/failed/") {
		t.Errorf("it does not say why it ended, and where its log is:\n%s", v.stderr)
	}
	s.nothingServed(t)

	kept := s.take().Snapshot.Name
	v = s.serve(kept)
	v.shows(210)
	v.cmd.Process.Signal(os.Interrupt)
	v.ends(0)
	s.ok("snapshot", "remove", kept)
}

// lockedBuffer is read while a program writes into it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *lockedBuffer) String() string { return string(b.Bytes()) }
