//go:build guest

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestRollbackCrash kills a rollback at its steps. Whatever the step, after a cleanup the
// server runs on all rows of before or on all rows of the snapshot, and the cleanup says on
// which. All steps on each kind of volume come when soaking; else those at which the
// server would be without its volume.
func TestRollbackCrash(t *testing.T) {
	stands := [][2]string{{"thin-ext4", "mariadb-10.11"}}
	if soak {
		stands = append(stands, [2]string{"thick-ext4", "mysql-5.6"}, [2]string{"btrfs", "mysql-9.7"})
	}
	for _, stand := range stands {
		t.Run(stand[0]+" "+stand[1], func(t *testing.T) {
			s := newRollbackStand(t, stand[0], stand[1])
			points := []string{"rollback.unmounted", "rollback.renamed.away"}
			if soak {
				points = s.rollbackPoints()
			}
			for n, point := range points {
				t.Run(point, func(t *testing.T) {
					s.t = t
					s.rollbackKilled(n, point)
				})
				if t.Failed() {
					return
				}
			}
			s.t = t
			s.rollbackInterrupted()
			s.before.NothingLeft(t, "lab-service", fmt.Sprintf("process %d ", guest.ServicePID(s.server)), "subvolume "+s.volume.Device+" mysql")
		})
	}
}

// rollbackPoints are the steps of a rollback that comes to its end.
func (s *stand) rollbackPoints() (points []string) {
	s.t.Helper()
	trace := filepath.Join(s.dir, "trace")
	if o := s.run([]string{"RESPALDO_FAULT=trace:" + trace}, "rollback", s.take().Snapshot.Name, "--yes", "--prove", "none"); o.code != 0 {
		s.t.Fatalf("exit code %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	s.reconnect()
	text, err := os.ReadFile(trace)
	if err != nil {
		s.t.Fatal(err)
	}
	seen := map[string]int{}
	for point := range strings.Lines(string(text)) {
		point = strings.TrimSpace(point)
		if seen[point]++; seen[point] > 1 {
			point = fmt.Sprintf("%s#%d", point, seen[point])
		}
		points = append(points, point)
	}
	s.t.Logf("steps: %v", points)
	s.removeSnapshots()
	return points
}

func (s *stand) rollbackKilled(n int, point string) {
	snapshot := s.take().Snapshot.Name
	then := guest.Checksums(s.t, s.server.DB)
	s.server.Exec(s.t, fmt.Sprintf("INSERT INTO shop.customers VALUES (%d, 'lost or not')", 10_000+n))
	now := guest.Checksums(s.t, s.server.DB)
	if o := s.run([]string{"RESPALDO_FAULT=kill:" + point}, "rollback", snapshot, "--yes", "--prove", "none"); o.code != -1 {
		s.t.Fatalf("respaldo was not killed: exit code %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	var swept backup.Swept
	s.into(&swept, "cleanup")
	s.reconnect()
	got := guest.Checksums(s.t, s.server.DB)
	said := strings.Join(swept.Rollbacks, "; ")
	switch {
	case maps.Equal(got, now) && !strings.Contains(said, "finished"):
	case maps.Equal(got, then) && (strings.Contains(said, "finished") || said == "" && strings.Contains(point, "rollback.")):
	default:
		s.t.Errorf("cleanup says %q, and the tables are %v, were %v, and %v before", said, got, now, then)
	}
	if noted, err := ledger.Peek(s.dir+"/state", "main"); err != nil || len(noted) > 0 {
		s.t.Errorf("the ledger still notes %v, %v", noted, err)
	}
	if again := s.ok("cleanup"); !strings.Contains(again.stdout, "Nothing was left behind") {
		s.t.Errorf("a second cleanup had something to do:\n%s", again.stdout)
	}
	names := []string{}
	for _, left := range s.snapshots() {
		if left.Manifest == nil || !left.Snapshot.Kept {
			s.t.Errorf("left: %+v", left)
		}
		names = append(names, left.Snapshot.Name)
	}
	if !slices.Contains(names, snapshot) && !strings.HasPrefix(s.volume.Kind, "thick") {
		s.t.Errorf("the snapshot itself is gone: %q", names)
	}
	s.removeSnapshots()
}

// rollbackInterrupted: Ctrl-C while the server is stopped brings it back as it was.
func (s *stand) rollbackInterrupted() {
	s.t.Helper()
	copies := func() []string { // those of rollbacks that were finished stay
		found, err := filepath.Glob(s.dir + "/state/binlogs/main-*")
		if err != nil {
			s.t.Fatal(err)
		}
		return found
	}
	snapshot, before := s.take().Snapshot.Name, copies()
	s.server.Exec(s.t, "INSERT INTO shop.customers VALUES (20000, 'not lost')")
	now := guest.Checksums(s.t, s.server.DB)
	if o := s.run([]string{"RESPALDO_FAULT=int:rollback.stopped"}, "rollback", snapshot, "--yes", "--prove", "none"); o.code != 130 {
		s.t.Errorf("exit code %d, not 130\n%s%s", o.code, o.stdout, o.stderr)
	}
	s.reconnect()
	s.sameTables(now)
	if left := s.snapshots(); len(left) != 1 || left[0].Snapshot.Name != snapshot {
		s.t.Errorf("left: %+v", left)
	}
	if left := copies(); !slices.Equal(left, before) {
		s.t.Errorf("copies are left: %q, before %q", left, before)
	}
	if noted, err := ledger.Peek(s.dir+"/state", "main"); err != nil || len(noted) > 0 {
		s.t.Errorf("the ledger still notes %v, %v", noted, err)
	}
	s.removeSnapshots()
}

func (s *stand) removeSnapshots() {
	s.t.Helper()
	for _, left := range s.snapshots() {
		s.ok("snapshot", "remove", left.Snapshot.Name)
	}
}

// reconnect lets go of connections to a server that is gone.
func (s *stand) reconnect() {
	s.server.DB.Close()
	s.server.DB = s.server.Open()
}
