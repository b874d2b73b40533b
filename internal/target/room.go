package target

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Room is what a target's filesystem has, in bytes.
type Room struct {
	Device     uint64 // several targets may share it
	Free       int64  // for us: root has what is reserved, too
	Unreserved int64  // for anybody
	Total      int64
	Estimated  bool // on Btrfs, which may compress
}

// RoomOf asks the filesystem that a target lies on.
func RoomOf(root *os.Root) (r Room, err error) {
	info, err := root.Stat(".")
	if err != nil {
		return r, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root.Name(), &st); err != nil {
		return r, err
	}
	r = Room{Device: info.Sys().(*syscall.Stat_t).Dev, Total: int64(st.Blocks) * st.Bsize, Unreserved: int64(st.Bavail) * st.Bsize, Estimated: st.Type == unix.BTRFS_SUPER_MAGIC}
	r.Free = r.Unreserved
	if os.Geteuid() == 0 {
		r.Free = int64(st.Bfree) * st.Bsize
	}
	return r, nil
}

// Flush writes everything out that a target's filesystem has not, at once: calls of Sync
// after it cost little, and report what older kernels do not report from syncfs.
func Flush(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
}

// Sync brings what a target has under a name to the disk. What its owner may not even read
// Flush has dealt with.
func Sync(root *os.Root, name string) error {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
