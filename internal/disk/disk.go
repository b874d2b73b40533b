// Package disk changes files so that a power cut finds the old state or the new one, never
// half of either. What returns without an error is on disk.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sync brings a file's content to the disk; a directory's are the names in it.
func Sync(path string) error {
	f, err := os.Open(path) // reading is enough for fsync
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Create writes a file that must not exist yet (fs.ErrExist), with just this mode, whatever
// the umask. Nothing is left of one that cannot be written.
func Create(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // O_EXCL follows no link
	if err != nil {
		return err
	}
	if err := fill(f, content, mode, nil); err != nil {
		os.Remove(path)
		return err
	}
	return Sync(filepath.Dir(path))
}

// Replace puts a new file, with just this mode, in the place of whatever has the name. Others
// may own the directory: a link that they have laid there is replaced, never written through.
func Replace(path string, content []byte, mode fs.FileMode) error {
	return replace(path, content, mode, nil)
}

// Rewrite is Replace for a file of somebody else's: it keeps its owner and mode, and a link
// to it goes on leading to it. The mode is for a file that is not there yet.
func Rewrite(path string, content []byte, mode fs.FileMode) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	var owner *syscall.Stat_t
	if info, err := os.Stat(path); err == nil {
		mode, owner = info.Mode().Perm(), info.Sys().(*syscall.Stat_t)
	}
	return replace(path, content, mode, owner)
}

// replace writes beside the file, under a name that nobody has guessed and that no program
// takes for a file of its own.
func replace(path string, content []byte, mode fs.FileMode, owner *syscall.Stat_t) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".respaldo-*")
	if err != nil {
		return err
	}
	err = fill(f, content, mode, owner)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return Sync(filepath.Dir(path))
}

// fill writes an open file and closes it.
func fill(f *os.File, content []byte, mode fs.FileMode, owner *syscall.Stat_t) error {
	_, err := f.Write(content)
	if err == nil && owner != nil && (int(owner.Uid) != os.Geteuid() || int(owner.Gid) != os.Getegid()) {
		err = f.Chown(int(owner.Uid), int(owner.Gid)) // before its mode, which it may take bits from
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Exchange has two names on one filesystem change places at one instant. The error has
// errors.ErrUnsupported in its chain where the filesystem cannot (NFS, some overlays):
// nothing has changed then.
func Exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EXDEV) {
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	err = Sync(filepath.Dir(a))
	if filepath.Dir(b) != filepath.Dir(a) {
		err = errors.Join(err, Sync(filepath.Dir(b)))
	}
	return err
}
