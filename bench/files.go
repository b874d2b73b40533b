package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// walk calls fn for every file and directory below paths, themselves included; a path
// that does not exist has none.
func walk(fn func(path string, e fs.DirEntry) error, paths ...string) error {
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == p {
				return nil
			} else if err != nil {
				return err
			}
			return fn(path, e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// treeSize counts regular files and their bytes.
func treeSize(paths ...string) (size int64, files int, err error) {
	err = walk(func(_ string, e fs.DirEntry) error {
		if !e.Type().IsRegular() {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		files++
		return nil
	}, paths...)
	return size, files, err
}

// readTree reads everything once, so that it is in the page cache as far as it fits.
func readTree(paths ...string) error {
	buf := make([]byte, 1<<20)
	return walk(func(path string, e fs.DirEntry) error {
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		return err
	}, paths...)
}

// syncTree brings files and directories to the disk, each by an fsync of its own: one for
// the whole file system would also wait for what others write.
func syncTree(paths ...string) error {
	return walk(func(path string, e fs.DirEntry) error {
		if !e.Type().IsRegular() && !e.IsDir() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	}, paths...)
}

// sameTree compares a restored directory with what was backed up, byte by byte.
func sameTree(want, got string) error {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	files := 0
	err := walk(func(path string, e fs.DirEntry) error {
		files++
		rel, err := filepath.Rel(want, path)
		if err != nil {
			return err
		}
		other := filepath.Join(got, rel)
		if !e.Type().IsRegular() {
			info, err := os.Lstat(other)
			if err == nil && info.Mode().Type() != e.Type() {
				err = fmt.Errorf("%s is of another kind", other)
			}
			return err
		}
		return sameFile(path, other, a, b)
	}, want)
	if err != nil {
		return err
	}
	return walk(func(string, fs.DirEntry) error {
		if files--; files < 0 {
			return fmt.Errorf("%s has more files than %s", got, want)
		}
		return nil
	}, got)
}

func sameFile(want, got string, a, b []byte) error {
	f, err := os.Open(want)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.Open(got)
	if err != nil {
		return err
	}
	defer g.Close()
	for {
		n, err := io.ReadFull(f, a)
		m, other := io.ReadFull(g, b)
		if !bytes.Equal(a[:n], b[:m]) || err != other {
			return fmt.Errorf("%s differs from %s", got, want)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
