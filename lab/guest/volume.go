// Package guest helps tests that run as root inside a guest of the lab: volumes of every
// kind, servers on them, a write load, and the question whether anything was left behind.
// What a test makes goes away at its end. Nothing here works outside a guest.
package guest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Kinds are the kinds of volume that NewVolume makes.
var Kinds = []string{"thick-ext4", "thick-xfs", "thin-ext4", "thin-xfs", "btrfs", "btrfs-on-lv"}

// Disk is the path of the guest's disk n, from 0 on, as in the Spec that booted it.
func Disk(n int) string { return fmt.Sprintf("/dev/ubd%c", 'b'+n) }

// VolumeSpec says what volume to make. The zero value of everything but Kind will do.
type VolumeSpec struct {
	Kind  string
	Disk  int    // taken whole; 0 is the first
	Path  string // mount point; a folder of its own below /srv if empty
	Group string // volume group; "vg" and the disk's number if empty
	Bytes int64  // size of the logical volume; 1 GiB if 0
	// PoolBytes is the size of a thin volume's pool; one and a half times Bytes if 0.
	PoolBytes int64
	// MountOptions are added to the mount.
	MountOptions string
}

// Volume is a mounted filesystem.
type Volume struct {
	Kind   string
	Path   string // mount point
	Device string // as mounted
	FSType string
	Group  string // volume group; empty for plain btrfs
	LV     string // "vg0/data"; empty for plain btrfs
	Pool   string // "vg0/pool"; thin only
}

// NewVolume makes a volume on a whole disk and mounts it. At the end of the test it is
// unmounted and destroyed, together with everything that was made in its group.
func NewVolume(t T, spec VolumeSpec) *Volume {
	t.Helper()
	if spec.Bytes == 0 {
		spec.Bytes = 1 << 30
	}
	if spec.PoolBytes == 0 {
		spec.PoolBytes = spec.Bytes * 3 / 2
	}
	v := describe(spec)
	disk, storage := Disk(spec.Disk), v.storage()
	size := func(n int64) string { return fmt.Sprintf("%db", n) }
	group := func() {
		Run(t, "pvcreate", "-qq", "-y", "-ff", disk)
		Run(t, "vgcreate", "-qq", "-y", v.Group, disk)
		t.Cleanup(func() { removeGroup(t, v.Group, disk) })
	}
	switch {
	case storage == "thick" || spec.Kind == "btrfs-on-lv":
		group()
		Run(t, "lvcreate", "-qq", "-y", "-Wn", "-L", size(spec.Bytes), "-n", "data", v.Group)
	case storage == "thin":
		group()
		Run(t, "lvcreate", "-qq", "-y", "--type", "thin-pool", "-c", "64k", "-Z", "n", "-L", size(spec.PoolBytes), "-n", "pool", v.Group)
		Run(t, "lvcreate", "-qq", "-y", "-V", size(spec.Bytes), "--thinpool", "pool", "-n", "data", v.Group)
	case spec.Kind == "btrfs":
		t.Cleanup(func() { Run(t, "wipefs", "-qa", disk) })
	default:
		t.Fatalf("no volume kind %q; there are %s", spec.Kind, strings.Join(Kinds, ", "))
	}
	switch v.FSType {
	case "ext4":
		// Nothing may write to it later by itself: tests count what fills a snapshot.
		Run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", v.Device)
	case "xfs":
		Run(t, "mkfs.xfs", "-q", "-f", "-K", v.Device)
	default:
		Run(t, "mkfs.btrfs", "-q", "-f", "-K", v.Device)
	}
	v.mount(t, spec.MountOptions)
	return v
}

