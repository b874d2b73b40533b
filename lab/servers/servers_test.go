package servers_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

func TestServers(t *testing.T) {
	if err := servers.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			dir := t.TempDir()
			data := filepath.Join(dir, "data")
			if err := servers.Init(ctx, name, data); err != nil {
				t.Fatal(err)
			}
			r, err := servers.Start(ctx, servers.Spec{Name: name, DataDir: data})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Kill() })
			db := r.Open()
			defer db.Close()
			var version string
			var binlog, sync int
			if err := db.QueryRow("SELECT @@version, @@log_bin, @@sync_binlog").Scan(&version, &binlog, &sync); err != nil {
				t.Fatal(err)
			}
			if _, number, _ := strings.Cut(name, "-"); !strings.HasPrefix(version, number+".") || binlog != 1 || sync != 1 {
				t.Errorf("version %s, log_bin %d, sync_binlog %d", version, binlog, sync)
			}
			if comm := threadName(t, r.PID()); strings.Contains(comm, "sh") {
				t.Errorf("PID names %q, not the server", comm)
			}
			out, err := exec.CommandContext(ctx, servers.Binary(name, "mysql"), "--no-defaults", "-uroot", "-S"+r.Spec().Socket,
				"-e", "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO shop.t VALUES (1),(2)").CombinedOutput()
			if err != nil {
				t.Fatalf("mysql: %v\n%s", err, out)
			}
			out, err = exec.CommandContext(ctx, servers.Binary(name, "mysqldump"), "--no-defaults", "-uroot", "-S"+r.Spec().Socket, "shop").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "(2)") {
				t.Errorf("mysqldump: %v\n%s", err, out)
			}
			db.Close()
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			logs, err := filepath.Glob(filepath.Join(data, "binlog.0*"))
			if err != nil || len(logs) == 0 {
				t.Fatalf("no binlog in %s: %v", data, err)
			}
			out, err = exec.CommandContext(ctx, servers.Binary(name, "mysqlbinlog"), "--no-defaults", logs[0]).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "CREATE TABLE shop.t") {
				t.Errorf("mysqlbinlog: %v\n%s", err, out)
			}
			if _, err := os.Stat(r.Spec().Socket); !os.IsNotExist(err) {
				t.Errorf("the socket is left behind: %v", err)
			}
		})
	}
}

func TestStartShowsTheLog(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := servers.Ensure(ctx, "mariadb-10.11"); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	if err := servers.Init(ctx, "mariadb-10.11", data); err != nil {
		t.Fatal(err)
	}
	_, err := servers.Start(ctx, servers.Spec{Name: "mariadb-10.11", DataDir: data, Args: []string{"--no-such-option"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("the error does not show why the server ended: %v", err)
	}
}

func threadName(t *testing.T, pid int) string {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(comm))
}
