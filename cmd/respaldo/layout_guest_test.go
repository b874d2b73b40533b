//go:build guest

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// A server whose files lie in many places: redo log, a table and a database beside the data
// directory; binlogs, option file, encryption keys and exports on another filesystem. All
// of it is in the backup, and the restored server reads its own files and none of the origin's.
func TestScatteredLayout(t *testing.T) {
	volume := "/srv/thick-ext4-0"
	elsewhere := workDir(t) // not on the volume
	binlogs, keys, exports, options := elsewhere+"/binlogs", elsewhere+"/keys", elsewhere+"/exports", elsewhere+"/my.cnf"
	const key = "1;770A8A65DA156D24EE2A093277530142\n"
	files := map[string]string{
		keys + "/keys.txt":      key,
		exports + "/export.csv": "1,exported\n",
		options:                 "[mysqld]\nplugin_load_add=file_key_management\nfile_key_management_filename=" + keys + "/keys.txt\nsecure_file_priv=" + exports + "\n",
	}
	for path, text := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	s := newStand(t, "thick-ext4", "mariadb-10.11", standOptions{
		folders: []string{volume + "/redo", volume + "/far", volume + "/linked", binlogs},
		redo:    volume + "/redo",
		args:    []string{"--defaults-file=" + options, "--innodb-log-group-home-dir=" + volume + "/redo", "--log-bin=" + binlogs + "/bin", "--symbolic-links=1"},
	})
	if err := os.Symlink(volume+"/linked", s.server.DataDir+"/linked"); err != nil {
		t.Fatal(err)
	}
	s.server.Exec(t,
		"CREATE TABLE shop.far (id INT PRIMARY KEY, note TEXT) ENGINE=InnoDB DATA DIRECTORY='"+volume+"/far'",
		"CREATE TABLE linked.near (id INT PRIMARY KEY, note TEXT) ENGINE=InnoDB",
		"CREATE TABLE shop.secret (id INT PRIMARY KEY, note TEXT) ENGINE=InnoDB ENCRYPTED=YES",
		"INSERT INTO shop.secret VALUES (1, 'under lock and key')",
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
		respaldo.TablespaceRole: backup.FromSnapshot, respaldo.DatabaseRole: backup.FromSnapshot, respaldo.BinlogRole: backup.FromTail,
		respaldo.KeyringRole: backup.FromLive, respaldo.OptionFileRole: backup.FromLive, respaldo.SecureFileRole: backup.FromLive} {
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
	// From here on the backup must do without what it was made of.
	if err := os.Rename(elsewhere, elsewhere+".away"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(elsewhere + ".away")
	s.ok("verify", made.Backup.ID, "--start")

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
	for _, dir := range []string{volume + "/far", volume + "/linked", volume + "/redo"} {
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range done.Targets {
		guest.Chown(t, dir)
	}
	for name, want := range map[string]string{"keyring/keys.txt": key, "secure-file-priv/export.csv": "1,exported\n", "option-file/my.cnf": files[options]} {
		if text, err := os.ReadFile(to + ".more/" + name); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	args = append(args, "--plugin-load-add=file_key_management", "--file-key-management-filename="+to+".more/keyring/keys.txt", "--symbolic-links=1")
	restored := guest.StartServer(t, guest.ServerSpec{Name: s.server.Name, DataDir: to, Args: args})
	for query, want := range map[string]string{
		"SELECT note FROM shop.far":                    "far away",
		"SELECT note FROM shop.secret":                 "under lock and key",
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