// describe says what NewVolume makes of a spec.
func describe(spec VolumeSpec) *Volume {
	if spec.Group == "" {
		spec.Group = fmt.Sprintf("vg%d", spec.Disk)
	}
	if spec.Path == "" {
		spec.Path = fmt.Sprintf("/srv/%s-%d", spec.Kind, spec.Disk)
	}
	v := &Volume{Kind: spec.Kind, Path: spec.Path, Device: Disk(spec.Disk), FSType: "btrfs"}
	if spec.Kind == "btrfs" {
		return v
	}
	v.Group, v.LV = spec.Group, spec.Group+"/data"
	v.Device = "/dev/" + v.LV
	if _, fs, _ := strings.Cut(spec.Kind, "-"); fs == "ext4" || fs == "xfs" {
		v.FSType = fs
	}
	if v.storage() == "thin" {
		v.Pool = v.Group + "/pool"
	}
	return v
}

// storage is the first word of the kind.
func (v *Volume) storage() string {
	storage, _, _ := strings.Cut(v.Kind, "-")
	return storage
}

func (v *Volume) mount(t T, options string) {
	t.Helper()
	_, err := os.Stat(v.Path)
	made := os.IsNotExist(err)
	if err := os.MkdirAll(v.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	// Not by options that the kernel's own parser would have to guess: mount(8) is what people use.
	args := []string{"-t", v.FSType}
	if options != "" {
		args = append(args, "-o", options)
	}
	Run(t, "mount", append(args, v.Device, v.Path)...)
	t.Cleanup(func() {
		if err := unmountTree(v.Path); err != nil {
			t.Errorf("unmount %s: %v; held by %s", v.Path, err, strings.Join(holders(v.Path), ", "))
			unix.Unmount(v.Path, unix.MNT_DETACH)
		}
		if made {
			os.Remove(v.Path)
		}
	})
}

// Remount unmounts the volume and mounts it again, which empties its page cache.
func (v *Volume) Remount(t T) {
	t.Helper()
	if err := unmountTree(v.Path); err != nil {
		t.Fatalf("unmount %s: %v; held by %s", v.Path, err, strings.Join(holders(v.Path), ", "))
	}
	Run(t, "mount", "-t", v.FSType, v.Device, v.Path)
}

// unmountTree unmounts a path, mounts below it first.
func unmountTree(path string) error {
	var points []string
	for _, m := range mounts() {
		if m.point == path || strings.HasPrefix(m.point, path+"/") {
			points = append(points, m.point)
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], 0); err != nil {
			return err
		}
	}
	return nil
}

// removeGroup destroys a group with all that is in it: what is mounted from it, what is
// suspended, what is open.
func removeGroup(t T, group, disk string) {
	prefix := strings.ReplaceAll(group, "-", "--") + "-"
	for _, d := range devices(t) {
		if d.suspended && strings.HasPrefix(d.name, prefix) {
			Run(t, "dmsetup", "resume", d.name)
		}
	}
	all := mounts()
	for i := len(all) - 1; i >= 0; i-- {
		if strings.HasPrefix(all[i].source, "/dev/mapper/"+prefix) || strings.HasPrefix(all[i].source, "/dev/"+group+"/") {
			if unix.Unmount(all[i].point, 0) != nil {
				unix.Unmount(all[i].point, unix.MNT_DETACH)
			}
		}
	}
	Run(t, "vgremove", "-qq", "-ff", "-y", group)
	Run(t, "pvremove", "-qq", "-ff", "-y", disk)
}

// Run runs a program and returns its standard output; the test ends when it fails.
func Run(t T, program string, args ...string) string {
	t.Helper()
	out, err := Try(program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try runs a program and returns its standard output. The error holds what it said.
func Try(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

type mountPoint struct{ source, point, fstype string }

func mounts() []mountPoint {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	var found []mountPoint
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if f := strings.Fields(line); len(f) > 2 {
			found = append(found, mountPoint{f[0], f[1], f[2]})
		}
	}
	return found
}

// holders names the processes that have something below a path open.
func holders(path string) []string {
	found := map[string]bool{}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	cwds, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range append(fds, cwds...) {
		if target, err := os.Readlink(link); err == nil && (target == path || strings.HasPrefix(target, path+"/")) {
			pid := strings.Split(link, "/")[2]
			found[pid+" "+commandLine(pid)] = true
		}
	}
	var list []string
	for h := range found {
		list = append(list, h)
	}
	sort.Strings(list)
	return list
}
