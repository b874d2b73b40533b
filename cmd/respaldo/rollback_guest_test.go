//go:build guest

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// rollbackStands are the kinds of volume and servers on which volumes go back: each kind
// once, and every pair when soaking.
func rollbackStands() [][2]string {
	stands := [][2]string{{"thick-ext4", "mysql-5.6"}, {"thin-ext4", "mariadb-10.11"}, {"btrfs", "mariadb-11.8"}}
	if !soak {
		return stands
	}
	stands = nil
	for _, kind := range []string{"thick-ext4", "thick-xfs", "thin-ext4", "thin-xfs", "btrfs", "btrfs-on-lv"} {
		for _, server := range servers.Names {
			stands = append(stands, [2]string{kind, server})
		}
	}
	return stands
}

// A volume goes back to what it was, what was lost can be replayed, and where the volume's
// kind allows it the rollback itself is rolled back.
func TestRollback(t *testing.T) {
	for _, stand := range rollbackStands() {
		t.Run(stand[0]+" "+stand[1], func(t *testing.T) {
			s := newRollbackStand(t, stand[0], stand[1])
			thick := strings.HasPrefix(stand[0], "thick")
			snapshot := s.take().Snapshot.Name
			then := guest.Checksums(t, s.server.DB)
			s.server.Exec(t, "INSERT INTO shop.customers VALUES (1000, 'a customer who came later')", "FLUSH BINARY LOGS",
				"CREATE TABLE shop.later (id INT PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO shop.later VALUES (1), (2)", "DELETE FROM shop.notes")
			now := guest.Checksums(t, s.server.DB)

			if stand[0] == "thin-ext4" || soak {
				s.rollbackRefused(t, snapshot, now)
			}
			if thick { // the reason for a rollback at night
				s.server.Kill()
			}
			done := s.rolledBack(snapshot)
			s.sameTables(then)
			if l := done.Plan.Lost; done.Plan.Running == thick || l.Transactions != 4 || len(done.Saved) < 2 || l.Purged {
				t.Errorf("lost: %+v; saved %q", l, done.Saved)
			}
			if thick != (done.State == "") || thick != (done.Proof == nil) {
				t.Errorf("done: %+v", done)
			}
			timeline := s.take()
			if timeline.Manifest.Timeline != done.Timeline {
				t.Errorf("the timeline is %s, and %s has begun", timeline.Manifest.Timeline, done.Timeline)
			}
			s.ok("snapshot", "remove", timeline.Snapshot.Name)
			s.replay(done)
			s.sameTables(now)
			if !thick {
				s.server.Exec(t, "DROP TABLE shop.customers")
				s.rolledBack(done.State, "--prove", "none")
				s.sameTables(now)
			}
			if !thick && soak { // the snapshot itself is still there
				s.rolledBack(snapshot, "--prove", "none")
				s.sameTables(then)
			}
			for _, left := range s.snapshots() {
				if left.Manifest == nil || !left.Snapshot.Kept || left.Snapshot.Name == done.State && left.StateBefore != snapshot {
					t.Errorf("left: %+v", left)
				}
				s.ok("snapshot", "remove", left.Snapshot.Name)
			}
			s.ok("cleanup")
			if point, killed := map[string]string{"thick-ext4": "rollback.merge.begun", "btrfs": "rollback.exchanged"}[stand[0]]; killed {
				s.rollbackKilled(0, point) // of thin LVM, see TestRollbackCrash
			}
			s.before.NothingLeft(t, "lab-service", fmt.Sprintf("process %d ", guest.ServicePID(s.server)), "subvolume "+s.volume.Device+" mysql")
		})
	}
}

// newRollbackStand is a stand whose server is stopped and started by commands, and who is
// the only one who lives on its volume.
func newRollbackStand(t *testing.T, kind, server string) *stand {
	t.Helper()
	s := newStand(t, kind, server, standOptions{subvolume: strings.HasPrefix(kind, "btrfs")})
	stop, start := guest.NewService(t, s.server)
	s.write(s.config, 0o644, s.read(s.config)+fmt.Sprintf("stop = [%q, %q, %q]\nstart = [%q, %q, %q]\n", stop[0], stop[1], stop[2], start[0], start[1], start[2]))
	return s
}

func (s *stand) rolledBack(snapshot string, args ...string) backup.RolledBack {
	s.t.Helper()
	var done backup.RolledBack
	s.into(&done, append([]string{"rollback", snapshot, "--yes"}, args...)...)
	s.reconnect()
	return done
}

