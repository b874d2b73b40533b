package mysql

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// scattered are servers whose files lie all over the machine, as options that follow
// DIR, the folder of the test.
var scattered = map[string][]string{
	"mariadb-10.11": {"--log-bin=DIR/binlogs/bin", "--innodb-log-group-home-dir=DIR/redo", "--aria-log-dir-path=DIR/aria",
		"--innodb-data-file-path=ibdata1:12M;ibdata2:12M:autoextend", "--plugin-load-add=file_key_management",
		"--file-key-management-filename=DIR/keys", "--innodb-encrypt-tables=ON", "--innodb-encrypt-log=ON", "--encrypt-binlog=ON", "--innodb-encryption-threads=1"},
	"mysql-9.7": {"--log-bin=DIR/binlogs/bin", "--innodb-log-group-home-dir=DIR/redo", "--innodb-doublewrite-dir=DIR/redo",
		"--innodb-undo-directory=DIR/undo", "--innodb-directories=DIR/tables", "--performance-schema=OFF"},
	"mysql-5.6": {"--log-bin=DIR/binlogs/bin", "--innodb-log-group-home-dir=DIR/redo", "--innodb-log-files-in-group=3"},
}

// An image is proved wherever the origin's files lay, whether its binlogs can be read by us
// or not, and however the server was used: as a replica, with keys, behind links.
func TestScatteredImageIsProved(t *testing.T) {
	t.Parallel()
	for name, options := range scattered {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			r := scatter(t, name, options, (*origin).crash)
			proof, err := Prove(t.Context(), r, respaldo.ProveFull)
			if err != nil {
				t.Fatal(err)
			}
			want := r.Manifest.Quiesced.Coordinates
			if proof.Coordinates.File != want.File || proof.Coordinates.GTIDSet != want.GTIDSet {
				t.Errorf("coordinates %s %s, want %s %s", proof.Coordinates, proof.Coordinates.GTIDSet, want, want.GTIDSet)
			}
			nothingLeft(t, r)
			isIdleReplica(t, r)
		})
	}
}

func (o *origin) crash() error { return errors.Join(o.db.Close(), o.server.Kill()) }

// scatter makes such a server, crashes it, and takes its files elsewhere: an instance that
// looked for one of them in its old place would miss it.
func scatter(t *testing.T, name string, options []string, end func(*origin) error) InstanceRequest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := servers.Ensure(ctx, name); err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	real := filepath.Join(dir, "real")
	o := &origin{name: name, dir: dir, data: filepath.Join(dir, "data")}
	if err := servers.Init(ctx, name, real); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, o.data); err != nil { // the data directory is a link
		t.Fatal(err)
	}
	for _, folder := range []string{"binlogs", "redo", "aria", "undo", "tables"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "keys"), []byte("1;"+hex.EncodeToString([]byte("0123456789abcdef"))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	patterns := map[string][]string{"redo": {"ib_logfile*", "#innodb_redo", "#ib*.dblwr"}, "aria": {"aria_log*"}, "undo": {"undo_0*"}}
	for _, option := range options {
		o.args = append(o.args, strings.ReplaceAll(option, "DIR", dir))
		_, folder, _ := strings.Cut(option, "=DIR/")
		moveAll(t, real, filepath.Join(dir, folder), patterns[folder]...)
	}
	if err := o.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.server.Kill() })
	statements := []string{
		"CREATE DATABASE shop",
		"CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200)) ENGINE=InnoDB",
		"CREATE TABLE shop.second (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200)) ENGINE=InnoDB",
		"CREATE TABLE shop.afar (id INT PRIMARY KEY) ENGINE=InnoDB DATA DIRECTORY='" + dir + "/tables'",
		"INSERT INTO shop.afar VALUES (1)",
		"INSERT INTO shop.orders (note) VALUES ('a'), ('b')",
	}
	if name == "mysql-9.7" {
		statements = append(statements, "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=1, SOURCE_USER='x'", "START REPLICA")
	} else {
		statements = append(statements, "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=1, MASTER_USER='x'", "START SLAVE")
	}
	if err := o.exec(ctx, statements...); err != nil {
		t.Fatal(err)
	}
	server, err := Connect(ctx, Options{DefaultsFile: os.DevNull, Socket: o.server.Spec().Socket, User: "root"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	f, err := server.Facts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	at, err := server.Coordinates(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := end(o); err != nil {
		t.Fatal(err)
	}
	r := InstanceRequest{
		Manifest: respaldo.Manifest{
			Server: "scattered-" + name, Version: f.Version, Layout: f.Layout, Variables: f.Variables, BinlogOn: f.BinlogOn,
			Binary: f.Process.Binary, Quiesced: respaldo.Quiesced{Coordinates: at},
		},
		Dirs:    map[string]string{},
		Scratch: filepath.Join(dir, "s"),
		Run:     t.Name(),
	}
	moved := filepath.Join(dir, "moved")
	if err := os.Mkdir(moved, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Layout.Places {
		if p.Inside || p.Role == respaldo.KeyringRole || r.Dirs[p.Real] != "" || p.Role == respaldo.RelayLogRole {
			continue
		}
		r.Dirs[p.Real] = filepath.Join(moved, strings.ReplaceAll(p.Real, "/", "_"))
		if err := os.Rename(p.Real, r.Dirs[p.Real]); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Dirs) < 2 {
		t.Errorf("the server is not scattered: %v", r.Dirs)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(r.Scratch, InstanceLog))
			t.Logf("places %+v\nlog of the instance:\n%s", f.Layout.Places, log)
		}
	})
	return r
}

