//go:build guest

package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// Snapshots as a user has them: they stay as long as was asked for and harm nobody, those
// that are not ours are safe from us, and in the end nothing is left.
func TestSnapshots(t *testing.T) {
	for _, c := range []struct {
		volume, server string
		prove          respaldo.ProveLevel
	}{
		{"thin-ext4", "mariadb-10.11", respaldo.ProveQuick},
		{"btrfs", "mariadb-11.8", respaldo.ProveNone},
	} {
		t.Run(c.volume, func(t *testing.T) {
			s := newStand(t, c.volume, c.server, standOptions{})
			s.keptSnapshots(t, c.prove)
			if c.volume == "thin-ext4" {
				s.diesKeeping(t)
				s.othersSnapshots(t)
				s.poolFills(t)
			}
			if left := s.snapshots(); len(left) > 0 {
				t.Errorf("still listed: %+v", left)
			}
			if files, _ := os.ReadDir(s.dir + "/state/snapshots"); len(files) > 0 {
				t.Errorf("the manifest %s is left", files[0].Name())
			}
			s.before.NothingLeft(t)
		})
	}
}

func (s *stand) snapshots() []backup.KeptSnapshot {
	s.t.Helper()
	var list []backup.KeptSnapshot
	s.into(&list, "snapshot", "list")
	return list
}

func (s *stand) take(args ...string) backup.KeptSnapshot {
	s.t.Helper()
	var made backup.KeptSnapshot
	s.into(&made, append([]string{"snapshot", "create"}, args...)...)
	return made
}

// goes runs cleanup, which must remove this snapshot, for this reason, and nothing else.
func (s *stand) goes(name, why string, args ...string) outcome {
	s.t.Helper()
	o := s.ok(append([]string{"cleanup"}, args...)...)
	if strings.Count(o.stdout, "removed ") != 1 || !strings.Contains(o.stdout, "removed snapshot "+name+": ") || !strings.Contains(o.stdout, why) {
		s.t.Errorf("not %s alone went, or not because of %q:\n%s%s", name, why, o.stdout, o.stderr)
	}
	return o
}

