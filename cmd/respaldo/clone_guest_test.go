//go:build guest

package main

import (
	"database/sql"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// The other guest, which lab.TestClone has booted.
const (
	otherNode  = "10.9.0.2"
	nodePort   = 3307
	dbaSecret  = "as the dba"
	replSecret = `it's a "secret"\`
)

// cloneStand is a stand whose server the other node reaches, and that reaches it by ssh.
type cloneStand struct {
	*stand
	to string // on the other node
}

func newCloneStand(t *testing.T, volume, server string) *cloneStand {
	t.Helper()
	key, known := "/run/client_key", "/run/known_hosts"
	for path, text := range map[string]string{key: os.Getenv("LAB_CLIENT_KEY"), known: os.Getenv("LAB_KNOWN_HOST")} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binlogs := "/srv/" + volume + "-0/binlogs" // a place of its own, besides the data directory
	if volume == "btrfs" {
		binlogs = "/srv/btrfs-1/binlogs"
	}
	s := &cloneStand{to: "/srv/node/" + server + "/mysql",
		stand: newStand(t, volume, server, standOptions{folders: []string{binlogs},
			args: []string{"--skip-networking=0", "--port=3306", "--bind-address=0.0.0.0", "--log-bin=" + binlogs + "/bin"}})}
	// A server that says nothing else of it has localhost's accounts only.
	plain := strings.ReplaceAll(strings.ReplaceAll(replSecret, `\`, `\\`), `'`, `\'`)
	s.server.Exec(t, "CREATE USER 'repl'@'%' IDENTIFIED BY '"+plain+"'", "GRANT REPLICATION SLAVE ON *.* TO 'repl'@'%'",
		"CREATE USER 'dba'@'%' IDENTIFIED BY '"+dbaSecret+"'", "GRANT ALL ON *.* TO 'dba'@'%'")
	s.write(s.server.OptionFile, 0o600, fmt.Sprintf("[client]\nsocket=%s\nuser=root\n[%s]\nuser=repl\npassword=\"%s\"\n", s.server.Spec().Socket, replicaGroup,
		strings.ReplaceAll(replSecret, `\`, `\\`)))
	guest.Eventually(t, time.Minute, func() error { return exec.Command("ssh", s.ssh("true")...).Run() })
	s.before = guest.Look(t)
	return s
}

func (s *cloneStand) ssh(command string) []string {
	return []string{"-i", "/run/client_key", "-o", "UserKnownHostsFile=/run/known_hosts", "-o", "BatchMode=yes", "root@" + otherNode, command}
}

// there runs a command on the other node.
func (s *cloneStand) there(command string) string {
	s.t.Helper()
	return guest.Run(s.t, "ssh", s.ssh(command)...)
}

func (s *cloneStand) args(more ...string) []string {
	args := []string{"clone", "now", "ssh://root@" + otherNode + s.to, "-o", "IdentityFile=/run/client_key", "-o", "UserKnownHostsFile=/run/known_hosts"}
	return append(args, more...)
}

// replica are the arguments for one.
func (s *cloneStand) replica(more ...string) []string {
	return s.args(append(serverAt(nodePort), append([]string{"--replica"}, more...)...)...)
}

// serverAt are the arguments for a small server.
func serverAt(port int) []string {
	return []string{"--bind", "0.0.0.0", "--port", fmt.Sprint(port), "--set", "performance_schema=OFF", "--set", "innodb_buffer_pool_size=32M",
		"--set", "loose_innodb_buffer_pool_size_max=64M"}
}

func (s *cloneStand) connect(port int) *sql.DB {
	s.t.Helper()
	cfg := driver.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr = "dba", dbaSecret, "tcp", fmt.Sprintf("%s:%d", otherNode, port)
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	s.t.Cleanup(func() { db.Close() })
	return db
}

// sameAsOrigin waits until every table on the other node is the origin's, which is at rest.
func (s *cloneStand) sameAsOrigin(db *sql.DB) {
	s.t.Helper()
	want := guest.Checksums(s.t, s.server.DB)
	guest.Eventually(s.t, time.Minute, func() error {
		got := guest.Checksums(s.t, db)
		if len(got) != len(want) {
			return fmt.Errorf("%d tables there, %d here", len(got), len(want))
		}
		for table, sum := range want {
			if got[table] != sum {
				return fmt.Errorf("%s has checksum %s there, %s here", table, got[table], sum)
			}
		}
		return nil
	})
}

// A clone under load is interrupted midway, resumed, follows the origin while that moves on,
// and is brought up to date later. All versions, and volumes, come when soaking.
func TestClone(t *testing.T) {
	cases := []struct{ volume, server string }{{"thin-ext4", "mariadb-10.11"}}
	if soak {
		cases = nil
		for _, server := range servers.Names {
			for _, volume := range []string{"thick-xfs", "thin-ext4", "btrfs"} {
				cases = append(cases, struct{ volume, server string }{volume, server})
			}
		}
	}
	for i, c := range cases {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			s := newCloneStand(t, c.volume, c.server)
			load := guest.StartLoadEvery(t, s.server, writers, pace)
			load.Moves(t, testLimit)
			if i == 0 {
				s.interrupted(t)
				s.refusals(t)
			}
			if soak && c.volume == "thin-ext4" {
				s.killedEverywhere(t)
			}
			var done backup.Cloned
			s.into(&done, s.replica()...)
			if done.Running == nil || done.Following == nil || done.Files == 0 {
				t.Fatalf("not what was asked for: %+v", done)
			}
			s.before.NothingLeft(t)
			load.Moves(t, testLimit)
			if err := load.Stop(); err != nil {
				t.Error(err)
			}
			db := s.connect(nodePort)
			s.sameAsOrigin(db)
			s.isReplica(db)

			// It has gone another way, and comes back.
			for _, q := range []string{"SET GLOBAL read_only=0", "CREATE DATABASE astray", "CREATE TABLE astray.t (i INT PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO astray.t VALUES (1)"} {
				if _, err := db.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			db.Close()
			s.server.Exec(t, "INSERT INTO shop.customers VALUES (1000, 'after the clone')")
			var again backup.Cloned
			s.into(&again, s.replica("--refresh")...)
			if again.Changed*2 > again.Bytes || again.Following == nil {
				t.Errorf("a refresh of what is almost the same: %+v", again)
			}
			s.server.Exec(t, "INSERT INTO shop.customers VALUES (1001, 'after the refresh')")
			db = s.connect(nodePort)
			s.sameAsOrigin(db)
			s.isReplica(db)
			s.before.NothingLeft(t)
			if i == 0 {
				s.kept(t)
				s.saved(t)
			}
			if secret := s.there(`grep -rl 'a "secret"' /srv/node/*/*.cnf /srv/node/*/*.err /srv/node/*/*.json /root/.cache/*/*.log 2>/dev/null || true`); strings.TrimSpace(secret) != "" {
				t.Errorf("the password of the account is in %s", secret)
			}
			s.there(fmt.Sprintf("kill %[1]d; while kill -0 %[1]d 2>/dev/null; do sleep .2; done; rm -rf /srv/node/%[2]s", again.Running.PID, c.server))
			if err := s.server.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// interrupted begins a clone and ends it midway.
func (s *cloneStand) interrupted(t *testing.T) {
	t.Helper()
	cmd := s.command(s.args("--bandwidth", "2MiB")...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	guest.Eventually(t, time.Minute, func() error { return exec.Command("ssh", s.ssh("test -s "+s.to+"/ibdata1")...).Run() })
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("interrupted, it ended with %d\n%s", code, &out)
	}
	s.before.NothingLeft(t)
	s.there("test -e " + s.to + "/.respaldo-incomplete")
	s.noReceivers()
}

// killedEverywhere kills the sender at each of its steps. Nothing is left here after a
// cleanup, nor any receiver there, and the next clone completes.
func (s *cloneStand) killedEverywhere(t *testing.T) {
	t.Helper()
	trace := s.dir + "/trace"
	if o := s.run([]string{"RESPALDO_FAULT=trace:" + trace}, s.args("--force")...); o.code != 0 {
		t.Fatalf("exit code %d\n%s", o.code, o.stderr)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for point := range strings.FieldsSeq(string(text)) {
		seen[point]++
		at := fmt.Sprintf("%s#%d", point, seen[point])
		if o := s.run([]string{"RESPALDO_FAULT=kill:" + at}, s.args("--force")...); o.code != -1 {
			t.Errorf("not killed at %s: exit code %d\n%s", at, o.code, o.stderr)
		}
		s.ok("cleanup")
		s.before.NothingLeft(t)
		s.noReceivers()
	}
	s.ok(s.args("--force")...)
	s.there("test ! -e " + s.to + "/.respaldo-incomplete && rm -r " + s.to)
}

func (s *cloneStand) noReceivers() {
	s.t.Helper()
	guest.Eventually(s.t, testLimit, func() error {
		if left := s.there("pgrep -f '[r]espaldo-[0-9a-f]* receive' || true"); strings.TrimSpace(left) != "" {
			return fmt.Errorf("receivers are left: %s", left)
		}
		return nil
	})
}

// refusals are what is found out before the first byte.
func (s *cloneStand) refusals(t *testing.T) {
	t.Helper()
	small := &cloneStand{stand: s.stand, to: "/srv/node/small/mysql"}
	o := s.fails(3, small.args()...)
	if !strings.Contains(o.stderr, "has room for") {
		t.Errorf("no room there: %s", o.stderr)
	}
	if left := small.there("ls -A /srv/node/small"); strings.TrimSpace(left) != "" {
		t.Errorf("it has written all the same: %s", left)
	}
	if o := s.fails(3, s.replica("--replica-user", "dba", "--replica-password-file", "/dev/null")...); !strings.Contains(o.stderr, "Access denied") {
		t.Errorf("a wrong password: %s", o.stderr)
	}
	s.there("echo '[mysqld]' >" + s.to + ".cnf")
	if o := s.fails(3, s.replica()...); !strings.Contains(o.stderr, s.to+".cnf is there") {
		t.Errorf("an option file of somebody's own: %s", o.stderr)
	}
	s.there("rm " + s.to + ".cnf")
	if soak {
		if o := s.fails(3, s.replica("--mysqld", "/usr/bin/ls")...); !strings.Contains(o.stderr, "server program") {
			t.Errorf("no server there: %s", o.stderr)
		}
	}
	s.before.NothingLeft(t)
}

// kept clones a kept snapshot, with a server on it: it has what the origin had then.
func (s *cloneStand) kept(t *testing.T) {
	t.Helper()
	taken := s.take().Snapshot.Name
	then := guest.Checksums(t, s.server.DB)
	s.server.Exec(t, "INSERT INTO shop.customers VALUES (1002, 'after the snapshot')")
	other := &cloneStand{stand: s.stand, to: s.to + "-kept"}
	args := other.args(append(serverAt(nodePort+1), "--start")...)
	args[1] = taken
	var done backup.Cloned
	s.into(&done, args...)
	if now := guest.Checksums(t, s.connect(nodePort+1)); !maps.Equal(now, then) {
		t.Errorf("the clone has %v, the snapshot %v", now, then)
	}
	s.there(fmt.Sprintf("kill %[1]d; while kill -0 %[1]d 2>/dev/null; do sleep .2; done", done.Running.PID))
	s.ok("snapshot", "remove", taken)
	s.before.NothingLeft(t)
}

// saved clones a backup, with all that a careful administrator asks for: no root by ssh, a
// respaldo that is installed there, and a directory of its own for the binlogs.
func (s *cloneStand) saved(t *testing.T) {
	t.Helper()
	s.backup("--prove", "none")
	then := guest.Checksums(t, s.server.DB)
	s.server.Exec(t, "INSERT INTO shop.customers VALUES (1003, 'after the backup')")
	const program, binlogs = "/srv/node/bin/respaldo", "/srv/node/binlogs"
	s.there("mkdir /srv/node/bin && mv /root/.cache/respaldo/respaldo-* " + program + " && rmdir /root/.cache/respaldo")
	s.there(`mkdir -p /usr/local/bin && printf '#!/bin/sh\necho "$*" >>/run/sudo\nshift 2\nexec "$@"\n' >/usr/local/bin/sudo && chmod 755 /usr/local/bin/sudo`)
	other := &cloneStand{stand: s.stand, to: s.to + "-saved"}
	args := other.args(append(serverAt(nodePort+1), "--start", "--sudo", "--remote-program", program, "--place", "binlog="+binlogs)...)
	args[1] = "latest"
	var done backup.Cloned
	s.into(&done, args...)
	if got := guest.Checksums(t, s.connect(nodePort+1)); !maps.Equal(got, then) {
		t.Errorf("the clone of a backup has %v, and the backup %v", got, then)
	}
	if done.Program != program || done.Targets["binlog"] != binlogs {
		t.Errorf("not as asked for: %+v", done)
	}
	s.there("test -s " + binlogs + "/bin.index && test -e " + binlogs + "/bin.000001 && ! test -e /root/.cache/respaldo")
	for _, line := range strings.Split(strings.TrimSpace(s.there("cat /run/sudo")), "\n") {
		if line != "-n -- "+program+" receive" {
			t.Errorf("sudo was asked for %s", line)
		}
	}
	s.there(fmt.Sprintf("kill %[1]d; while kill -0 %[1]d 2>/dev/null; do sleep .2; done; rm -r /srv/node/bin "+binlogs, done.Running.PID))
	s.before.NothingLeft(t)
}

// isReplica sees that it is one, and somebody of its own.
func (s *cloneStand) isReplica(db *sql.DB) {
	s.t.Helper()
	ask := func(db *sql.DB, q string) (value string) {
		s.t.Helper()
		if err := db.QueryRow(q).Scan(&value); err != nil {
			s.t.Fatalf("%s: %v", q, err)
		}
		return value
	}
	if ask(db, "SELECT @@GLOBAL.read_only") != "1" {
		s.t.Error("it may be written to")
	}
	if ask(db, "SELECT @@GLOBAL.server_id") == ask(s.server.DB, "SELECT @@GLOBAL.server_id") {
		s.t.Error("it has the origin's server_id")
	}
	if strings.HasPrefix(s.server.Name, "mysql") && ask(db, "SELECT @@GLOBAL.server_uuid") == ask(s.server.DB, "SELECT @@GLOBAL.server_uuid") {
		s.t.Error("it has the origin's server_uuid")
	}
	if n := ask(db, "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name='astray'"); n != "0" {
		s.t.Error("what was made on it survived a refresh")
	}
}
