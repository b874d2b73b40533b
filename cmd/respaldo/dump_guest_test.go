//go:build guest

package main

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Dumps as a user makes them while the origin moves on: of the moment that their heads
// name, whole or not there, and nothing else is left.
func TestDump(t *testing.T) {
	type stands []struct {
		volume, server string
		test           func(*stand)
	}
	list := stands{
		{"thin-ext4", "mariadb-10.11", (*stand).dumpsEverywhere},
		{"thick-ext4", "mysql-5.6", (*stand).dumpsOfOneMoment},
		{"btrfs", "mariadb-10.5", (*stand).dumpsOfOneMoment},
	}
	if soak {
		for _, server := range servers.Names {
			for _, volume := range []string{"thick-xfs", "thin-xfs", "btrfs-on-lv"} {
				list = append(list, stands{{volume, server, (*stand).dumpsOfOneMoment}}...)
			}
		}
	}
	for _, c := range list {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			o := standOptions{}
			if c.server == "mariadb-10.11" {
				o.args = []string{"--skip-networking=0", "--port=3399"}
			}
			s := newStand(t, c.volume, c.server, o)
			c.test(s)
			s.before.NothingLeft(t)
		})
	}
}

// dump runs respaldo dump with --json. MySQL 5.6 has no dump program of its own.
func (s *stand) dump(args ...string) backup.Dumped {
	s.t.Helper()
	var done backup.Dumped
	s.into(&done, s.dumping(args...)...)
	return done
}

func (s *stand) dumping(args ...string) []string {
	args = append([]string{"dump"}, args...)
	if s.server.Name == "mysql-5.6" {
		args = append(args, "--program", servers.Binary(s.server.Name, "mysqldump"))
	}
	return args
}

// load has the server's own client read a dump.
func (s *stand) load(to *guest.Server, text []byte, args ...string) {
	s.t.Helper()
	cmd := exec.Command(servers.Binary(s.server.Name, "mysql"), append([]string{"--defaults-file=" + to.OptionFile}, args...)...)
	cmd.Stdin = bytes.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("loading: %v\n%s", err, out)
	}
}

