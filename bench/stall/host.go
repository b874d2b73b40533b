package stall

import (
	"os"

	"golang.org/x/sys/unix"
)

// mountFile makes Btrfs in a new file and mounts it. It and the loop device go with our mount
// namespace, which is nobody else's.
func mountFile(file, path string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: "make private", Path: "/", Err: err}
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(4 << 30); err != nil {
		return err
	}
	if _, err := command(nil, append(fetched("sbin/mkfs.btrfs"), "-q", file)...); err != nil {
		return err
	}
	_, err = command(nil, "mount", "-t", "btrfs", "-o", "loop", file, path)
	return err
}
