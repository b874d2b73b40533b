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
	says := func(want, where string) {
		t.Helper()
		value, at, err := files.Value("datadir")
		if err != nil || value != want || !strings.Contains(at, where) {
			t.Errorf("datadir is %q by %q (%v), not %q by %q", value, at, err, want, where)
		}
	}
	says("/second", "50-server.cnf line 2")
	write("mariadb.conf.d/zz-respaldo-main.cnf", "# ours\n[mysqld]\ndatadir=/third\n")
	says("/third", "zz-respaldo-main.cnf line 3")
	files = append(files, write("late.cnf", "[server]\ndatadir=/late\n"))
	says("/late", "late.cnf line 2")
	if value, where, err := files.Value("innodb_data_home_dir"); value != "" || where != "" || err != nil {
		t.Errorf("an option that nobody sets: %q by %q, %v", value, where, err)
	}
	if dir := (ServerFiles{write("bare.cnf", "[mysqld]\n")}).IncludeDir(); dir != "" {
		t.Errorf("nothing is included, and yet %q", dir)
	}
	if top := topOptionFiles(Process{Args: []string{"--no-defaults", "--datadir=/x"}}); len(top) > 0 {
		t.Errorf("a server with --no-defaults reads %q", top)
	}
}
