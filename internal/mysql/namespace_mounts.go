package mysql

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mount gives this process a view of the machine in which the origin's paths show the
// image, and in which nothing else on a disk can be written: even a path that nobody
// told us about cannot lead to the origin's files and harm them.
func (s setup) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	// Opened before the first bind: a bind may hide the source of a later one.
	sources := make([]*os.File, len(s.Binds))
	for i, b := range s.Binds {
		fd, err := unix.Open(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: b.Source, Err: err}
		}
		sources[i] = os.NewFile(uintptr(fd), b.Source)
		defer sources[i].Close()
	}
	targets := make([]string, 0, len(s.Binds))
	for i, b := range s.Binds {
		info, err := sources[i].Stat()
		if err != nil {
			return err
		}
		place := makeMountPoint
		if slices.ContainsFunc(targets, func(t string) bool { return isBelow(b.Target, t) }) {
			place = makeInImage
		}
		if err := place(b.Target, info.IsDir(), s.Work); err != nil {
			return fmt.Errorf("making a place for %s: %w", b.Target, err)
		}
		targets = append(targets, b.Target)
		if err := unix.Mount(descriptor(sources[i]), b.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("showing %s as %s: %w", b.Source, b.Target, err)
		}
	}
	// The mount table has them under their real names.
	for i, t := range targets {
		real, err := filepath.EvalSymlinks(t)
		if err != nil {
			return err
		}
		targets[i] = real
	}
	return protectAllBut(targets)
}

func descriptor(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// makeInImage makes a mount point that lies below another one, thus in the image's own
// copy.
func makeInImage(path string, dir bool, _ string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o644)
}

// makeMountPoint makes sure that path exists, without writing to any disk: on a machine
// that never had the origin (restore, verify), its paths are missing. The deepest folder
// that does exist is replaced, for this process alone, by one in memory that shows all
// its entries and has room for one more.
func makeMountPoint(path string, dir bool, work string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	missing := path
	parent := filepath.Dir(missing)
	for {
		if _, err := os.Stat(parent); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing, parent = parent, filepath.Dir(parent)
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mounting a tmpfs: %w", err)
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(missing) {
			continue // a link that leads nowhere
		}
		if err := mirror(filepath.Join(parent, e.Name()), filepath.Join(work, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	if err := makeInImage(filepath.Join(work, strings.TrimPrefix(path, parent)), dir, ""); err != nil {
		return err
	}
	if parent == "/" { // nothing can be mounted over the root: change it
		if err := unix.Chroot(work); err != nil {
			return fmt.Errorf("chroot: %w", err)
		}
		return os.Chdir("/")
	}
	if err := unix.Mount(work, parent, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("replacing %s: %w", parent, err)
	}
	return nil
}

// mirror shows one entry of a folder in its replacement. An entry that has gone since the
// folder was read (somebody's temporary file) has nothing to show.
func mirror(from, to string, kind fs.FileMode) error {
	switch {
	case kind&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case kind.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	if err == nil {
		return nil
	}
	if _, gone := os.Lstat(from); errors.Is(gone, fs.ErrNotExist) {
		return os.Remove(to)
	}
	return fmt.Errorf("showing %s: %w", from, err)
}

// protectAllBut makes every mount of a disk or memory filesystem read-only for this
// process, except those at or under the given paths. Network and kernel filesystems are
// left alone: a dead file server must not hang us, and no server data of ours lie there.
func protectAllBut(writable []string) error {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return fmt.Errorf("reading the mounts: %w", err)
	}
	for _, m := range mounts {
		if !holdsFiles(m) || slices.ContainsFunc(writable, func(p string) bool { return isBelow(m.Mountpoint, p) }) {
			continue
		}
		flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY)
		for _, option := range strings.Split(m.Options, ",") {
			flags |= keptFlags[option]
		}
		err := unix.Mount("", m.Mountpoint, "", flags, "")
		// A mount hidden under another one cannot be reached, by nobody.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("making %s read-only: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// keptFlags are options of a mount that must be repeated when it is remounted; inside a
// user namespace the kernel refuses to lose one.
var keptFlags = map[string]uintptr{
	"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
}

func holdsFiles(m *mountinfo.Info) bool {
	switch m.FSType {
	case "btrfs", "zfs", "bcachefs", "overlay", "tmpfs", "hostfs":
		return true
	}
	return strings.HasPrefix(m.Source, "/dev/")
}
