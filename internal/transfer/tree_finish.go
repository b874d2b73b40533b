package transfer

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/target"
)

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
		if err := settle(ctx, root); err != nil {
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

// settle brings a target to the disk.
func settle(ctx context.Context, root *os.Root) error {
	if err := target.Flush(root); err != nil {
		return err
	}
	return fs.WalkDir(root.FS(), ".", func(at string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case d.Type().IsRegular(), d.IsDir():
			return target.Sync(root, at)
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
	return errors.Join(target.Sync(root, "."), disk.Sync(filepath.Dir(dir)))
}
