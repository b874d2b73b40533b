package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// IncompleteMarker is in a directory while it is being restored.
const IncompleteMarker = target.IncompleteMarker

// Incomplete tells that a directory carries the marker of a restore cut short.
func Incomplete(dir string) bool { return target.Incomplete(dir) }

// part is one target of a restore.
type part struct {
	target string
	entry  *snapshot.DirEntry
	dirs   []*restoredFile // parents before children; the first is the target itself
	files  []*restoredFile
	links  []link

	made  []string // directories that were missing, parents first
	lock  *os.File // on the target: nobody else restores into it meanwhile
	root  *os.Root // the target, or for a single file the directory around it
	clear []string // what is to be removed first, relative to root
	frees int64    // how much room that gives
}

type link struct {
	*restoredFile
	to string
}

func (p *part) single() bool { return p.entry.Type != snapshot.EntryTypeDirectory }

func (p *part) close() {
	if p.root != nil {
		p.root.Close()
	}
	if p.lock != nil {
		p.lock.Close()
	}
}

// open looks at the target and touches nothing in it, except that a missing one is made.
func (p *part) open(force bool) error {
	dir := p.target
	if p.single() {
		dir = filepath.Dir(dir)
	}
	var err error
	if p.made, err = target.Make(dir); err != nil {
		return err
	}
	if p.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	if p.single() {
		return p.openSingle(force)
	}
	if err := p.exclude(); err != nil {
		return err
	}
	list, err := fs.ReadDir(p.root.FS(), ".")
	if err != nil {
		return err
	}
	interrupted := false
	for _, e := range list {
		switch e.Name() {
		case target.IncompleteMarker:
			interrupted = true
		case target.LostFound:
		default:
			p.clear = append(p.clear, e.Name())
		}
	}
	if len(p.clear) > 0 && !force && !interrupted {
		return target.NotEmpty(p.target, p.clear[0])
	}
	return p.survey()
}

// exclude takes the target for this restore, as long as its process lives.
func (p *part) exclude() (err error) {
	if p.lock, err = p.root.Open("."); err != nil {
		return err
	}
	err = unix.Flock(int(p.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &respaldo.Error{Kind: respaldo.Busy, What: "another restore into " + p.target + " is running", Hint: "wait for it to end, or restore into another directory"}
	}
	return nil // a filesystem without locks is no reason to restore nothing
}

func (p *part) openSingle(force bool) error {
	// Written under another name, and renamed when it is whole.
	temporary := target.IncompleteMarker + "-" + filepath.Base(p.target)
	for _, f := range p.files {
		f.path = temporary
	}
	for i := range p.links {
		p.links[i].path = temporary
	}
	p.clear = []string{temporary}
	info, err := p.root.Lstat(filepath.Base(p.target))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return &respaldo.Error{Kind: respaldo.Refused, What: p.target + " is a directory, and what should be restored there is a file",
			Hint: "name the file to be written"}
	case !force:
		return &respaldo.Error{Kind: respaldo.Refused, What: p.target + " exists", Hint: "name another file, or replace it with --force"}
	}
	return nil
}

// survey measures what will be removed and refuses to reach into another file system.
func (p *part) survey() error {
	here, err := p.root.Stat(".")
	if err != nil {
		return err
	}
	device := here.Sys().(*syscall.Stat_t).Dev
	return fs.WalkDir(p.root.FS(), ".", func(at string, e fs.DirEntry, err error) error {
		if at == target.LostFound {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Dev != device {
			return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is a mount point inside of %s", filepath.Join(p.target, at), p.target),
				Hint: "unmount it first, or restore into another directory: what is mounted there would be removed too"}
		}
		p.frees += st.Blocks * 512
		return nil
	})
}

// enoughRoom refuses early what cannot fit; an hour later it would be a full disk.
func enoughRoom(parts []*part, sparse map[string]bool, working bool) error {
	hint := "free or add space there, or restore into another directory; nothing was touched"
	if working {
		hint = "a twentieth of it stays free for others: make room there, or set state_dir to a larger filesystem"
	}
	type volume struct{ need, free int64 }
	volumes := map[uint64]*volume{}
	for _, p := range parts {
		room, err := target.RoomOf(p.root)
		if err != nil {
			return p.explain(err)
		}
		if room.Estimated && !working {
			continue
		}
		v := volumes[room.Device]
		if v == nil {
			v = &volume{free: room.Free}
			if working {
				v.free = room.Unreserved - room.Total/20
			}
			volumes[room.Device] = v
		}
		v.free += p.frees
		for _, f := range p.files {
			if !sparse[f.stored] {
				v.need += f.entry.FileSize
			}
		}
		if v.need > v.free {
			return &respaldo.Error{Kind: respaldo.Refused,
				What: fmt.Sprintf("%s has room for %s, and what goes there needs %s", p.target, gib(max(v.free, 0)), gib(v.need)), Hint: hint}
		}
	}
	return nil
}

