package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// The calls that the receiver answers by itself.
const (
	callBegin   = "begin"
	callJoin    = "join"
	callPrepare = "prepare"
)

// Begin says where what is coming goes.
type Begin struct {
	Session string            // one run of a sender
	Targets map[string]string // by root name, absolute
	Main    string            // the root name whose target says what session is under way
	Force   bool              // the targets may hold something: what is not sent is removed
	From    string            // for people: what is being received
	Users   map[string]string
	Groups  map[string]string
}

type begun struct {
	Boot string // changes with each start of the machine: what was not synced may be lost then
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// tree is what is being received: the targets, and in the connection that prepared them what
// belongs into them.
type tree struct {
	Begin
	roots    map[string]*os.Root
	lock     *os.File // the main target, locked against other senders, and restores
	marked   *os.File // the mark in it, which says whose it is
	entries  []Entry
	owners   *target.Owners
	prepared bool
}

const sessionLine = "session "

func (b Begin) mark() []byte {
	return []byte("respaldo was receiving " + b.From + " into this directory. While this file is here, that is not finished:\n" +
		"start no server on it. The same command run again sends the rest.\n" + sessionLine + b.Session + "\n")
}

// beginTree makes the targets ours: each exists, is empty or may be replaced, and carries the
// mark. A refusal touches nothing.
func beginTree(b Begin, refuse func(string) error) (t *tree, err error) {
	t = &tree{Begin: b, roots: map[string]*os.Root{}, owners: target.NewOwners(b.Users, b.Groups)}
	var made []string
	defer func() {
		if err != nil {
			t.close()
			target.Unmake(made)
		}
	}()
	names := slices.Sorted(maps.Keys(b.Targets))
	for _, name := range names {
		dir := b.Targets[name]
		new, err := target.Make(dir)
		made = append(made, new...)
		if err == nil {
			t.roots[name], err = os.OpenRoot(dir)
		}
		if err == nil {
			err = t.look(name)
		}
		if err == nil && refuse != nil {
			err = refuse(dir)
		}
		if err != nil {
			return t, target.Explain(dir, err)
		}
	}
	if t.roots[b.Main] == nil {
		return t, fmt.Errorf("there is no target %q", b.Main)
	}
	if err := t.takeOver(); err != nil {
		return t, target.Explain(b.Targets[b.Main], err)
	}
	made = nil
	for _, name := range names {
		if err := t.markIncomplete(name); err != nil {
			return t, target.Explain(b.Targets[name], err)
		}
	}
	return t, nil
}

// look refuses a target that holds what was not to be replaced, or into which another
// filesystem is mounted.
func (t *tree) look(name string) error {
	dir := t.Targets[name]
	list, err := fs.ReadDir(t.roots[name].FS(), ".")
	if err != nil {
		return err
	}
	if !t.Force && !target.Incomplete(dir) {
		for _, e := range list {
			if e.Name() != target.LostFound {
				return target.NotEmpty(dir, e.Name())
			}
		}
	}
	here, err := os.Stat(dir)
	if err != nil {
		return err
	}
	device := here.Sys().(*syscall.Stat_t).Dev
	return fs.WalkDir(t.roots[name].FS(), ".", func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Dev != device {
			err = &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is a mount point inside of %s", filepath.Join(dir, at), dir),
				Hint: "unmount it first, or choose another directory: what is mounted there would be removed too"}
		}
		return err
	})
}

