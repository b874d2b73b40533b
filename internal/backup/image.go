package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// imageNow names the image that is taken on the spot and removed afterwards.
const imageNow = "now"

// imageRequest says which image is wanted, and for what.
type imageRequest struct {
	// Ref is "now", the name of a kept snapshot, or a backup: its ID, a prefix of that, or
	// "latest".
	Ref string
	Of  string // the server whose backups are looked among; "" is every server's
	// Writable asks for files that an instance may write into, without changing the image.
	// Otherwise they are for reading, and a snapshot is mounted read-only.
	Writable bool
}

// openedImage is an image whose files can be reached on this machine.
type openedImage struct {
	Manifest respaldo.Manifest
	// Dirs is where each place of the origin's, by its real path, lies here. A place of
	// which the image has no copy is not in it.
	Dirs map[string]string
	Name string // of the snapshot, or the backup's ID; "now"
	What string // for people: "the snapshot NAME"

	Backup   *respaldo.Backup   // where it is one
	Snapshot *respaldo.Snapshot // where it is one
	lies     volume.Snapshot    // what the files lie on, if they do
}

// Valid is nil as long as what was read of the image is what the origin was. Ask after the
// last byte: the files of a snapshot that has overflowed may still be answered from a cache.
func (img openedImage) Valid(ctx context.Context) error {
	if img.lies == nil {
		return nil
	}
	fill, err := img.lies.Fill(ctx)
	if err == nil && !fill.Valid {
		err = &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + img.lies.Describe().Name + " has overflowed or is gone; what was read from it is worthless",
			Hint: "take another; on thick LVM a larger one (--snapshot-size), on thin LVM give the pool room"}
	}
	return err
}

// withImage opens an image for the length of a call. While its files lie on a snapshot, the
// context that use receives ends as soon as that is about to overflow, with the cause: use
// must let go of the files then. What it did with a snapshot that was lost meanwhile is an
// error, whatever use returns.
//
// What was acquired for it is released when the operation ends.
func (op *operation) withImage(ctx context.Context, request imageRequest, use func(context.Context, openedImage) error) error {
	switch {
	case request.Ref == imageNow:
		return op.withNow(ctx, request.Writable, use)
	case volume.IsName(request.Ref):
		return op.withKept(ctx, request.Ref, request.Writable, use)
	}
	return op.withBackup(ctx, request, use)
}

// withNow freezes the server as a backup does.
func (op *operation) withNow(ctx context.Context, writable bool, use func(context.Context, openedImage) error) error {
	f, m, err := op.freezeNow(ctx)
	if err != nil {
		return err
	}
	return op.watched(ctx, f, f.snapshot, false, func(ctx context.Context) error {
		if err := op.gather(ctx, f); err != nil {
			return err
		}
		view := f.snapshot
		if writable {
			if view, err = op.writableView(ctx, f); err != nil {
				return err
			}
		}
		root, _, err := op.mount(ctx, view, "image", writable)
		if err != nil {
			return err
		}
		d := f.snapshot.Describe()
		op.Report.Step("opened", openedText(f.volume.Kind, writable))
		return use(ctx, openedImage{Manifest: m, Dirs: f.dirs(root), Name: imageNow, What: "a snapshot taken now, " + d.Name, Snapshot: &d, lies: view})
	})
}

// freezeNow takes a snapshot that goes with the operation.
func (op *operation) freezeNow(ctx context.Context) (*frozen, respaldo.Manifest, error) {
	var f *frozen
	var m respaldo.Manifest
	err := op.alone(ctx, func(main *operation) error {
		main.makeRoom(ctx)
		outlook, err := op.look(ctx)
		if err != nil {
			return err
		}
		defer outlook.close()
		if err := outlook.Refusal(); err != nil {
			return err
		}
		if f, err = op.freeze(ctx, outlook, keep{}); err != nil {
			return err
		}
		m = op.manifest(outlook, f)
		return nil
	})
	return f, m, err
}

// withKept opens a kept snapshot, which stays as it is.
func (op *operation) withKept(ctx context.Context, name string, writable bool, use func(context.Context, openedImage) error) error {
	// Noted first: whoever would remove the snapshot looks for this.
	attrs := map[string]string{"name": name}
	used, err := op.ledger.Acquire(ctx, kindUse, attrs, func(*ledger.Held) error { return nil }, func(context.Context) error { return nil })
	if err != nil {
		return err
	}
	f, m, err := op.thaw(ctx, name)
	if err != nil {
		return err
	}
	d := f.snapshot.Describe()
	img := openedImage{Manifest: m, Name: name, What: "the snapshot " + name, Snapshot: &d}
	view := f.snapshot
	_, clones := f.snapshot.(volume.Cloner)
	if writable && clones {
		if view, err = op.writableView(ctx, f); err != nil {
			return err
		}
	}
	root, mounted, err := op.mount(ctx, view, "image", writable && clones)
	if err != nil {
		return err
	}
	op.Report.Step("opened", openedText(f.volume.Kind, writable && clones))
	open := func(ctx context.Context) error {
		if err := op.gather(ctx, f); err != nil {
			return err
		}
		img.Dirs, img.lies = f.dirs(root), view
		return use(ctx, img)
	}
	if !writable || clones {
		return op.watched(ctx, f, view, view == f.snapshot, open)
	}
	err = op.watched(ctx, f, view, true, func(ctx context.Context) error {
		if err := op.gather(ctx, f); err != nil {
			return err
		}
		return op.workingCopy(ctx, f, root, &img)
	})
	if err == nil {
		err = mounted.Release(ctx)
	}
	if err == nil {
		err = used.Release(ctx) // the copy is all that is needed
	}
	if err != nil {
		return err
	}
	return use(ctx, img)
}

