package mysql

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestServerFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	top := write("my.cnf", "[mysqld]\ndatadir=/first\n!includedir "+dir+"/conf.d/\n!includedir "+dir+"/mariadb.conf.d\n!includedir "+dir+"/absent\n")
	write("conf.d/50.cnf", "[mysqldump]\ndatadir=/not-a-server\n[mysqld-8.4]\nport=1\n")
	write("mariadb.conf.d/50-server.cnf", "[mysqld]\ndatadir = /second\n")
	files := ServerFiles{filepath.Join(dir, "none.cnf"), top}
	if got := files.IncludeDir(); got != dir+"/mariadb.conf.d" {
		t.Errorf("included last is %q", got)
	}
	ours := dir + "/mariadb.conf.d/zz-respaldo-main.cnf"
	beaten := func(by, where string) {
		t.Helper()
		value, at, err := files.Beats(ours, "datadir")
		if err != nil || value != by || !strings.Contains(at, where) || (at == "") != (where == "") {
			t.Errorf("a datadir of ours is beaten by %q at %q (%v), not by %q at %q", value, at, err, by, where)
		}
	}
	beaten("", "")
	write("mariadb.conf.d/zz-respaldo-main.cnf", "# ours\n[mysqld]\ndatadir=/third\n") // it is there already
	beaten("", "")
	write("mariadb.conf.d/zzz.cnf", "[mysqld]\ndatadir=/fourth\n")
	beaten("/fourth", "zzz.cnf line 2")
	files = append(files, write("late.cnf", "[server]\ndatadir=/late\n"))
	beaten("/late", "late.cnf line 2")
	for group, several := range map[string]bool{"mysqld-8.4": false, "mariadb-10.11": false, "mysqld_safe": false, "mysqld_multi": false, "mariadb-dump": false, "client": false, "galera": false,
		"mysqld@shop": true, "mariadbd.shop": true, "mariadb.shop": true, "mysqld2": true, "mysqld-shop": true} {
		files = ServerFiles{write("group.cnf", "["+group+"]\nport=1\n")}
		if found, err := files.groupOfAnother(); err != nil || (found != "") != several {
			t.Errorf("[%s]: %q, %v", group, found, err)
		}
	}
	for _, p := range []Process{{Args: []string{"--defaults-group-suffix=.shop"}}, {env: map[string]string{"MYSQL_GROUP_SUFFIX": "@shop"}}} {
		if why, err := (&Facts{Process: p}).SharedWith(dir); err != nil || !strings.Contains(why, "shop") {
			t.Errorf("one of several servers: %q, %v", why, err)
		}
	}
	if dir := (ServerFiles{write("bare.cnf", "[mysqld]\n")}).IncludeDir(); dir != "" {
		t.Errorf("nothing is included, and yet %q", dir)
	}
	if top := topOptionFiles(Process{Args: []string{"--no-defaults", "--datadir=/x"}}); len(top) > 0 {
		t.Errorf("a server with --no-defaults reads %q", top)
	}
}