func gib(n int64) string { return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30)) }

// begin marks the target as incomplete, removes what it held, and makes its directories
// and links.
func (p *part) begin(what string) error {
	if !p.single() {
		text := "respaldo was restoring " + what + " into this directory. While this file is here, that is not finished:\n" +
			"start no server on it. The same command run again starts over.\n"
		if err := p.root.WriteFile(target.IncompleteMarker, []byte(text), 0o600); err != nil {
			return err
		}
		if err := errors.Join(p.sync(target.IncompleteMarker), p.sync(".")); err != nil {
			return err
		}
	}
	for _, name := range p.clear {
		if err := p.root.RemoveAll(name); err != nil {
			return err
		}
	}
	for _, d := range p.dirs {
		if d.path == "" {
			continue // the target itself
		}
		if d.path == target.LostFound {
			if _, err := p.root.Stat(target.LostFound); err == nil {
				continue
			}
		}
		if err := p.root.Mkdir(d.path, 0o700); err != nil {
			return err
		}
	}
	for _, l := range p.links {
		if err := p.root.Symlink(l.to, l.path); err != nil {
			return err
		}
	}
	return nil
}

func (p *part) create(f *restoredFile) (*os.File, error) {
	out, err := p.root.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := out.Truncate(f.entry.FileSize); err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// ownDirectories gives the directories their owners and modes. finish does it again:
// whoever writes into them changes their times.
func (p *part) ownDirectories(o *owners) error {
	for _, d := range p.dirs {
		if err := o.directory(d); err != nil {
			return err
		}
	}
	return nil
}

// finish gives directories their owners, modes and times, brings everything to the disk,
// and takes the mark away.
func (p *part) finish(ctx context.Context, o *owners) error {
	if err := target.Flush(p.root); err != nil {
		return err
	}
	for _, f := range p.files {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := p.sync(f.path); err != nil {
			return err
		}
	}
	for i := len(p.dirs) - 1; i > 0; i-- {
		if err := o.directory(p.dirs[i]); err != nil {
			return err
		}
		if err := p.sync(p.dirs[i].path); err != nil {
			return err
		}
	}
	if p.single() {
		if err := p.root.Rename(p.clear[0], filepath.Base(p.target)); err != nil {
			return err
		}
		return p.sync(".")
	}
	if err := p.sync("."); err != nil {
		return err
	}
	if err := p.root.Remove(target.IncompleteMarker); err != nil {
		return err
	}
	if err := o.directory(p.dirs[0]); err != nil {
		return err
	}
	if err := p.sync("."); err != nil {
		return err
	}
	return disk.Sync(filepath.Dir(p.target))
}

// sync passes over what Finish has removed.
func (p *part) sync(name string) error {
	if err := target.Sync(p.root, name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (p *part) explain(err error) error { return target.Explain(p.target, err) }

// owners gives files to whom they belong.
type owners struct{ *target.Owners }

func newOwners(t fileTable) *owners { return &owners{target.NewOwners(t.Users, t.Groups)} }

func (o *owners) of(e *snapshot.DirEntry) (uid, gid int) { return o.Of(e.UserID, e.GroupID) }

// finish gives a written file its owner, then its mode (a new owner takes the set-user bits
// away), then its time, and closes it.
func (o *owners) finish(f *restoredFile) error {
	uid, gid := o.of(f.entry)
	var err error
	if o.MayGive {
		err = f.out.Chown(uid, gid)
	}
	if err == nil {
		err = f.out.Chmod(os.FileMode(f.entry.Permissions))
	}
	if err = errors.Join(err, f.out.Close()); err != nil {
		return err
	}
	t := f.entry.ModTime.ToTime()
	return f.part.root.Chtimes(f.path, t, t)
}

func (o *owners) directory(d *restoredFile) error {
	name := path.Clean(d.path) // the target itself is "."
	uid, gid := o.of(d.entry)
	if o.MayGive {
		if err := d.part.root.Lchown(name, uid, gid); err != nil {
			return err
		}
	}
	if err := d.part.root.Chmod(name, os.FileMode(d.entry.Permissions)); err != nil {
		return err
	}
	t := d.entry.ModTime.ToTime()
	return d.part.root.Chtimes(name, t, t)
}

func (o *owners) link(l link) error {
	if !o.MayGive {
		return nil
	}
	uid, gid := o.of(l.entry)
	return l.part.root.Lchown(l.path, uid, gid)
}
