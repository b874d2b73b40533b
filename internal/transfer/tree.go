package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
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
	found    bool     // the mark was there already
	made     []string // directories that were missing
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
	t.found, t.made = target.Incomplete(b.Targets[b.Main]), made
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
	if err := refuseMounts(dir); err != nil {
		return err
	}
	device := here.Sys().(*syscall.Stat_t).Dev
	return fs.WalkDir(t.roots[name].FS(), ".", func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Dev != device {
			err = mountedIn(dir, filepath.Join(dir, at))
		}
		return err
	})
}

// refuseMounts finds what the numbers of devices do not tell: a part of the same filesystem
// that is mounted in there once more.
func refuseMounts(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	below := strings.TrimSuffix(real, "/") + "/"
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint == "/" || !strings.HasPrefix(m.Mountpoint, below), false
	})
	if err != nil || len(mounts) == 0 {
		return err
	}
	return mountedIn(dir, mounts[0].Mountpoint)
}

func mountedIn(dir, at string) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is a mount point inside of %s", at, dir),
		Hint: "unmount it first, or choose another directory: what is mounted there would be removed too"}
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
		return &respaldo.Error{Kind: respaldo.Busy, What: "another respaldo is writing into " + t.Targets[t.Main], Hint: "wait for it"}
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
		if err := target.Sync(root, target.IncompleteMarker); err != nil {
			return err
		}
	}
	return errors.Join(target.Sync(root, "."), disk.Sync(filepath.Dir(t.Targets[name])))
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

// open opens a file of the targets for its blocks.
func (t *tree) open(name string) (*os.File, error) {
	root, at := t.in(name)
	if root == nil || !fs.ValidPath(name) {
		return nil, fmt.Errorf("%q is in none of the targets", name)
	}
	return root.OpenFile(at, os.O_RDWR|unix.O_NOFOLLOW, 0)
}