// change fills a file with other bytes than it had, on disk.
func (s *stand) change(path string, bytes int) {
	s.t.Helper()
	block := make([]byte, 1<<20)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	for range bytes / len(block) {
		rand.Read(block[:4096])
		if err == nil {
			_, err = f.Write(block)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	f.Close()
}

func (s *stand) keptSnapshots(t *testing.T, prove respaldo.ProveLevel) {
	first := s.take("--ttl", "24h")
	if d := first.Snapshot; !d.Kept || d.Expires.Sub(d.Created).Round(1e9*60).Hours() != 24 || !strings.Contains(first.Note, "nobody watches it") {
		t.Errorf("created %+v, %s", d, first.Note)
	}
	made := s.backup("--keep-snapshot", "--prove", string(prove))
	if made.Kept == nil || made.Backup.Manifest.Proof.OK != (prove == respaldo.ProveQuick) {
		t.Fatalf("made %+v", made)
	}
	second := made.Kept.Snapshot
	list := s.snapshots()
	if len(list) != 2 || list[0].Snapshot.Name != first.Snapshot.Name || list[1].Snapshot.Name != second.Name {
		t.Fatalf("listed: %+v", list)
	}
	for i, q := range []respaldo.Quiesced{first.Manifest.Quiesced, made.Backup.Manifest.Quiesced} {
		if m := list[i].Manifest; !list[i].Fill.Valid || m == nil || m.Quiesced.Coordinates.File == "" || m.Quiesced.Coordinates.String() != q.Coordinates.String() {
			t.Errorf("listed %+v, but taken at %s", list[i], q.Coordinates)
		}
	}
	if m := list[1].Manifest; m != nil && (m.Proof.OK != made.Backup.Manifest.Proof.OK || !list[1].Snapshot.Expires.IsZero()) {
		t.Errorf("the backup's snapshot: %+v", list[1])
	}
	s.before.NothingLeft(t, first.Snapshot.Name, second.Name, // and so they are called in device-mapper
		strings.ReplaceAll(first.Snapshot.Name, "-", "--"), strings.ReplaceAll(second.Name, "-", "--"))

	s.held(t, second)
	s.ok("snapshot", "remove", second.Name)
	passed := s.take("--ttl", "1ms").Snapshot.Name
	s.ok("prune", "--dry-run") // retires nothing, no more than a restore does
	if n := len(s.snapshots()); n != 2 {
		t.Errorf("%d snapshots after a dry run, not 2", n)
	}
	s.goes(passed, "time has passed")
	if list := s.snapshots(); len(list) != 1 || list[0].Snapshot.Name != first.Snapshot.Name {
		t.Errorf("of two, the one with time left is to stay: %+v", list)
	}
	s.ok("snapshot", "remove", first.Snapshot.Name)
}

// held asserts that a snapshot in which somebody works is not removed, and who it is said.
func (s *stand) held(t *testing.T, d respaldo.Snapshot) {
	t.Helper()
	dir := workDir(t)
	if d.Kind == respaldo.Btrfs {
		guest.Run(t, "mount", "-o", "ro,subvol="+d.Path, s.volume.Device, dir)
	} else {
		guest.Run(t, "mount", "-o", "ro", d.Path, dir)
	}
	defer guest.Run(t, "umount", dir)
	if _, err := os.Stat(filepath.Join(dir, "mysql", "shop", "notes.MYD")); err != nil {
		t.Error(err)
	}
	worker := exec.Command("sleep", "1000")
	worker.Dir = dir
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	defer worker.Wait()
	defer worker.Process.Kill()
	o := s.fails(int(respaldo.Leftovers), "snapshot", "remove", d.Name)
	if !strings.Contains(o.stderr, dir) || !strings.Contains(o.stderr, fmt.Sprintf("sleep (pid %d)", worker.Process.Pid)) {
		t.Errorf("it does not say who holds it:\n%s", o.stderr)
	}
}

// diesKeeping: a snapshot that was to stay goes if its run dies before it is complete, and
// stays after that.
func (s *stand) diesKeeping(t *testing.T) {
	s.run([]string{"RESPALDO_FAULT=kill:backup.recorded"}, "backup", "--keep-snapshot", "--prove", "none")
	s.ok("cleanup")
	if list := s.snapshots(); len(list) > 0 {
		t.Errorf("nobody knows what it is, and it stays: %+v", list)
	}
	s.run([]string{"RESPALDO_FAULT=kill:snapshot.stays"}, "snapshot", "create")
	s.ok("cleanup")
	list := s.snapshots()
	if len(list) != 1 || list[0].Manifest == nil {
		t.Fatalf("complete, and yet it did not stay: %+v", list)
	}
	s.ok("snapshot", "remove", list[0].Snapshot.Name)
}

// othersSnapshots: what lacks our tag is its owner's, whatever its name, another server's is
// that one's to remove, and a snapshot that was removed behind our back is forgotten.
func (s *stand) othersSnapshots(t *testing.T) {
	stranger := "respaldo-main-stranger"
	guest.Run(t, "lvcreate", "-qq", "-y", "-s", "-n", stranger, s.volume.LV)
	s.fails(int(respaldo.NotFound), "snapshot", "remove", stranger)
	name := s.take().Snapshot.Name
	two := s.other("two.toml", s.read(s.config)+"\n[server.other]\n")
	if o := s.fails(int(respaldo.Refused), "snapshot", "remove", name, "--config", two, "--server", "other"); !strings.Contains(o.stderr, "is of server main") {
		t.Errorf("it does not say whose it is:\n%s", o.stderr)
	}
	guest.Run(t, "lvremove", "-qq", "-y", s.volume.Group+"/"+name)
	s.ok("cleanup")
	if _, err := os.Stat(s.dir + "/state/snapshots/" + name + ".json"); !os.IsNotExist(err) {
		t.Errorf("the manifest of a snapshot that is gone: %v", err)
	}
	guest.Run(t, "lvremove", "-qq", "-y", s.volume.Group+"/"+stranger) // fails if it is gone
}

// poolFills: of the snapshots that hold a pool's room, as many go as must, the oldest first.
func (s *stand) poolFills(t *testing.T) {
	bulk := filepath.Join(s.volume.Path, "bulk")
	s.change(bulk, 64<<20)
	older := s.take().Snapshot.Name
	s.change(bulk, 64<<20) // which the pool, of 1.5 GiB, holds twice from now on
	newer := s.take().Snapshot.Name
	list := s.snapshots()
	above := list[0].Fill.Data - 0.02
	config := s.other("full.toml", s.read(s.config)+fmt.Sprintf("\n[thresholds]\npool_data = %.3f\n", above))
	o := s.goes(older, "thin pool", "--config", config)
	if !strings.Contains(o.stderr, older) {
		t.Errorf("it is not said loudly:\n%s", o.stderr)
	}
	if list := s.snapshots(); len(list) != 1 || list[0].Snapshot.Name != newer || list[0].Fill.Data >= above {
		t.Errorf("the newer one was to stay: %+v", list)
	}
	// As after a reboot, in which a thin snapshot stays inactive: not lost, and in the pool all the same.
	guest.Run(t, "lvchange", "-qq", "-an", s.volume.Group+"/"+newer)
	if o := s.ok("snapshot", "list"); strings.Contains(o.stdout, "LOST") || !strings.Contains(o.stdout, "inactive") {
		t.Errorf("an inactive snapshot is listed as\n%s", o.stdout)
	}
	// An operation does it too, before it begins.
	config = s.other("full.toml", s.read(s.config)+"\n[thresholds]\npool_data = 0.001\n")
	o = s.fails(int(respaldo.Refused), "snapshot", "create", "--config", config)
	if !strings.Contains(o.stderr, "removed snapshot "+newer) {
		t.Errorf("it goes unsaid that the newer one went, or it did not:\n%s", o.stderr)
	}
}
