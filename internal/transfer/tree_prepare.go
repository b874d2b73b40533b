package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// prepare makes the targets' shape that of the listing: what does not belong goes, so that
// there is room; directories, links and files are made, the files at their full length.
func (t *tree) prepare(ctx context.Context) error {
	others, frees, err := t.others(ctx)
	if err != nil {
		return err
	}
	if err := t.enoughRoom(frees); err != nil {
		return errors.Join(err, t.leave())
	}
	for name, list := range others {
		for _, at := range list {
			if err := t.roots[name].RemoveAll(at); err != nil {
				return t.explain(name, err)
			}
		}
	}
	for _, e := range t.entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.make(e); err != nil {
			return t.explain(e.Name, err)
		}
	}
	t.prepared = true
	return nil
}

// leave takes the mark away again where nothing has been touched since.
func (t *tree) leave() error {
	if t.found {
		return nil // of an earlier transfer, which was cut short
	}
	var failed error
	for name := range t.roots {
		failed = errors.Join(failed, t.unmark(name))
	}
	target.Unmake(t.made)
	return failed
}

// others finds in the targets what does not belong there, and how much room that takes.
func (t *tree) others(ctx context.Context) (list map[string][]string, frees map[string]int64, err error) {
	wanted := make(map[string]fs.FileMode, len(t.entries))
	for _, e := range t.entries {
		wanted[e.Name] = e.Mode.Type()
	}
	list, frees = map[string][]string{}, map[string]int64{}
	for name, root := range t.roots {
		gone := "" // the directory that goes as a whole
		err := fs.WalkDir(root.FS(), ".", func(at string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return err
			case at == ".", at == target.IncompleteMarker:
				return nil
			case at == target.LostFound:
				return fs.SkipDir
			}
			if gone == "" || !strings.HasPrefix(at, gone+"/") {
				if kind, ok := wanted[name+"/"+at]; ok && kind == d.Type() {
					return nil
				}
				list[name] = append(list[name], at)
				if d.IsDir() {
					gone = at
				}
			}
			if info, err := d.Info(); err == nil {
				frees[name] += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return nil
		})
		if err != nil {
			return nil, nil, t.explain(name, err)
		}
	}
	return list, frees, nil
}

// enoughRoom refuses early what cannot fit; an hour later it would be a full disk.
func (t *tree) enoughRoom(frees map[string]int64) error {
	type filesystem struct{ need, free int64 }
	found := map[uint64]*filesystem{}
	of := map[string]*filesystem{}
	for name, root := range t.roots {
		room, err := target.RoomOf(root)
		if err != nil {
			return t.explain(name, err)
		}
		if room.Estimated {
			continue
		}
		if found[room.Device] == nil {
			found[room.Device] = &filesystem{free: room.Free}
		}
		of[name] = found[room.Device]
		of[name].free += frees[name]
	}
	for _, e := range t.entries {
		f := of[rootName(e.Name)]
		if f == nil || !e.Mode.IsRegular() || e.Sparse {
			continue
		}
		f.need += e.Size
		root, name := t.in(e.Name)
		if info, err := root.Lstat(name); err == nil && info.Mode().IsRegular() {
			f.need -= min(e.Size, info.Sys().(*syscall.Stat_t).Blocks*512)
		}
		if f.need > f.free {
			dir := t.Targets[rootName(e.Name)]
			return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s has room for %.2f GiB, and more is needed", dir, float64(f.free)/(1<<30)),
				Hint: "free or add space there, or choose another directory; nothing was touched"}
		}
	}
	return nil
}

// make makes one entry, or leaves what is there of it.
func (t *tree) make(e Entry) error {
	root, name := t.in(e.Name)
	if name == "." {
		return nil
	}
	switch e.Mode.Type() {
	case fs.ModeDir:
		if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case fs.ModeSymlink:
		if now, err := root.Readlink(name); err == nil {
			if now == e.Link {
				return nil
			}
			if err := root.Remove(name); err != nil {
				return err
			}
		}
		return root.Symlink(e.Link, name)
	}
	if info, err := root.Lstat(name); err == nil && info.Sys().(*syscall.Stat_t).Nlink > 1 {
		if err := root.Remove(name); err != nil { // the other name may be somebody else's
			return err
		}
	}
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(sparseFile{f}.resize(e.Size, e.Sparse), f.Close())
}

// sparseFile is a file in which zeros may be holes.
type sparseFile struct{ *os.File }

// resize gives the file its length, and unless it is sparse its room: a full disk is noticed
// now, and a server may count on the space.
func (f sparseFile) resize(size int64, sparse bool) error {
	if err := f.Truncate(size); err != nil || sparse || size == 0 {
		return err
	}
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.BTRFS_SUPER_MAGIC {
		return nil // what is allocated beforehand is not compressed there
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// clear makes a range zeros.
func (f sparseFile) clear(offset int64, length int, sparse bool) error {
	if sparse && unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, int64(length)) == nil {
		return nil
	}
	_, err := f.WriteAt(zeros[:length], offset)
	return err
}
