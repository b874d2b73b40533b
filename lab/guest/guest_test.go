//go:build guest

package guest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

func TestVolumes(t *testing.T) {
	before := guest.Look(t)
	for _, kind := range guest.Kinds {
		t.Run(kind, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 512 << 20})
			file := filepath.Join(v.Path, "file")
			if err := os.WriteFile(file, []byte(kind), 0o600); err != nil {
				t.Fatal(err)
			}
			v.Remount(t)
			if text, err := os.ReadFile(file); err != nil || string(text) != kind {
				t.Errorf("read %q, %v", text, err)
			}
		})
	}
	before.NothingLeft(t)
}

// A server that is killed under the load comes back with every transaction that it
// acknowledged, and none by half.
func TestLoad(t *testing.T) {
	before := guest.Look(t)
	t.Run("killed", func(t *testing.T) {
		v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 512 << 20})
		spec := guest.ServerSpec{Name: "mariadb-10.11", DataDir: filepath.Join(v.Path, "mysql")}
		s := guest.StartServer(t, spec)
		l := guest.StartLoad(t, s, 3)
		l.Moves(t, 20*time.Second)
		acked := l.Acked()
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := l.Stop(); err == nil {
			t.Error("the writers did not notice that their server was killed")
		}
		s = guest.StartServer(t, spec)
		p, err := guest.Contents(s.DB, 3)
		if err != nil {
			t.Fatal(err)
		}
		p.Within(t, acked, l.Begun())
		if sums := guest.Checksums(t, s.DB); len(sums) != 2 {
			t.Errorf("checksums %v", sums)
		}
		s.Exec(t, "DELETE FROM labload.items WHERE writer=1 AND seq=1 AND item=2")
		if _, err := guest.Contents(s.DB, 3); err == nil {
			t.Error("half a transaction is not seen")
		}
	})
	before.NothingLeft(t)
}

// leftBehind notes failures instead of failing.
type leftBehind struct {
	guest.T
	failed int
}

func (l *leftBehind) Errorf(string, ...any) { l.failed++ }

func TestNothingLeftSees(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 256 << 20})
	before := guest.Look(t)
	before.NothingLeft(t)
	guest.Run(t, "lvcreate", "-qq", "-y", "-s", "-L", "64m", "-n", "snap", v.LV)
	seen := &leftBehind{T: t}
	before.NothingLeft(seen)
	if seen.failed == 0 {
		t.Error("a snapshot left behind is not seen")
	}
	before.NothingLeft(t, "snap", "data-real") // and the origin's hidden device
	guest.Run(t, "lvremove", "-qq", "-y", v.Group+"/snap")
	before.NothingLeft(t)
	guest.Run(t, "dmsetup", "suspend", v.Group+"-data")
	seen = &leftBehind{T: t}
	before.NothingLeft(seen)
	guest.Run(t, "dmsetup", "resume", v.Group+"-data")
	if seen.failed == 0 {
		t.Error("a suspended device is not seen")
	}
}

// TestFsyncSurvives writes and reads back; with LAB_POWER=cut it writes and waits for the
// power to go, with LAB_POWER=back it reads what that guest wrote.
func TestFsyncSurvives(t *testing.T) {
	power := os.Getenv("LAB_POWER")
	if power != "back" {
		guest.Run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", guest.Disk(0))
	}
	guest.Run(t, "mount", guest.Disk(0), "/mnt")
	t.Cleanup(func() { guest.Run(t, "umount", "/mnt") })
	if power != "back" {
		f, err := os.Create("/mnt/file")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("kept"); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if power == "cut" {
		fmt.Println("LAB-AT written")
		<-t.Context().Done() // which never comes: the power goes first
	}
	if text, err := os.ReadFile("/mnt/file"); err != nil || string(text) != "kept" {
		t.Errorf("read %q, %v", text, err)
	}
}