// readDump decompresses a file by its name.
func (s *stand) readDump(path string) []byte {
	s.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".zst":
		r, err = zstd.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(r)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// wholeLoad is how far each writer of the load is in tables that were loaded into a database.
func (s *stand) wholeLoad(db *sql.DB, database string, writers int) guest.Progress {
	s.t.Helper()
	p := make(guest.Progress, writers)
	for w := range p {
		var orders, last, items int
		q := fmt.Sprintf("SELECT COUNT(*), COALESCE(MAX(seq),0), (SELECT COUNT(*) FROM %[1]s.items WHERE writer=%[2]d) FROM %[1]s.orders WHERE writer=%[2]d", database, w)
		if err := db.QueryRow(q).Scan(&orders, &last, &items); err != nil {
			s.t.Fatal(err)
		}
		if orders != last || items != 2*orders {
			s.t.Errorf("writer %d: %d transactions, the last is %d, with %d items", w, orders, last, items)
		}
		p[w] = orders
	}
	return p
}

// loadPace is how often each writer commits: a guest has one CPU, and dumping is work for it.
const loadPace = 500 * time.Millisecond

// dumpsOfOneMoment: two tables under a load, by standard output, into another database.
func (s *stand) dumpsOfOneMoment() {
	load := guest.StartLoadEvery(s.t, s.server, 2, loadPace)
	load.Moves(s.t, testLimit)
	s.before = guest.Look(s.t)
	acked := load.Acked()
	o := s.ok(s.dumping("--tables", "labload.orders,labload.items", "--to", "-")...)
	begun := load.Begun()
	load.Moves(s.t, testLimit)
	if err := load.Stop(); err != nil {
		s.t.Error(err)
	}
	if !strings.HasPrefix(strings.TrimSpace(o.stdout[strings.LastIndex(o.stdout, "\n--"):]), "-- Dump completed") || !strings.Contains(o.stdout, "-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.") {
		s.t.Errorf("it begins and ends with\n%.600s\n…\n%s", o.stdout, o.stdout[max(0, len(o.stdout)-200):])
	}
	s.server.Exec(s.t, "CREATE DATABASE loaded")
	s.load(s.server, []byte(o.stdout), "loaded")
	s.wholeLoad(s.server.DB, "loaded", 2).Within(s.t, acked, begun)
}

// dumpsEverywhere: every image and every target.
func (s *stand) dumpsEverywhere() {
	t := s.t
	s.dumpReplicates()
	made := s.backup("--keep-snapshot", "--prove", "none")
	kept := made.Kept.Snapshot.Name
	s.before = guest.Look(t)
	s.server.Exec(t, "DELETE FROM shop.customers WHERE id >= 100")
	file := s.dir + "/shop.sql.gz"
	if done := s.dump(kept, "--databases", "shop", "--to", file); done.Tables != 2 || done.Coordinates.File == "" || done.Written >= done.Bytes {
		t.Errorf("dumped %+v", done)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if text := string(s.readDump(file)); strings.Count(text, "'customer ") != 200 || strings.Contains(text, "`labload`") {
		t.Errorf("%d customers in the dump of a kept snapshot", strings.Count(text, "'customer "))
	}
	s.fails(int(respaldo.Refused), "dump", kept, "--databases", "shop", "--to", file)
	s.dumpInterrupted(kept, file)

	done := s.dump("latest", "--databases", "shop", "--to", "repository")
	if done.Backup == nil || done.Image != made.Backup.ID {
		t.Fatalf("dumped %+v", done)
	}
	id := done.Backup.ID
	if o := s.ok("list"); !regexp.MustCompile(id[:12]+` .* dump `).MatchString(o.stdout) || strings.Count(o.stdout, " image ") != 1 {
		t.Errorf("listed as\n%s", o.stdout)
	}
	if o := s.ok("show", id); !strings.Contains(o.stdout, "the databases shop, by mariadb-dump 10.11") {
		t.Errorf("shown as\n%s", o.stdout)
	}
	s.before.NothingLeft(t)
	s.ok("snapshot", "remove", kept)
	s.before = guest.Look(t)
}

// dumpInterrupted: what ends midway leaves the file that was there, and no part of a new one.
func (s *stand) dumpInterrupted(image, file string) {
	before := s.read(file)
	o := s.run([]string{"RESPALDO_FAULT=int:dump.writing"}, "dump", image, "--to", file, "--force")
	if o.code != int(respaldo.Interrupted) {
		s.t.Errorf("interrupted, it ends with exit code %d\n%s", o.code, o.stderr)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 || s.read(file) != before {
		s.t.Errorf("%v is left, or the old dump is not what it was", left)
	}
	s.before.NothingLeft(s.t)
	small := workDir(s.t)
	guest.Run(s.t, "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small)
	defer guest.Run(s.t, "umount", small)
	o = s.fails(int(respaldo.Failed), "dump", image, "--to", small+"/all.sql")
	if left, _ := os.ReadDir(small); len(left) > 0 || !strings.Contains(o.stderr, "no space left") || !strings.Contains(o.stderr, "make room there") {
		s.t.Errorf("on a full disk %v is left, and it says\n%s", left, o.stderr)
	}
}

// dumpReplicates: a server on which the dump is loaded follows the origin from the statement
// at its head, without a gap and without doing anything twice.
func (s *stand) dumpReplicates() {
	t := s.t
	s.server.Exec(t, "CREATE USER repl@'127.0.0.1' IDENTIFIED BY 'repl'", "GRANT REPLICATION SLAVE ON *.* TO repl@'127.0.0.1'")
	load := guest.StartLoadEvery(t, s.server, 2, loadPace)
	load.Moves(t, testLimit)
	file := s.dir + "/both.sql.zst"
	s.dump("--databases", "shop,labload", "--to", file)
	load.Moves(t, testLimit)
	if err := load.Stop(); err != nil {
		t.Error(err)
	}
	text := s.readDump(file)
	statement := regexp.MustCompile(`(?m)^-- (CHANGE MASTER TO MASTER_LOG_FILE=.*);$`).FindSubmatch(text)
	if statement == nil {
		t.Fatalf("no coordinates in\n%.1000s", text)
	}
	replica := guest.StartServer(t, guest.ServerSpec{Name: s.server.Name, DataDir: filepath.Join(s.volume.Path, "replica"), Args: []string{"--server-id=2"}})
	s.load(replica, text)
	replica.Exec(t, string(statement[1])+", MASTER_HOST='127.0.0.1', MASTER_PORT=3399, MASTER_USER='repl', MASTER_PASSWORD='repl'", "START SLAVE")
	guest.Eventually(t, testLimit, func() error {
		want, got := guest.Checksums(t, s.server.DB), guest.Checksums(t, replica.DB)
		for table, sum := range want {
			if got[table] != sum {
				return errors.New(table + " differs: " + replication(replica.DB))
			}
		}
		return nil
	})
	if err := replica.Stop(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(replica.DataDir); err != nil {
		t.Error(err)
	}
}

// replication is what a replica says of its errors.
func replication(db *sql.DB) string {
	rows, err := db.Query("SHOW SLAVE STATUS")
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	names, _ := rows.Columns()
	values := make([]sql.NullString, len(names))
	into := make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	var all []string
	for rows.Next() {
		rows.Scan(into...)
		for i, name := range names {
			if strings.HasPrefix(name, "Last_") && strings.HasSuffix(name, "Error") || strings.HasSuffix(name, "_Running") {
				all = append(all, name+"="+values[i].String)
			}
		}
	}
	return strings.Join(all, " ")
}
