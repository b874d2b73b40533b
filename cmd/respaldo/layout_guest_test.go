//go:build guest

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// A server whose files lie in many places: redo log, a table and a database beside the data
// directory, binlogs on another filesystem. All of it is in the backup, and the restored
// server reads its own files and none of the origin's.
func TestScatteredLayout(t *testing.T) {
	volume := "/srv/thick-ext4-0"
	binlogs := filepath.Join(workDir(t), "binlogs") // not on the volume
	s := newStand(t, "thick-ext4", "mariadb-10.11", standOptions{
		folders: []string{volume + "/redo", volume + "/far", volume + "/linked", binlogs},
		redo:    volume + "/redo",
		args:    []string{"--innodb-log-group-home-dir=" + volume + "/redo", "--log-bin=" + binlogs + "/bin", "--symbolic-links=1"},
	})
	if err := os.Symlink(volume+"/linked", s.server.DataDir+"/linked"); err != nil {
		t.Fatal(err)
	}
	s.server.Exec(t,
		"CREATE TABLE shop.far (id INT PRIMARY KEY, note TEXT) ENGINE=InnoDB DATA DIRECTORY='"+volume+"/far'",
		"CREATE TABLE linked.near (id INT PRIMARY KEY, note TEXT) ENGINE=InnoDB",
		"INSERT INTO shop.far VALUES (1, 'far away')",
		"INSERT INTO linked.near VALUES (1, 'behind a link')")
	s.before = guest.Look(t)

	var outlook backup.Outlook
	s.into(&outlook, "check")
	from := map[respaldo.Role]backup.Source{}
	for _, c := range outlook.Covers {
		from[c.Place.Role] = c.From
	}
	for role, want := range map[respaldo.Role]backup.Source{respaldo.DataRole: backup.FromSnapshot, respaldo.RedoRole: backup.FromSnapshot,
		respaldo.TablespaceRole: backup.FromSnapshot, respaldo.DatabaseRole: backup.FromSnapshot, respaldo.BinlogRole: backup.FromTail} {
		if from[role] != want {
			t.Errorf("%s is taken from %q, not %q", role, from[role], want)
		}
	}

	s.refuses(t, respaldo.Refused, []string{"binlogs do not lie on"}, "backup", "--keep-snapshot", "--prove", "none")

	load := guest.StartLoadEvery(t, s.server, writers, pace)
	load.Moves(t, testLimit)
	acked := load.Acked()
	made := s.backup()
	begun := load.Begun()
	if err := load.Stop(); err != nil {
		t.Error(err)
	}
	s.before.NothingLeft(t)

	to := filepath.Join(s.dir, "restored")
	var done backup.Restored
	s.into(&done, "restore", made.Backup.ID, "--to", to, "--place", "redo="+s.dir+"/redo-here")
	var args []string
	for _, line := range done.Options {
		if !strings.HasPrefix(line, "datadir=") {
			args = append(args, "--"+line)
		}
	}
	// What the restored server might still find of the origin must be out of its way.
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{volume + "/far", volume + "/linked", volume + "/redo", binlogs} {
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range done.Targets {
		guest.Chown(t, dir)
	}
	restored := guest.StartServer(t, guest.ServerSpec{Name: s.server.Name, DataDir: to, Args: append(args, "--symbolic-links=1")})
	for query, want := range map[string]string{
		"SELECT note FROM shop.far":                    "far away",
		"SELECT note FROM linked.near":                 "behind a link",
		"SELECT name FROM shop.customers WHERE id = 7": "customer 7",
		"SELECT @@innodb_log_group_home_dir":           s.dir + "/redo-here",
	} {
		var got string
		if err := restored.DB.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, not %q (%v)", query, got, want, err)
		}
	}
	holds, err := guest.Contents(restored.DB, writers)
	if err != nil {
		t.Error(err)
	}
	holds.Within(t, acked, begun)
}

// What one snapshot cannot cover is refused before anything is touched.
func TestLayoutThatOneSnapshotDoesNotCover(t *testing.T) {
	redo := filepath.Join(workDir(t), "redo")
	s := newStand(t, "btrfs", "mariadb-11.8", standOptions{folders: []string{redo}, redo: redo, args: []string{"--innodb-log-group-home-dir=" + redo}})
	s.refuses(t, respaldo.Refused, []string{redo, "redo", "move it"}, "backup")

	nested := s.server.DataDir + "/nested"
	guest.Run(t, "btrfs", "-q", "subvolume", "create", nested)
	defer guest.Run(t, "btrfs", "-q", "subvolume", "delete", nested)
	before := s.before
	s.before = guest.Look(t)
	s.refuses(t, respaldo.Refused, []string{nested, "subvolume"}, "backup")
	s.before = before
}