// sameTables asserts that the server has just these tables with this content.
func (s *stand) sameTables(want map[string]string) {
	s.t.Helper()
	got := guest.Checksums(s.t, s.server.DB)
	for table, sum := range want {
		if got[table] != sum {
			s.t.Errorf("%s has checksum %q, not %q", table, got[table], sum)
		}
	}
	for table := range got {
		if want[table] == "" {
			s.t.Errorf("there is a table %s", table)
		}
	}
}

// replay brings back what a rollback has lost, as its output says.
func (s *stand) replay(done backup.RolledBack) {
	s.t.Helper()
	args := []string{fmt.Sprintf("--start-position=%d", done.Plan.Lost.From.Position)}
	if s.server.Name == "mysql-5.6" { // whose binlogs only a later release's mysqlbinlog reads here, and it writes GTIDs as that one takes them
		args = append(args, "--skip-gtids")
	}
	read := exec.Command(servers.Binary(s.server.Name, "mysqlbinlog"), append(args, done.Saved...)...)
	read.Dir = done.Plan.SaveTo
	apply := exec.Command(servers.Binary(s.server.Name, "mysql"), "--defaults-file="+s.server.OptionFile)
	pipe, err := read.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	apply.Stdin = pipe
	if err := read.Start(); err != nil {
		s.t.Fatal(err)
	}
	if out, err := apply.CombinedOutput(); err != nil {
		s.t.Fatalf("replaying: %v\n%s", err, out)
	}
	if err := read.Wait(); err != nil {
		s.t.Fatal(err)
	}
}

// rollbackRefused: nothing is touched where it cannot be, and who is in the way is named.
func (s *stand) rollbackRefused(t *testing.T, snapshot string, now map[string]string) {
	refused := func(words []string, args ...string) {
		t.Helper()
		o := s.fails(int(respaldo.Refused), append([]string{"rollback", snapshot}, args...)...)
		for _, word := range words {
			if !strings.Contains(o.stderr, word) {
				t.Errorf("rollback %v does not say %q:\n%s", args, word, o.stderr)
			}
		}
	}
	refused([]string{"no terminal", "--yes"})
	refused([]string{"would go back with it", "--save-binlogs"}, "--yes", "--save-binlogs", filepath.Join(s.volume.Path, "binlogs"))
	refused([]string{"not an empty directory"}, "--yes", "--save-binlogs", s.dir)
	refused([]string{"systemd does not run here", "stop = "}, "--yes", "--config", s.other("nobody.toml", strings.Split(s.read(s.config), "stop = ")[0]))
	s.fails(int(respaldo.NotFound), "rollback", "respaldo-main-nowhere", "--yes")
	shown, code := s.asked("Type yes: ", "y", "rollback", snapshot)
	if code != int(respaldo.Refused) || !strings.Contains(shown, "4 transactions") || !strings.Contains(shown, "nothing was touched") {
		t.Errorf("asked, and not told yes, it ends with %d:\n%s", code, shown)
	}
	s.sameTables(now)

	worker := exec.Command("sleep", "1000")
	worker.Dir = s.volume.Path
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	refused([]string{fmt.Sprintf("sleep (pid %d)", worker.Process.Pid), s.volume.Path}, "--yes")
	worker.Process.Kill()
	worker.Wait()

	// A replica is named, and who looks only touches nothing.
	replica := exec.Command(servers.Binary(s.server.Name, "mysqlbinlog"), "--defaults-file="+s.server.OptionFile, "--read-from-remote-server",
		"--stop-never", "--raw", "--result-file="+workDir(t)+"/", "binlog.000001")
	if err := replica.Start(); err != nil {
		t.Fatal(err)
	}
	defer replica.Wait()
	defer replica.Process.Kill()
	guest.Eventually(t, testLimit, func() error {
		var looked backup.RolledBack
		s.into(&looked, "rollback", snapshot, "--dry-run")
		if n := len(looked.Plan.Lost.Replicas); n != 1 {
			return fmt.Errorf("%d replicas", n)
		}
		return nil
	})
	s.sameTables(now)
	if entries, _ := os.ReadDir(s.dir + "/state/binlogs"); len(entries) > 0 {
		t.Errorf("%s was copied by somebody who was to touch nothing", entries[0])
	}
}
