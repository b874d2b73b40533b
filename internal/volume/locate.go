package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// Location is where a path lies: its mount and the devices below it.
type Location struct {
	Path       string // as asked for
	Real       string // links resolved
	MountPoint string
	FSType     string
	// FSRoot is the directory of the filesystem that is mounted: "/", a bind mount's
	// source, or a Btrfs subvolume's path.
	FSRoot string
	// Inner is Real as seen from the filesystem's own root.
	Inner    string
	Source   string // what was mounted, as the kernel tells it
	Device   string // node of the mounted block device; empty for tmpfs, NFS, overlay…
	ReadOnly bool
	// Stack is the mounted block device and, below it, what it is made of, as far as it
	// is one device upon one other; a RAID array ends it.
	Stack []Layer
}

// Layer is one block device.
type Layer struct {
	Kind LayerKind
	Name string // what people call it: "vg/lv", the mapping's name, "md0", "sda1"
	Node string // its device file
	// UUID is the device-mapper UUID where there is one: "LVM-" and the UUIDs of group
	// and volume without their dashes.
	UUID string
	dev  string // "254:3"
}

// LayerKind is what makes a block device.
type LayerKind string

const (
	LayerLVM       LayerKind = "LVM logical volume"
	LayerCrypt     LayerKind = "dm-crypt mapping"
	LayerMultipath LayerKind = "multipath device"
	LayerRAID      LayerKind = "md RAID array"
	LayerLoop      LayerKind = "loop device"
	LayerPartition LayerKind = "partition"
	LayerDisk      LayerKind = "disk"
	LayerMapped    LayerKind = "device-mapper device"
)

// String names a layer for people.
func (l Layer) String() string { return string(l.Kind) + " " + l.Name }

// Locate resolves a path to its mount and devices, through links, bind mounts and
// overmounts. It reads /proc and /sys only, and needs no root for a path that the
// caller may see.
func (s *System) Locate(ctx context.Context, path string) (Location, error) {
	loc := Location{Path: path}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		kind := respaldo.Refused
		if errors.Is(err, fs.ErrNotExist) {
			kind = respaldo.NotFound
		}
		return loc, &respaldo.Error{Kind: kind, What: "cannot look at " + path, Err: err}
	}
	loc.Real = real
	m, err := mountOf(real)
	if err != nil {
		return loc, &respaldo.Error{Kind: respaldo.Failed, What: "cannot find the mount of " + real, Err: err}
	}
	loc.MountPoint, loc.FSType, loc.FSRoot, loc.Source = m.Mountpoint, m.FSType, m.Root, m.Source
	loc.ReadOnly = hasOption(m.Options, "ro") || hasOption(m.VFSOptions, "ro")
	rel, err := filepath.Rel(m.Mountpoint, real)
	if err != nil {
		return loc, err
	}
	loc.Inner = filepath.Join(m.Root, rel)

	dev, err := s.mountedDevice(m)
	if err != nil {
		return loc, err
	}
	if dev != "" {
		loc.Stack = s.stack(dev)
		loc.Device = loc.Stack[0].Node
	}
	return loc, nil
}

// mountOf asks the kernel for the mount that a path is reached through. Comparing
// paths would choose wrongly where one mount hides another.
func mountOf(path string) (*mountinfo.Info, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return nil, err
	}
	id := -1
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id, err = strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				return nil, err
			}
		}
	}
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.ID != id, m.ID == id })
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("mount %d is not among this process's mounts", id)
	}
	return found[0], nil
}

// mountedDevice is the "major:minor" of the block device below a mount, empty if there is
// none. Btrfs mounts show an anonymous number; there the source, or the filesystem's
// first member, is the device.
func (s *System) mountedDevice(m *mountinfo.Info) (string, error) {
	dev := fmt.Sprintf("%d:%d", m.Major, m.Minor)
	if m.Major != 0 {
		return dev, nil
	}
	if m.FSType != "btrfs" {
		return "", nil
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
	}
	members, err := filepath.Glob(s.sys() + "/fs/btrfs/*/devices/" + filepath.Base(m.Source))
	if err != nil || len(members) == 0 {
		return "", nil
	}
	text, err := os.ReadFile(members[0] + "/dev")
	return strings.TrimSpace(string(text)), err
}

// stack follows a block device down through sysfs.
func (s *System) stack(dev string) []Layer {
	var layers []Layer
	for dev != "" && len(layers) < 16 {
		dir := s.sys() + "/dev/block/" + dev
		l := s.layer(dir)
		l.dev = dev
		layers = append(layers, l)
		below, _ := filepath.Glob(dir + "/slaves/*")
		if len(below) != 1 || l.Kind == LayerRAID {
			break
		}
		dev = readLine(below[0] + "/dev")
	}
	return layers
}

func (s *System) layer(dir string) Layer {
	name := ""
	for line := range strings.Lines(readFile(dir + "/uevent")) {
		if v, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			name = strings.TrimSpace(v)
		}
	}
	l := Layer{Kind: LayerDisk, Name: name, Node: "/dev/" + name}
	if mapped := readLine(dir + "/dm/name"); mapped != "" {
		l.Name, l.Node, l.UUID = mapped, "/dev/mapper/"+mapped, readLine(dir+"/dm/uuid")
		switch {
		case strings.HasPrefix(l.UUID, "LVM-"):
			l.Kind = LayerLVM
			if vg, lv, ok := splitDMName(mapped); ok {
				l.Name = vg + "/" + lv
			}
		case strings.HasPrefix(l.UUID, "CRYPT-"):
			l.Kind = LayerCrypt
		case strings.HasPrefix(l.UUID, "mpath-"):
			l.Kind = LayerMultipath
		case strings.HasPrefix(l.UUID, "part"):
			l.Kind = LayerPartition
		default:
			l.Kind = LayerMapped
		}
		return l
	}
	switch {
	case exists(dir + "/md"):
		l.Kind = LayerRAID
	case exists(dir + "/partition"):
		l.Kind = LayerPartition
	case exists(dir + "/loop"):
		l.Kind = LayerLoop
		if file := readLine(dir + "/loop/backing_file"); file != "" {
			l.Name += " (" + file + ")"
		}
	}
	return l
}

// Nested lists what lies below a path but would be missing, or an empty folder, in a
// snapshot of the path's own volume: mounts and Btrfs subvolumes. It walks the
// directories (files are not looked at) and does not enter what it finds.
func (s *System) Nested(ctx context.Context, path string) ([]string, error) {
	loc, err := s.Locate(ctx, path)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(loc.Real, "/")+"/"), false
	})
	if err != nil {
		return nil, err
	}
	var found []string
	seen := map[string]bool{}
	for _, m := range mounts {
		if !seen[m.Mountpoint] {
			seen[m.Mountpoint] = true
			found = append(found, m.Mountpoint)
		}
	}
	if loc.FSType != "btrfs" {
		return found, nil
	}
	err = filepath.WalkDir(loc.Real, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || p == loc.Real {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if seen[p] {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &os.PathError{Op: "stat", Path: p, Err: err}
		}
		if st.Ino == btrfsRootInode {
			found = append(found, p)
			return fs.SkipDir
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // dropped meanwhile: look again
		if ctx.Err() == nil {
			return s.Nested(ctx, path)
		}
	}
	return found, err
}

func hasOption(options, one string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == one {
			return true
		}
	}
	return false
}

func readFile(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

func readLine(path string) string {
	line, _, _ := strings.Cut(readFile(path), "\n")
	return line
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
