package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// Status is of all servers unless one is named; the configured metrics always have all.
func TestStatusOfSeveralServers(t *testing.T) {
	dir := t.TempDir()
	path, prom := filepath.Join(dir, "respaldo.toml"), filepath.Join(dir, "respaldo.prom")
	config := fmt.Sprintf("format = 1\nstate_dir = %q\nrun_dir = %q\ncache_dir = %q\nprometheus_file = %q\n[repository]\nurl = %q\npassword_file = %q\n[server.shop]\n[server.reports]\nsocket = %q\n",
		dir+"/state", dir+"/run", dir+"/cache", prom, dir+"/repo", dir+"/password", dir+"/nobody.sock")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := respaldoRuns(t, "init", "--config", path); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	r := respaldoRuns(t, "status", "--config", path)
	if r.code != int(respaldo.Overdue) || !strings.HasPrefix(r.stdout, "RESPALDO OVERDUE - reports: there is no proved backup; shop: there is no proved backup\n") ||
		!strings.Contains(r.stderr, "hint: respaldo backup --server reports\n") {
		t.Errorf("%+v", r)
	}
	both := func(file string) {
		t.Helper()
		text, err := os.ReadFile(file)
		info, statErr := os.Stat(file)
		for _, server := range []string{"shop", "reports"} {
			if err != nil || statErr != nil || info.Mode() != 0o644 || !strings.Contains(string(text), fmt.Sprintf("respaldo_overdue{server=%q} 1\n", server)) {
				t.Errorf("%v %v\n%s", err, info, text)
			}
		}
	}
	both(prom)
	var all []struct{ Server, State string }
	r = respaldoRuns(t, "status", "--config", path, "--server", "shop", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || r.code != int(respaldo.Overdue) || len(all) != 1 || all[0].Server != "shop" || all[0].State != "overdue" {
		t.Errorf("%v %+v", err, r)
	}
	both(prom)

	// A backup that cannot even begin is remembered, and counted.
	if r := respaldoRuns(t, "backup", "--config", path, "--server", "reports"); r.code != int(respaldo.Unreachable) {
		t.Errorf("%+v", r)
	}
	both(prom)
	if text, _ := os.ReadFile(prom); !strings.Contains(string(text), "respaldo_last_run_success{server=\"reports\"} 0\n") || strings.Contains(string(text), "respaldo_last_run_success{server=\"shop\"}") {
		t.Errorf("the metrics after a failure:\n%s", text)
	}
	if r := respaldoRuns(t, "status", "--config", path, "--prometheus", dir+"/other.prom", "--max-age", "1h"); !strings.Contains(r.stderr, "reports: the last run failed at ") {
		t.Errorf("%+v", r)
	}
	both(dir + "/other.prom")
	for _, wrong := range []struct {
		args []string
		code respaldo.Kind
		says string
	}{
		{[]string{"--prometheus", dir + "/respaldo.txt"}, respaldo.Usage, "must end in .prom"},
		{[]string{"--prometheus", dir + "/missing/x.prom"}, respaldo.Failed, "cannot write the metrics to " + dir + "/missing/x.prom"},
		{[]string{"--max-age", "-1h"}, respaldo.Usage, "--max-age must be more than zero"},
		{[]string{"--server", "sohp"}, respaldo.NotFound, `no server "sohp" is configured`},
	} {
		if r := respaldoRuns(t, append([]string{"status", "--config", path}, wrong.args...)...); r.code != int(wrong.code) || !strings.Contains(r.stderr, wrong.says) {
			t.Errorf("%q: %+v", wrong.args, r)
		}
	}
	if left, _ := filepath.Glob(dir + "/.respaldo-*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
