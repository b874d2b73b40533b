package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrDiffers is in the chain of SameTree's error when a copy is not what it was made from.
var ErrDiffers = errors.New("the copy differs")

// Tree is how much SameTree has compared.
type Tree struct {
	Files int
	Bytes int64
}

// SameTree reads a directory and its copy and returns an error that names the first
// difference: in names, content, owner, mode, time of change, links (hard and symbolic) or
// extended attributes, access lists among them. Sockets and pipes are not looked at. read is
// told of the bytes as they are compared.
func SameTree(ctx context.Context, original, copied string, read func(bytes int64)) (Tree, error) {
	c := &comparison{ctx: ctx, original: original, copied: copied, read: read, links: map[uint64]uint64{}}
	if err := filepath.WalkDir(original, c.visit); err != nil {
		return c.tree, err
	}
	// Whatever the original has is in the copy. Has it more?
	err := filepath.WalkDir(copied, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(copied, path)
		if _, err := os.Lstat(filepath.Join(original, rel)); errors.Is(err, fs.ErrNotExist) {
			return differs(path, "is not in "+original)
		} else if err != nil {
			return err
		}
		return nil
	})
	return c.tree, err
}

type comparison struct {
	ctx              context.Context
	original, copied string
	read             func(int64)
	tree             Tree
	links            map[uint64]uint64 // inode of a file with several names → its copy's
}

func differs(path, how string) error { return fmt.Errorf("%s %s: %w", path, how, ErrDiffers) }

func (c *comparison) visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if d.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 {
		return nil
	}
	rel, err := filepath.Rel(c.original, path)
	if err != nil {
		return err
	}
	to := filepath.Join(c.copied, rel)
	a, err := os.Lstat(path)
	if err != nil {
		return err
	}
	b, err := os.Lstat(to)
	if errors.Is(err, fs.ErrNotExist) {
		return differs(to, "is missing")
	}
	if err != nil {
		return err
	}
	sa, sb := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	switch {
	case a.Mode() != b.Mode():
		return differs(to, fmt.Sprintf("has mode %s, not %s", b.Mode(), a.Mode()))
	case sa.Uid != sb.Uid || sa.Gid != sb.Gid:
		return differs(to, fmt.Sprintf("belongs to %d:%d, not to %d:%d", sb.Uid, sb.Gid, sa.Uid, sa.Gid))
	}
	if err := sameAttributes(path, to); err != nil {
		return err
	}
	switch {
	case a.Mode()&fs.ModeSymlink != 0:
		la, errA := os.Readlink(path)
		lb, errB := os.Readlink(to)
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		if la != lb {
			return differs(to, "leads to "+lb+", not to "+la)
		}
	case a.Mode().IsRegular():
		return c.sameFile(path, to, a, b, sa, sb)
	}
	return nil
}

func (c *comparison) sameFile(path, to string, a, b fs.FileInfo, sa, sb *syscall.Stat_t) error {
	switch {
	case a.Size() != b.Size():
		return differs(to, fmt.Sprintf("has %d bytes, not %d", b.Size(), a.Size()))
	case !a.ModTime().Equal(b.ModTime()):
		return differs(to, fmt.Sprintf("was changed %s, not %s", b.ModTime(), a.ModTime()))
	}
	if sa.Nlink > 1 {
		if before, ok := c.links[sa.Ino]; ok {
			if before != sb.Ino {
				return differs(to, "is a file of its own, not another name of one")
			}
			return nil
		}
		c.links[sa.Ino] = sb.Ino
	}
	ha, err := c.hash(path, false)
	if err != nil {
		return err
	}
	hb, err := c.hash(to, true)
	if err != nil {
		return err
	}
	if !bytes.Equal(ha, hb) {
		return differs(to, "has other content")
	}
	c.tree.Files++
	c.tree.Bytes += a.Size()
	return nil
}

// hash reads a file; from the disk and not from memory if asked to, as far as the kernel
// lets go of what is written already.
func (c *comparison) hash(path string, fromDisk bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fromDisk {
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	sum := sha256.New()
	buffer := make([]byte, 1<<20)
	for {
		n, err := f.Read(buffer)
		sum.Write(buffer[:n])
		if fromDisk && c.read != nil {
			c.read(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return sum.Sum(nil), nil
		}
		if err == nil && c.ctx.Err() != nil {
			err = context.Cause(c.ctx)
		}
		if err != nil {
			return nil, err
		}
	}
}

// sameAttributes compares extended attributes. SELinux's label is the directory's business,
// not the file's.
func sameAttributes(a, b string) error {
	of := func(path string) (map[string]string, error) {
		size, err := unix.Llistxattr(path, nil)
		if err != nil || size == 0 {
			if errors.Is(err, unix.ENOTSUP) {
				err = nil
			}
			return nil, err
		}
		names := make([]byte, size)
		if size, err = unix.Llistxattr(path, names); err != nil {
			return nil, err
		}
		found := map[string]string{}
		for _, name := range strings.Split(strings.Trim(string(names[:size]), "\x00"), "\x00") {
			if name == "" || name == "security.selinux" {
				continue
			}
			value := make([]byte, 64<<10) // the kernel's limit
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return nil, fmt.Errorf("%s: attribute %s: %w", path, name, err)
			}
			found[name] = string(value[:n])
		}
		return found, nil
	}
	want, err := of(a)
	if err != nil {
		return err
	}
	have, err := of(b)
	if err != nil {
		return err
	}
	if !maps.Equal(want, have) {
		return differs(b, fmt.Sprintf("has the attributes %v, not %v", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(want))))
	}
	return nil
}

// Occupied is how many bytes a directory's files take on disk: holes are none.
func Occupied(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a server at work removes files
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return bytes, err
}
