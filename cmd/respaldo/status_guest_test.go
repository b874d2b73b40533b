//go:build guest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// The first weeks in production: what the monitor sees, and what the hooks are told, while
// one thing after the other goes wrong.
func TestStatus(t *testing.T) {
	s := newStand(t, "thin-ext4", "mariadb-10.11", standOptions{})
	told := s.dir + "/told"
	metrics := s.dir + "/respaldo.prom"
	s.write(s.dir+"/hook", 0o755, fmt.Sprintf(`#!/bin/sh
{ echo "$RESPALDO_EVENT of $RESPALDO_SERVER: ${RESPALDO_BACKUP_ID:-none}, $RESPALDO_EXIT_CODE"; env; } >> %s
! [ -e %s/veto-$RESPALDO_EVENT ]
`, told, s.dir))
	s.write(s.config, 0o644, strings.Replace(s.read(s.config), "format = 1", fmt.Sprintf("format = 1\nprometheus_file = %q", metrics), 1)+
		fmt.Sprintf("\n[hooks]\nbefore = [%[1]q, \"x\"]\nafter = [%[1]q]\non_failure = [%[1]q]\n", s.dir+"/hook"))

	s.status(t, respaldo.Overdue, "RESPALDO OVERDUE - main: there is no proved backup")
	if o := s.run([]string{"RESPALDO_PASSWORD=correct horse"}, "backup"); o.code != 0 {
		t.Fatalf("exit code %d\n%s", o.code, o.stderr)
	}
	id := s.list()[0].ID
	text := s.read(told)
	if !strings.Contains(text, "before of main: none, 0\n") || !strings.Contains(text, "after of main: "+id+", 0\n") || strings.Contains(text, "correct horse") {
		t.Errorf("the hooks were told\n%s", text)
	}
	st := s.status(t, 0, "RESPALDO OK - main: proved backup, ")
	if st.Proved == nil || st.Proved.ID != id || st.Backups != 1 || st.Fill == nil || st.Fill.Data <= 0 || st.LastRun == nil || !st.LastRun.OK {
		t.Errorf("%+v", st)
	}
	if text := s.read(metrics); !strings.Contains(text, `respaldo_last_run_success{server="main"} 1`) || !strings.Contains(text, `respaldo_storage_fill_ratio{server="main",of="data"} 0.`) {
		t.Errorf("the metrics after the backup are\n%s", text)
	}
	s.status(t, respaldo.Overdue, "old, more than 1.00 ms", "--max-age", "1ms")
	s.status(t, respaldo.Attention, "the thin pool of ", "--config", s.other("warn.toml", s.read(s.config)+"\n[thresholds]\nwarn = 0.001\n"))

	// before says no: nothing is touched, and somebody is told.
	s.write(s.dir+"/veto-before", 0o644, "")
	s.fails(int(respaldo.Refused), "backup")
	s.before.NothingLeft(t)
	if text := s.lastTold(told); text != "on_failure of main: none, 3" {
		t.Errorf("told %q", text)
	}
	if text := s.read(metrics); !strings.Contains(text, `respaldo_last_run_success{server="main"} 0`) {
		t.Errorf("the metrics after a failure are\n%s", text)
	}
	s.status(t, respaldo.Attention, "the last run failed at ")
	if err := os.Remove(s.dir + "/veto-before"); err != nil {
		t.Fatal(err)
	}

	// on_failure is told of an interruption, too, and its own failure changes nothing.
	s.write(s.dir+"/veto-on_failure", 0o644, "")
	o := s.run([]string{"RESPALDO_FAULT=term:snapshot.taken"}, "backup")
	if o.code != 128+int(syscall.SIGTERM) || s.lastTold(told) != "on_failure of main: none, 143" || !strings.Contains(o.stderr, "the hook on_failure failed") {
		t.Errorf("interrupted: exit code %d, told %q\n%s", o.code, s.lastTold(told), o.stderr)
	}
	s.before.NothingLeft(t)

	s.run([]string{"RESPALDO_FAULT=kill:snapshot.acquired"}, "backup")
	s.status(t, respaldo.Attention, "the last run, begun at ")
	o = s.fails(int(respaldo.Attention), "status", "--json")
	if !strings.Contains(o.stdout, "left behind by an operation that ended abruptly: snapshot respaldo-main-") {
		t.Errorf("it does not say what is left:\n%s", o.stdout)
	}
	s.take("--ttl", "1ms")
	o = s.fails(int(respaldo.Attention), "status")
	if !strings.Contains(o.stderr, "was to go at ") || strings.Contains(o.stderr, "left behind") {
		t.Errorf("it does not say that a snapshot has expired:\n%s", o.stderr)
	}
	s.ok("cleanup")

	hidden := filepath.Join(s.dir, "hidden")
	guest.Run(t, "mv", s.dir+"/repository", hidden)
	st = s.status(t, respaldo.Attention, "cannot reach the repository")
	if st.Reachable || st.Proved == nil || st.Proved.ID != id {
		t.Errorf("not remembered: %+v", st)
	}
	guest.Run(t, "mv", hidden, s.dir+"/repository")
	if out, err := exec.Command("find", s.dir, "-maxdepth", "1", "-name", ".respaldo-*").Output(); err != nil || len(out) > 0 {
		t.Errorf("temporary files are left: %s %v", out, err)
	}
	if info, err := os.Stat(metrics); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v %v: node_exporter cannot read it", info, err)
	}
	s.before.NothingLeft(t)
	t.Run("vagrant", s.vagrantDemo)
}

// vagrantDemo runs the story of the virtual machine, with the configuration of the package.
func (s *stand) vagrantDemo(t *testing.T) {
	s.write(s.dir+"/.my.cnf", 0o600, s.read(s.server.OptionFile))
	s.write(s.dir+"/packaged.toml", 0o600, s.read("/src/packaging/respaldo.toml"))
	demo := exec.Command("sh", "/src/packaging/vagrant/demo.sh", s.volume.Path)
	demo.Env = append(os.Environ(), "HOME="+s.dir, "RESPALDO_CONFIG="+s.dir+"/packaged.toml",
		"PATH="+filepath.Dir(servers.Binary(s.server.Name, "mariadb"))+":"+os.Getenv("PATH"))
	if out, err := demo.CombinedOutput(); err != nil || !strings.Contains(string(out), "\nAll tables are as they were") || !strings.Contains(string(out), "\nRESPALDO OK - main") {
		t.Errorf("%v\n%s", err, out)
	}
}

// status runs status --json, which must end with the kind's code and say this in its first
// problem, or in its first line.
func (s *stand) status(t *testing.T, kind respaldo.Kind, says string, args ...string) backup.Status {
	t.Helper()
	o := s.fails(int(kind), append([]string{"status", "--json"}, args...)...)
	var all []*backup.Status
	if err := json.Unmarshal([]byte(o.stdout), &all); err != nil || len(all) != 1 {
		t.Fatalf("%v\n%s", err, o.stdout)
	}
	if !strings.Contains(headline(all), says) {
		t.Errorf("status says %q, not %q", headline(all), says)
	}
	return *all[0]
}

// lastTold is the first line of what the last hook wrote.
func (s *stand) lastTold(path string) (last string) {
	for line := range strings.Lines(s.read(path)) {
		if strings.Contains(line, " of main: ") {
			last = strings.TrimSpace(line)
		}
	}
	return last
}
