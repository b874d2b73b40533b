package backup

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

func TestOptions(t *testing.T) {
	mysql57 := respaldo.Version{Flavor: respaldo.MySQL, Major: 5, Minor: 7, Patch: 44}
	mysql84 := respaldo.Version{Flavor: respaldo.MySQL, Major: 8, Minor: 4, Patch: 1}
	mariadb := respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 6, Patch: 1}
	place := func(role respaldo.Role, path, stored string) respaldo.Place {
		return respaldo.Place{Role: role, Path: path, Real: path, Stored: stored}
	}
	for _, c := range []struct {
		name      string
		version   respaldo.Version
		places    []respaldo.Place
		variables map[string]string
		want      string
	}{
		{"nothing special", mysql84, nil, map[string]string{"innodb_page_size": "16384", "innodb_log_group_home_dir": "./", "innodb_data_home_dir": "",
			"innodb_data_file_path": "ibdata1:12M:autoextend", "innodb_undo_directory": "/db/data/", "innodb_undo_tablespaces": "2"}, ""},
		{"binlogs in the data directory", mysql57, []respaldo.Place{{Role: respaldo.BinlogRole, Path: "/db/data", Real: "/db/data", Inside: true}},
			map[string]string{"log_bin_basename": "/db/data/bin", "log_bin_index": "/db/data/bin.index", "server_id": "7"}, "log_bin=bin server_id=7"},
		{"binlogs below it, with an index of another name", mysql84, []respaldo.Place{{Role: respaldo.BinlogRole, Path: "/db/data/logs", Real: "/db/data/logs", Inside: true}},
			map[string]string{"log_bin_basename": "/db/data/logs/bin", "log_bin_index": "/db/data/list", "server_id": "7"}, "log_bin=logs/bin log_bin_index=list"},
		{"binlogs elsewhere, by a link", mariadb, []respaldo.Place{{Role: respaldo.BinlogRole, Path: "/logs", Real: "/mnt/logs", Stored: "binlog"}},
			map[string]string{"log_bin_basename": "/logs/bin"}, "log_bin=/new/mysql.more/binlog/bin"},
		{"redo in a folder of its own", mysql84, []respaldo.Place{place(respaldo.RedoRole, "/fast/#innodb_redo", "redo")},
			map[string]string{"innodb_log_group_home_dir": "/fast/"}, "innodb_log_group_home_dir=/new/mysql.more/redo"},
		{"redo elsewhere", mariadb, []respaldo.Place{place(respaldo.RedoRole, "/fast", "redo")},
			map[string]string{"innodb_log_group_home_dir": "/fast/"}, "innodb_log_group_home_dir=/new/mysql.more/redo"},
		{"tablespaces in two folders and a file", mysql84, []respaldo.Place{place(respaldo.TablespaceRole, "/far/shop", "tablespace"),
			place(respaldo.TablespaceRole, "/farther/shop", "tablespace-2"), place(respaldo.TablespaceRole, "/far/general.ibd", "tablespace-3/general.ibd")},
			nil, "innodb_directories=/new/mysql.more/tablespace/shop;/new/mysql.more/tablespace-2/shop;/new/mysql.more/tablespace-3"},
		{"tablespaces of an older server", mysql57, []respaldo.Place{place(respaldo.TablespaceRole, "/far/shop", "tablespace")}, nil, ""},
		{"files of the system tablespace", mariadb, []respaldo.Place{place(respaldo.SystemRole, "/fast/ibdata2", "system/ibdata2")},
			map[string]string{"innodb_data_file_path": "ibdata1:12M;/fast/ibdata2:1G:autoextend"},
			"innodb_data_home_dir= innodb_data_file_path=/new/mysql/ibdata1:12M;/new/mysql.more/system/ibdata2:1G:autoextend"},
		{"a home of the system tablespace", mariadb, []respaldo.Place{place(respaldo.SystemRole, "/fast/ib", "system")},
			map[string]string{"innodb_data_home_dir": "/fast/ib/", "innodb_data_file_path": "a:12M;b:12M:autoextend"},
			"innodb_data_file_path=a:12M;b:12M:autoextend innodb_data_home_dir=/new/mysql.more/system"},
		{"how the files were made", mysql57, nil, map[string]string{"innodb_page_size": "4096", "innodb_checksum_algorithm": "strict_innodb", "innodb_undo_tablespaces": "3"},
			"innodb_page_size=4096 innodb_checksum_algorithm=strict_innodb innodb_undo_tablespaces=3"},
		{"another engine", mariadb, []respaldo.Place{place(respaldo.TablespaceRole, "/rocks", "tablespace")}, map[string]string{"rocksdb_datadir": "/rocks"},
			"rocksdb_datadir=/new/mysql.more/tablespace"},
	} {
		m := respaldo.Manifest{Version: c.version, Variables: c.variables, BinlogOn: c.variables["log_bin_basename"] != "",
			Layout: respaldo.Layout{DataDir: "/db/data", Places: append([]respaldo.Place{place(respaldo.DataRole, "/db/data", dataName)}, c.places...)}}
		where, err := targets(m, RestoreRequest{To: "/new/mysql"})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got, want := strings.Join(optionsFor(m, where), " "), strings.TrimSpace("datadir=/new/mysql "+c.want); got != want {
			t.Errorf("%s: the options are\n%s\nnot\n%s", c.name, got, want)
		}
	}
}