// takeOver locks the mark against other senders and writes our session into it. The other
// connections of this session share the lock.
func (t *tree) takeOver() error {
	var err error
	if t.lock, err = t.roots[t.Main].Open("."); err != nil {
		return err
	}
	err = unix.Flock(int(t.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	free := !errors.Is(err, unix.EWOULDBLOCK) // a filesystem without locks is no reason to receive nothing
	flags := os.O_RDWR | unix.O_NOFOLLOW
	if free {
		flags |= os.O_CREATE
	}
	t.marked, err = t.roots[t.Main].OpenFile(target.IncompleteMarker, flags, 0o600)
	if free && err == nil {
		text := t.mark()
		_, err := t.marked.WriteAt(text, 0)
		if err := errors.Join(err, t.marked.Truncate(int64(len(text))), t.marked.Sync()); err != nil {
			return err
		}
	} else if err != nil || t.stillOurs() != nil {
		return &respaldo.Error{Kind: respaldo.Busy, What: "another respaldo is writing into " + t.Targets[t.Main],
			Hint: "wait for it; if its sender is gone, its receivers end within minutes", Err: err}
	}
	return t.share()
}

func (t *tree) share() error {
	if err := unix.Flock(int(t.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return &respaldo.Error{Kind: respaldo.Busy, What: "another respaldo is writing into " + t.Targets[t.Main]}
	}
	return nil
}

// joinTree is for the other connections of a session.
func joinTree(b Begin) (t *tree, err error) {
	t = &tree{Begin: b, roots: map[string]*os.Root{}}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for name, dir := range b.Targets {
		if t.roots[name], err = os.OpenRoot(dir); err != nil {
			return t, err
		}
	}
	if t.roots[b.Main] == nil {
		return t, fmt.Errorf("there is no target %q", b.Main)
	}
	if t.lock, err = t.roots[b.Main].Open("."); err != nil {
		return t, err
	}
	if t.marked, err = t.roots[b.Main].OpenFile(target.IncompleteMarker, os.O_RDWR|unix.O_NOFOLLOW, 0); err != nil {
		return t, err
	}
	if err := t.share(); err != nil {
		return t, err
	}
	return t, t.stillOurs()
}

// stillOurs tells whether the mark is that of our session.
func (t *tree) stillOurs() error {
	text := make([]byte, 4096)
	n, _ := t.marked.ReadAt(text, 0)
	if !bytes.Contains(text[:n], []byte(sessionLine+t.Session+"\n")) {
		return &respaldo.Error{Kind: respaldo.Busy, What: "another respaldo has begun to send into " + t.Targets[t.Main], Hint: "let that one finish"}
	}
	return nil
}

func (t *tree) markIncomplete(name string) error {
	root := t.roots[name]
	if name != t.Main {
		if err := root.WriteFile(target.IncompleteMarker, t.mark(), 0o600); err != nil {
			return err
		}
		if err := syncIn(root, target.IncompleteMarker); err != nil {
			return err
		}
	}
	return errors.Join(syncIn(root, "."), syncPath(filepath.Dir(t.Targets[name])))
}

func (t *tree) close() {
	for _, r := range t.roots {
		if r != nil {
			r.Close()
		}
	}
	for _, f := range []*os.File{t.lock, t.marked} {
		if f != nil {
			f.Close()
		}
	}
}

// add takes more of the listing.
func (t *tree) add(more []Entry) error {
	for _, e := range more {
		if !fs.ValidPath(e.Name) || t.roots[rootName(e.Name)] == nil {
			return fmt.Errorf("%q is in none of the targets", e.Name)
		}
		switch e.Mode.Type() {
		case 0, fs.ModeDir, fs.ModeSymlink:
		default:
			return fmt.Errorf("%q is neither file, directory nor link", e.Name)
		}
	}
	t.entries = append(t.entries, more...)
	return nil
}

// in returns the target of a name, and what it is called there.
func (t *tree) in(name string) (*os.Root, string) {
	_, rest, _ := strings.Cut(name, "/")
	if rest == "" {
		rest = "."
	}
	return t.roots[rootName(name)], rest
}

func (t *tree) explain(name string, err error) error {
	if errors.Is(err, errDamaged) || errors.Is(err, context.Canceled) {
		return err
	}
	return target.Explain(t.Targets[rootName(name)], err)
}

// prepare makes the targets' shape that of the listing: what does not belong goes, so that
// there is room; directories, links and files are made, the files at their full length.
func (t *tree) prepare(ctx context.Context) error {
	if err := t.removeOthers(ctx); err != nil {
		return err
	}
	if err := t.enoughRoom(); err != nil {
		return err
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

func (t *tree) removeOthers(ctx context.Context) error {
	wanted := make(map[string]fs.FileMode, len(t.entries))
	for _, e := range t.entries {
		wanted[e.Name] = e.Mode.Type()
	}
	for name, root := range t.roots {
		var remove []string
		err := fs.WalkDir(root.FS(), ".", func(at string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return err
			case at == ".":
				return nil
			case at == target.IncompleteMarker:
				return nil
			case at == target.LostFound:
				return fs.SkipDir
			}
			if kind, ok := wanted[name+"/"+at]; ok && kind == d.Type() {
				return nil
			}
			remove = append(remove, at)
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		})
		for _, at := range remove {
			if err == nil {
				err = root.RemoveAll(at)
			}
		}
		if err != nil {
			return t.explain(name, err)
		}
	}
	return nil
}

// enoughRoom refuses early what cannot fit; an hour later it would be a full disk.
func (t *tree) enoughRoom() error {
	type filesystem struct{ need, free int64 }
	found := map[uint64]*filesystem{}
	of := map[string]*filesystem{}
	for name, root := range t.roots {
		info, err := root.Stat(".")
		var st unix.Statfs_t
		if err == nil {
			err = unix.Statfs(root.Name(), &st)
		}
		if err != nil {
			return t.explain(name, err)
		}
		if st.Type == unix.BTRFS_SUPER_MAGIC {
			continue // may compress; what it says is free is an estimate
		}
		device := info.Sys().(*syscall.Stat_t).Dev
		if found[device] == nil {
			found[device] = &filesystem{free: int64(st.Bavail) * st.Bsize}
			if os.Geteuid() == 0 {
				found[device].free = int64(st.Bfree) * st.Bsize
			}
		}
		of[name] = found[device]
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
				Hint: "free or add space there, or choose another directory"}
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

// open opens a file of the targets for its blocks.
func (t *tree) open(name string) (*os.File, error) {
	root, at := t.in(name)
	if root == nil || !fs.ValidPath(name) {
		return nil, fmt.Errorf("%q is in none of the targets", name)
	}
	return root.OpenFile(at, os.O_RDWR|unix.O_NOFOLLOW, 0)
}

// finish is Peer.Finish.
func (t *tree) finish(ctx context.Context, last func() error) error {
	for _, e := range slices.Backward(t.entries) { // directories after what they hold
		if err := t.own(e); err != nil {
			return t.explain(e.Name, err)
		}
	}
	if last != nil {
		if err := last(); err != nil {
			return err
		}
	}
	for name, root := range t.roots {
		if err := t.settle(ctx, name, root); err != nil {
			return t.explain(name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.roots)) {
		if name == t.Main {
			continue // the last: without it, all is complete
		}
		if err := t.unmark(name); err != nil {
			return t.explain(name, err)
		}
	}
	return t.explain(t.Main, t.unmark(t.Main))
}

// own gives an entry its owner, then its mode (a new owner takes the set-user bits away),
// then its time.
func (t *tree) own(e Entry) error {
	root, name := t.in(e.Name)
	if t.owners.MayGive {
		uid, gid := t.owners.Of(e.UID, e.GID)
		if err := root.Lchown(name, uid, gid); err != nil {
			return err
		}
	}
	if e.Mode.Type() == fs.ModeSymlink {
		return nil
	}
	if err := root.Chmod(name, e.Mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	at := time.Unix(0, e.ModTime)
	return root.Chtimes(name, at, at)
}

// settle brings a target to the disk. One syncfs writes everything at once; the fsyncs after
// it cost little, and report what older kernels do not report from syncfs.
func (t *tree) settle(ctx context.Context, name string, root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	return fs.WalkDir(root.FS(), ".", func(at string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case d.Type().IsRegular(), d.IsDir():
			return syncIn(root, at)
		}
		return nil
	})
}

func (t *tree) unmark(name string) error {
	root, dir := t.roots[name], t.Targets[name]
	before, err := root.Stat(".")
	if err != nil {
		return err
	}
	if err := root.Remove(target.IncompleteMarker); err != nil {
		return err
	}
	if err := root.Chtimes(".", before.ModTime(), before.ModTime()); err != nil {
		return err
	}
	return errors.Join(syncIn(root, "."), syncPath(filepath.Dir(dir)))
}

func syncIn(root *os.Root, name string) error {
	f, err := root.Open(path.Clean(name))
	if errors.Is(err, fs.ErrPermission) {
		return nil // what its owner may not even read, syncfs has dealt with
	} else if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncPath(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
