package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo/internal/disk"
)

// SetAside puts a link to another directory in a directory's place and keeps the directory
// under the name aside, in the same parent. Where the filesystem can, both happen at one
// instant: there is no moment at which the path leads nowhere. Called again it completes
// what a crash interrupted, or does nothing.
func SetAside(dir, aside, to string) error {
	if leads, err := os.Readlink(dir); err == nil {
		if leads != to {
			return fmt.Errorf("%s leads to %s, not to %s", dir, leads, to)
		}
		return nil
	}
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) { // between the two renames below
		if err := os.Symlink(to, dir); err != nil {
			return err
		}
		return disk.Sync(filepath.Dir(dir))
	}
	if leads, err := os.Readlink(aside); err == nil && leads == to {
		if err := os.Remove(aside); err != nil { // of an attempt that was cut short
			return err
		}
	}
	if err := os.Symlink(to, aside); err != nil {
		return err
	}
	return exchange(dir, aside, func() error {
		if err := os.Remove(aside); err != nil {
			return err
		}
		if err := os.Rename(dir, aside); err != nil {
			return err
		}
		return os.Symlink(to, dir)
	})
}

// PutBack puts the directory that is named aside into the place of the link that SetAside
// made. Called again it completes what a crash interrupted, or does nothing.
func PutBack(dir, aside, to string) error {
	leads, err := os.Readlink(dir)
	switch {
	case errors.Is(err, os.ErrNotExist): // between the two renames below
		if err := os.Rename(aside, dir); err != nil {
			return err
		}
		return disk.Sync(filepath.Dir(dir))
	case err != nil: // it is the directory; of SetAside, a link may be left
		if left, err := os.Readlink(aside); err == nil && left == to {
			return os.Remove(aside)
		}
		return nil
	case leads != to:
		return fmt.Errorf("%s leads to %s, not to %s", dir, leads, to)
	}
	if info, err := os.Lstat(aside); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("%s is no directory", aside), err)
	}
	err = exchange(dir, aside, func() error {
		if err := os.Remove(dir); err != nil {
			return err
		}
		return os.Rename(aside, dir)
	})
	if err != nil {
		return err
	}
	if _, err := os.Readlink(aside); err != nil {
		return nil // the other way left no link
	}
	if err := os.Remove(aside); err != nil {
		return err
	}
	return disk.Sync(filepath.Dir(dir))
}

// exchange swaps two names at one instant, or goes the other way where the filesystem
// cannot.
func exchange(a, b string, otherwise func() error) error {
	err := disk.Exchange(a, b)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if err := otherwise(); err != nil {
		return err
	}
	return disk.Sync(filepath.Dir(a))
}