func moveAll(t *testing.T, from, to string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Rename(f, filepath.Join(to, filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// isIdleReplica starts the image once more: a replica's instance does not replicate.
func isIdleReplica(t *testing.T, r InstanceRequest) {
	t.Helper()
	i := startInstance(t, r)
	status, err := queryRows(t.Context(), i.DB(), replicaStatusStatement(r.Manifest.Version))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range status {
		if io, sql := s.first("slave_io_running", "replica_io_running"), s.first("slave_sql_running", "replica_sql_running"); io != "No" || sql != "No" {
			t.Errorf("the instance replicates: %s, %s", io, sql)
		}
	}
}

// A server that keeps no binlog is proved without coordinates.
func TestImageWithoutBinlogsIsProved(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{
		"mariadb-10.11": {"--skip-log-bin"},
		"mysql-5.6":     {"--skip-log-bin", "--gtid-mode=OFF", "--skip-log-slave-updates"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			r := scatter(t, name, options, (*origin).crash)
			proof, err := Prove(t.Context(), r, respaldo.ProveFull)
			if err != nil {
				t.Fatal(err)
			}
			if proof.Coordinates.File != "" || proof.Coordinates.Position != 0 {
				t.Errorf("coordinates %s", proof.Coordinates)
			}
		})
	}
}

// Tables of an engine that the instance does not load are told, and do not speak against
// the image.
func TestTablesOfUnknownEnginesAreNotChecked(t *testing.T) {
	t.Parallel()
	for name, with := range map[string][2]string{
		"mariadb-10.11": {"--plugin-load-add=ha_sphinx", "CREATE TABLE shop.foreign_rows (id BIGINT UNSIGNED NOT NULL, weight INT NOT NULL, query VARCHAR(3072) NOT NULL, INDEX (query)) ENGINE=SPHINX"},
		"mysql-9.7":     {"--federated", "CREATE TABLE shop.foreign_rows (id INT PRIMARY KEY) ENGINE=FEDERATED CONNECTION='mysql://u@127.0.0.1:1/d/t'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			options := []string{with[0]}
			if name == "mysql-9.7" {
				options = append(options, "--innodb-directories=DIR/tables", "--performance-schema=OFF")
			}
			r := scatter(t, name, options, func(o *origin) error {
				return errors.Join(o.exec(t.Context(), with[1]), o.crash())
			})
			r.Manifest.Quiesced.Coordinates = respaldo.Coordinates{} // they are of before the table
			proof, err := Prove(t.Context(), r, respaldo.ProveFull)
			if err != nil {
				t.Fatal(err)
			}
			if len(proof.NotChecked) != 1 || !strings.HasPrefix(proof.NotChecked[0], "shop.foreign_rows: ") || proof.Tables >= proof.TablesTotal {
				t.Errorf("proof %+v", proof)
			}
		})
	}
}