// A server whose files lie all over the place starts, with exactly the options that are
// printed, on what was restored elsewhere, and the origin's files are not there any more.
func TestServerStartsWithThePrintedOptions(t *testing.T) {
	for name, extra := range map[string][]string{
		"mysql-9.7":    {"CREATE TABLESPACE general ADD DATAFILE '%/general/general.ibd'", "CREATE TABLE shop.g (id INT PRIMARY KEY) TABLESPACE general", "INSERT INTO shop.g VALUES (1)"},
		"mysql-5.6":    nil,
		"mariadb-11.8": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			if err := servers.Ensure(ctx, name); err != nil {
				t.Fatal(err)
			}
			root, err := os.MkdirTemp("", "opt") // short enough for a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(root) })
			old := filepath.Join(root, "old")
			for _, dir := range []string{"redo", "far", "farther", "general", "binlogs"} {
				if err := os.MkdirAll(filepath.Join(old, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			data := old + "/data"
			if err := servers.Init(ctx, name, data); err != nil {
				t.Fatal(err)
			}
			redo := []string{"ib_logfile0", "ib_logfile1", redoFolder}
			for _, file := range redo {
				if err := os.Rename(data+"/"+file, old+"/redo/"+file); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			args := []string{"--innodb-log-group-home-dir=" + old + "/redo", "--log-bin=" + old + "/binlogs/bin"}
			if name == "mysql-9.7" {
				args = append(args, "--innodb-directories="+old+"/far;"+old+"/farther;"+old+"/general")
			}
			origin, err := servers.Start(ctx, servers.Spec{Name: name, DataDir: data, Args: args})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { origin.Kill() })
			db := origin.Open()
			defer db.Close()
			for _, statement := range append([]string{"CREATE DATABASE shop",
				"CREATE TABLE shop.far (id INT PRIMARY KEY) DATA DIRECTORY='%/far'", "CREATE TABLE shop.farther (id INT PRIMARY KEY) DATA DIRECTORY='%/farther'",
				"INSERT INTO shop.far VALUES (1)", "INSERT INTO shop.farther VALUES (1)"}, extra...) {
				if _, err := db.ExecContext(ctx, strings.ReplaceAll(statement, "%", old)); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			server, err := mysql.Connect(ctx, mysql.Options{Socket: origin.Spec().Socket, User: "root"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			facts, err := server.Facts(ctx)
			server.Close()
			if err != nil {
				t.Fatal(err)
			}
			if err := origin.Stop(); err != nil {
				t.Fatal(err)
			}

			m := respaldo.Manifest{Version: facts.Version, Variables: facts.Variables, BinlogOn: facts.BinlogOn, Layout: facts.Layout}
			var covers []Cover
			for _, p := range facts.Layout.Places {
				covers = append(covers, Cover{Place: p, From: FromSnapshot})
			}
			covers = slices.DeleteFunc(covers, func(c Cover) bool { return c.Place.Role == respaldo.SecureFileRole })
			m.Layout.Places = storedPlaces(covers)
			where, err := targets(m, RestoreRequest{To: root + "/new"})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range m.Layout.Places {
				to, ok := placeIn(where, p)
				if !ok {
					continue
				}
				if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(p.Real, to); err != nil {
					t.Fatal(err)
				}
			}
			if err := relocate(m.Layout, where); err != nil {
				t.Fatal(err)
			}
			args = []string{"--skip-log-bin"}               // the laboratory's default is not printed
			for _, line := range optionsFor(m, where)[1:] { // the first is datadir
				args = append(args, "--"+line)
			}
			restored, err := servers.Start(ctx, servers.Spec{Name: name, DataDir: root + "/new", Args: args})
			if err != nil {
				log, _ := os.ReadFile(root + "/new.err")
				t.Fatalf("%v with\n%s\n%s", err, strings.Join(args, "\n"), log)
			}
			defer restored.Kill()
			again := restored.Open()
			defer again.Close()
			tables := []string{"shop.far", "shop.farther"}
			if extra != nil {
				tables = append(tables, "shop.g")
			}
			for _, table := range tables {
				var n int
				if err := again.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil || n != 1 {
					t.Errorf("%s has %d rows: %v", table, n, err)
				}
			}
			var base string
			if err := again.QueryRowContext(ctx, "SELECT @@log_bin_basename").Scan(&base); err != nil || base != root+"/new.more/binlog/bin" {
				t.Errorf("the binlogs are %s: %v", base, err)
			}
		})
	}
}
