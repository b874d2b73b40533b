//go:build guest

package volume_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func mountAt(t *testing.T, source, dir, fsType string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, mkdir(t, dir), fsType, flags, ""); err != nil {
		t.Fatalf("mount %s at %s: %v", source, dir, err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
}

// TestFind goes by what a path really lies on, however it is reached.
func TestFind(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 64 << 20})
	sys := system(t)
	data := mkdir(t, filepath.Join(v.Path, "mysql"))
	tmp := t.TempDir()

	link := filepath.Join(tmp, "link")
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	bound := filepath.Join(tmp, "bound")
	mountAt(t, data, bound, "", unix.MS_BIND)
	for _, path := range []string{data, link, bound, filepath.Join(v.Path, "../", filepath.Base(v.Path), "mysql")} {
		if d := find(t, sys, path).Describe(); d.Name != v.LV || d.Kind != respaldo.LVMThick {
			t.Errorf("%s lies on %+v", path, d)
		}
	}
	if loc, err := sys.Locate(t.Context(), bound); err != nil || loc.MountPoint != bound || loc.FSRoot != "/mysql" || loc.Inner != "/mysql" || loc.Device != "/dev/mapper/vg0-data" {
		t.Errorf("through a bind mount: %+v, %v", loc, err)
	}

	mountAt(t, "tmpfs", filepath.Join(data, "tmp"), "tmpfs", 0)
	if nested, err := sys.Nested(t.Context(), link); err != nil || !slices.Equal(nested, []string{filepath.Join(data, "tmp")}) {
		t.Errorf("nested: %v, %v", nested, err)
	}
	over := mkdir(t, filepath.Join(v.Path, "over"))
	mountAt(t, "tmpfs", over, "tmpfs", 0) // hides the folder
	for path, says := range map[string]string{over: "tmpfs", filepath.Join(data, "tmp"): "tmpfs", "/": "overlay"} {
		_, err := sys.Find(t.Context(), path)
		refused(t, err, respaldo.Refused, path, says)
	}

	disk := guest.Disk(1)
	guest.Run(t, "mkfs.ext4", "-q", "-F", disk)
	mountAt(t, disk, filepath.Join(tmp, "plain"), "ext4", 0)
	_, err := sys.Find(t.Context(), filepath.Join(tmp, "plain"))
	refused(t, err, respaldo.Refused, "disk "+filepath.Base(disk))
}

// TestFindRefusesVolumes: LVM would, or the snapshot could not be opened.
func TestFindRefusesVolumes(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 64 << 20, Group: "my-group"})
	sys := system(t)
	tmp := t.TempDir()

	guest.Run(t, "lvcreate", "-qq", "-y", "-s", "-L", "8m", "-n", "da-ta_1", v.LV)
	mountAt(t, "/dev/my-group/da-ta_1", filepath.Join(tmp, "snapshot"), "ext4", 0)
	_, err := sys.Find(t.Context(), filepath.Join(tmp, "snapshot"))
	refused(t, err, respaldo.Refused, "my-group/da-ta_1", "is a thick snapshot")
	find(t, sys, v.Path) // its origin can have more

	guest.Run(t, "lvcreate", "-qq", "-y", "-L", "32m", "-n", "lower", v.Group)
	guest.Run(t, "dmsetup", "create", "secret", "--uuid", "CRYPT-PLAIN-secret", "--table", "0 65536 linear /dev/my-group/lower 0")
	t.Cleanup(func() { guest.Run(t, "dmsetup", "remove", "secret") })
	guest.Run(t, "mkfs.ext4", "-q", "-F", "/dev/mapper/secret")
	mountAt(t, "/dev/mapper/secret", filepath.Join(tmp, "secret"), "ext4", 0)
	_, err = sys.Find(t.Context(), filepath.Join(tmp, "secret"))
	refused(t, err, respaldo.Refused, "dm-crypt mapping secret", "my-group/lower")

	guest.Run(t, "lvchange", "-qq", "--addtag", "respaldo", v.LV)
	_, err = sys.Find(t.Context(), v.Path)
	refused(t, err, respaldo.Refused, v.LV)
	if hints := respaldo.HintsOf(err); len(hints) == 0 || !strings.Contains(hints[0], "--deltag respaldo "+v.LV) {
		t.Errorf("hints %q", hints)
	}
	guest.Run(t, "lvchange", "-qq", "--deltag", "respaldo", v.LV)
}

// TestBtrfsSubvolumes: what a snapshot of one would not hold, and where it cannot be taken.
func TestBtrfsSubvolumes(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "btrfs", Disk: 1})
	sys := system(t)
	data := filepath.Join(v.Path, "db")
	guest.Run(t, "btrfs", "-q", "subvolume", "create", data)
	mkdir(t, filepath.Join(data, "shop"))
	guest.Run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(data, "shop", "archive"))
	mkdir(t, filepath.Join(data, "shop", "archive", "deeper"))
	mountAt(t, "tmpfs", filepath.Join(data, "tmp"), "tmpfs", 0)
	nested, err := sys.Nested(t.Context(), data)
	slices.Sort(nested)
	if err != nil || !slices.Equal(nested, []string{filepath.Join(data, "shop", "archive"), filepath.Join(data, "tmp")}) {
		t.Errorf("nested: %v, %v", nested, err)
	}

	// The subvolume mounted by itself, as fstab lines do, is the same volume.
	alone := mkdir(t, filepath.Join(t.TempDir(), "alone"))
	if err := unix.Mount(v.Device, alone, "btrfs", 0, "subvol=db"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(alone, 0)
	one, other := find(t, sys, filepath.Join(data, "shop")).Describe(), find(t, sys, filepath.Join(alone, "shop")).Describe()
	if one.Name != "db" || one.ID != other.ID || one.ID == "" || one.Name != other.Name || other.MountPoint != alone {
		t.Errorf("%+v and %+v are the same", one, other)
	}
	if d := find(t, sys, filepath.Join(data, "shop", "archive")).Describe(); d.Name != "db/shop/archive" {
		t.Errorf("nested subvolume: %+v", d)
	}
	if d := find(t, sys, mkdir(t, filepath.Join(v.Path, "folder"))).Describe(); d.Name != "/" {
		t.Errorf("a folder at the top: %+v", d)
	}
	_, err = sys.Find(t.Context(), v.Path)
	refused(t, err, respaldo.Refused, v.Path, "top level")
}