// thaw is a kept snapshot as it was when it had just been taken.
func (op *operation) thaw(ctx context.Context, name string) (*frozen, respaldo.Manifest, error) {
	var m respaldo.Manifest
	snapshot, err := op.volumes.Lookup(ctx, name)
	if err != nil {
		return nil, m, err
	}
	d := snapshot.Describe()
	switch {
	case d.Server != op.Server:
		return nil, m, &respaldo.Error{Kind: respaldo.Refused, What: "the snapshot " + name + " is of server " + d.Server, Hint: "give --server " + d.Server}
	case !d.Kept:
		return nil, m, &respaldo.Error{Kind: respaldo.Refused, What: "the snapshot " + name + " belongs to an operation, and goes with it", Hint: "respaldo snapshot list shows those that stay"}
	}
	kept, err := op.loadKept(name)
	if err != nil {
		return nil, m, err
	}
	f := &frozen{volume: kept.Volume, snapshot: snapshot, quiesced: kept.Quiesced}
	for i, p := range kept.Layout.Places {
		if inside, ok := kept.inside(p); ok {
			f.covers = append(f.covers, Cover{Place: p, From: FromSnapshot, inside: inside})
			continue
		}
		// What lay elsewhere and does not change is as good now, if it is still there.
		if (p.Role == respaldo.OptionFileRole || p.Role == respaldo.KeyringRole) && exists(p.Real) {
			f.covers = append(f.covers, Cover{Place: p, From: FromLive})
			continue
		}
		kept.Layout.Places[i].Stored = ""
	}
	return f, kept.Manifest, nil
}

// workingCopy copies what a thick snapshot holds into a working folder: there is no
// snapshot of it, and it must not be changed.
func (op *operation) workingCopy(ctx context.Context, f *frozen, root string, img *openedImage) error {
	dir, err := op.scratch(ctx, op.workDir(), "copied")
	if err != nil {
		return err
	}
	tree := treeOf(&img.Manifest, f.dirs(root))
	targets, err := targets(img.Manifest, RestoreRequest{To: dir + "/data"})
	if err != nil {
		return err
	}
	copied, err := repo.Copy(ctx, tree, img.What, targets, repo.RestoreOptions{Working: true}, op.midway("image.copying"))
	if err != nil {
		return contextCause(ctx, err)
	}
	img.Dirs = restoredDirs(img.Manifest.Layout, targets)
	op.Report.Step("copied", fmt.Sprintf("%s into %s: a snapshot on thick LVM has no snapshots of its own", FormatBytes(copied.Bytes), dir))
	return nil
}

// withBackup restores a backup into a working folder. A server straight from the
// repository will come in here: its files mounted, in place of restored.
func (op *operation) withBackup(ctx context.Context, request imageRequest, use func(context.Context, openedImage) error) error {
	return op.inScratch(ctx, op.workDir(), "restored", func(dir string) error {
		img, err := op.fetch(ctx, request, dir)
		if err != nil {
			return err
		}
		return use(ctx, img)
	})
}

// fetch has the repository open no longer than it must: an image may be in use for hours.
func (op *operation) fetch(ctx context.Context, request imageRequest, dir string) (img openedImage, err error) {
	repository, err := op.Repository(ctx)
	if err != nil {
		return img, err
	}
	defer closeRepo(ctx, repository, &err)
	b, err := repository.Find(ctx, request.Of, request.Ref)
	if err != nil {
		return img, err
	}
	if b.Manifest.Dump != nil {
		return img, &respaldo.Error{Kind: respaldo.Usage, What: b.ID + " is a dump, and no image",
			Hint: "load it into a server: respaldo restore " + b.ID + " --to DIR writes the file"}
	}
	return op.restoreImage(ctx, repository, b, dir)
}

// restoreImage restores a backup into an empty working folder, as it was: an instance sees
// the files under the origin's own paths.
func (op *operation) restoreImage(ctx context.Context, r *repo.Repo, b respaldo.Backup, dir string) (openedImage, error) {
	targets, err := targets(b.Manifest, RestoreRequest{To: dir + "/data"})
	if err != nil {
		return openedImage{}, err
	}
	if err := r.Restore(ctx, b, targets, repo.RestoreOptions{Working: true}, op.Report.Progress); err != nil {
		return openedImage{}, contextCause(ctx, err)
	}
	return openedImage{Manifest: b.Manifest, Dirs: restoredDirs(b.Manifest.Layout, targets),
		Name: b.ID, What: "the backup " + b.ID, Backup: &b}, nil
}

// watched runs do while the fill of a snapshot is watched. One that is kept is not Watch's
// to remove.
func (op *operation) watched(ctx context.Context, f *frozen, s volume.Snapshot, kept bool, do func(context.Context) error) error {
	options := op.watchOptions(f.volume.Kind, kept)
	if f.volume.Kind == respaldo.Btrfs {
		options.Every = 5 * time.Second // each look is a mount, which others may listen to for hours
	}
	watching, stillValid := volume.Watch(ctx, s, options)
	err := do(watching)
	if lost := stillValid(); lost != nil && !errors.Is(err, lost) {
		return joinErrors(lost, err) // why the rest failed, if it did
	}
	return err
}

func openedText(kind respaldo.VolumeKind, writable bool) string {
	if writable {
		return string(kind) + " snapshot, a writable view of it"
	}
	return string(kind) + " snapshot, read-only"
}
