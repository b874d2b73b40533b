package repo

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	cacheName = "cache" // kopia's, below a repository's cache directory
	bootName  = "boot"  // during which boot it was written
	bootID    = "/proc/sys/kernel/random/boot_id"
)

// dropOldCache removes a cache of before the last boot. kopia neither syncs nor checks the
// indexes that it keeps there: after a power cut one may be empty, and no repository can
// be opened any more ("invalid argument", from mmap), or hold zeros, and chunks that are
// there seem not to be.
func dropOldCache(dir string) error {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mark, err := os.OpenFile(filepath.Join(dir, bootName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer mark.Close() // and with it the lock
	// Another process may be about to do the same, and use the cache when it has done it.
	if err := unix.Flock(int(mark.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if known, err := io.ReadAll(mark); err != nil || bytes.Equal(known, boot) {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, cacheName)); err != nil {
		return err
	}
	_, err = mark.WriteAt(boot, 0)
	return errors.Join(err, mark.Truncate(int64(len(boot))))
}
