package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// RestoreOptions change what Restore allows.
type RestoreOptions struct {
	// Force replaces what a target holds: it is removed first, all of it.
	Force bool
	// Working says that the files are ours, for a while: a twentieth of the filesystem stays
	// free for others, the origin perhaps.
	Working bool
	// Begin, if set, is called for each target right before anything in it is removed or
	// written: the caller's last chance to refuse.
	Begin func(target string) error
	// Finish, if set, is called when everything is written, belongs to whom it should (a
	// server may be started on it), and is still marked as incomplete: the
	// caller's last changes to the files. Its error leaves the targets incomplete.
	Finish func() error
}

// Restore writes parts of a backup into targets: from each stored name (Place.Stored, or
// any path below one) to an absolute path. A stored directory becomes the target itself;
// its parent directories are made. Targets lie neither in one another nor, without Force,
// hold anything.
//
// Modes and times are as they were, and so are the owners when root restores: by name
// where this machine knows it, else by number. Everything is on disk, fsynced, when Restore
// returns nil. Until then a directory contains the file target.IncompleteMarker, and may be
// restored into again without Force. Nothing outside of the targets is written to,
// whatever links the backup contains.
func (r *Repo) Restore(ctx context.Context, b respaldo.Backup, targets map[string]string, o RestoreOptions, report func(respaldo.Progress)) error {
	if err := tooNew(b); err != nil {
		return err
	}
	ctx = withLog(ctx, r.opts.Log)
	root, err := r.root(ctx, b)
	if err != nil {
		return err
	}
	rd, err := r.reader(ctx)
	if err != nil {
		return err
	}
	run := &restoring{writing: writing{what: "backup " + b.ID, sparse: map[string]bool{}, progress: reporter("restore", 0, report)}, r: r, rd: rd, backup: b.ID}
	var table fileTable
	if err := rd.json(ctx, root, filesName, &table); err != nil {
		return r.where.explain("cannot read a backup in", err)
	}
	run.owners = newOwners(table)
	for _, name := range table.Sparse {
		run.sparse[name] = true
	}
	parts, err := run.plan(ctx, root, targets)
	if err != nil {
		return err
	}
	run.copy = run.fetch
	return run.write(ctx, parts, o)
}

// writing is what writes planned parts into their targets, wherever the contents come from.
type writing struct {
	what     string // for the mark of an incomplete restore
	owners   *owners
	sparse   map[string]bool // by stored name
	progress *progress
	copy     func(context.Context, []*part) error // the contents of all files
}

func (w *writing) write(ctx context.Context, parts []*part, o RestoreOptions) error {
	defer func() {
		for _, p := range parts {
			p.close()
		}
	}()
	begun := false
	defer func() {
		if begun {
			return
		}
		for _, p := range slices.Backward(parts) {
			target.Unmake(p.made)
		}
	}()
	for _, p := range parts {
		if err := p.open(o.Force); err != nil {
			return p.explain(err)
		}
	}
	if err := enoughRoom(parts, w.sparse, o.Working); err != nil {
		return err
	}
	for _, p := range parts {
		for _, f := range p.files {
			w.progress.total += f.entry.FileSize
		}
	}
	for _, p := range parts {
		if o.Begin != nil {
			if err := o.Begin(p.target); err != nil {
				return err
			}
		}
		begun = true
		if err := p.begin(w.what); err != nil {
			return p.explain(err)
		}
	}
	if err := w.copy(ctx, parts); err != nil {
		return err
	}
	w.progress.finish()
	for _, p := range parts {
		for _, l := range p.links {
			if err := w.owners.link(l); err != nil {
				return p.explain(err)
			}
		}
	}
	if o.Finish != nil {
		for _, p := range parts {
			if err := p.ownDirectories(w.owners); err != nil {
				return p.explain(err)
			}
		}
		if err := o.Finish(); err != nil {
			return err
		}
	}
	for _, p := range parts {
		if err := p.finish(ctx, w.owners); err != nil {
			return p.explain(err)
		}
	}
	return nil
}

// root finds a backup's tree.
func (r *Repo) root(ctx context.Context, b respaldo.Backup) (*snapshot.DirEntry, error) {
	var man snapshot.Manifest
	_, err := r.rep.GetManifest(ctx, manifest.ID(b.ID), &man)
	if errors.Is(err, manifest.ErrNotFound) {
		return nil, &respaldo.Error{Kind: respaldo.NotFound, What: "there is no backup " + b.ID + " any more", Hint: "respaldo list shows what there is"}
	} else if err != nil {
		return nil, r.where.explain("cannot read a backup in", err)
	}
	return man.RootEntry, nil
}

// restoring is one Restore at work.
type restoring struct {
	writing
	r      *Repo
	rd     *reader
	backup string
}

// restoredFile is a regular file, symlink or directory to be made.
type restoredFile struct {
	part   *part
	entry  *snapshot.DirEntry
	stored string // in the backup
	path   string // relative to the part's root
	out    *os.File
	left   atomic.Int64 // chunks
}

// plan reads the directories of all that is asked for.
func (run *restoring) plan(ctx context.Context, root *snapshot.DirEntry, targets map[string]string) ([]*part, error) {
	var parts []*part
	for stored, target := range targets {
		entry, err := run.lookup(ctx, root, stored)
		if err != nil {
			return nil, err
		}
		p := &part{target: target, entry: entry}
		err = run.walk(ctx, p, path.Clean(stored), "", entry)
		if err != nil {
			return nil, run.r.where.explain("cannot read the directories of a backup in", err)
		}
		if parts, err = addPart(parts, p); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// addPart adds a target that must not lie in another, in the order of their paths.
func addPart(parts []*part, p *part) ([]*part, error) {
	if !filepath.IsAbs(p.target) {
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("target %q is not an absolute path", p.target), Hint: "name it from the root"}
	}
	p.target = filepath.Clean(p.target)
	for _, other := range parts {
		if inside(p.target, other.target) || inside(other.target, p.target) {
			return nil, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("one target lies in another: %s and %s", other.target, p.target),
				Hint: "restore the outer one first, and the inner one in a second run"}
		}
	}
	parts = append(parts, p)
	slices.SortFunc(parts, func(a, b *part) int { return strings.Compare(a.target, b.target) })
	return parts, nil
}

func inside(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

func (run *restoring) lookup(ctx context.Context, root *snapshot.DirEntry, stored string) (*snapshot.DirEntry, error) {
	entry := root
	for _, name := range strings.Split(path.Clean(stored), "/") {
		children, err := run.rd.directory(ctx, entry)
		if err != nil {
			return nil, run.r.where.explain("cannot read the directories of a backup in", err)
		}
		i := slices.IndexFunc(children, func(e *snapshot.DirEntry) bool { return e.Name == name })
		if i < 0 {
			var there []string
			for _, e := range children {
				there = append(there, e.Name)
			}
			return nil, &respaldo.Error{Kind: respaldo.NotFound, What: fmt.Sprintf("the backup has no %s", stored),
				Hint: "it has " + strings.Join(there, ", ")}
		}
		entry = children[i]
	}
	return entry, nil
}

func (run *restoring) walk(ctx context.Context, p *part, stored, rel string, e *snapshot.DirEntry) error {
	f := &restoredFile{part: p, entry: e, stored: stored, path: rel}
	switch e.Type {
	case snapshot.EntryTypeFile:
		p.files = append(p.files, f)
	case snapshot.EntryTypeSymlink:
		target, err := run.rd.all(ctx, e)
		if err != nil {
			return err
		}
		p.links = append(p.links, link{f, string(target)})
	case snapshot.EntryTypeDirectory:
		p.dirs = append(p.dirs, f)
		children, err := run.rd.directory(ctx, e)
		if err != nil {
			return err
		}
		for _, child := range children {
			if rel == "" && child.Name == target.IncompleteMarker {
				continue // in older backups: the mark of another restore
			}
			if err := run.walk(ctx, p, stored+"/"+child.Name, path.Join(rel, child.Name), child); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("%s has the unknown type %q", stored, e.Type)
	}
	return nil
}

// fetch writes the contents of all files: one goroutine opens them in order and hands out
// their chunks, the others fetch and write them. Whoever writes a file's last chunk closes it.
func (run *restoring) fetch(ctx context.Context, parts []*part) error {
	type batch struct {
		file   *restoredFile
		chunks []chunk
	}
	work := make(chan batch)
	var mu sync.Mutex
	open := map[*restoredFile]bool{}
	done := func(f *restoredFile) error {
		mu.Lock()
		delete(open, f)
		mu.Unlock()
		run.progress.file()
		return run.owners.finish(f)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(work)
		for _, p := range parts {
			for _, f := range p.files {
				list, err := run.rd.chunks(gctx, f.entry)
				if err != nil {
					return run.unreadable(f, err)
				}
				if f.out, err = p.create(f); err != nil {
					return p.explain(err)
				}
				mu.Lock()
				open[f] = true
				mu.Unlock()
				f.left.Store(int64(len(list)))
				for b := range slices.Chunk(list, batchChunks) {
					select {
					case work <- batch{f, b}:
					case <-gctx.Done():
						return gctx.Err()
					}
				}
			}
		}
		return nil
	})
	for range run.r.readers() {
		group.Go(func() error {
			for b := range work {
				f := b.file
				for _, c := range b.chunks {
					data, err := run.rd.read(gctx, c)
					if err != nil {
						return run.unreadable(f, err)
					}
					// Holes come back where the origin had them; elsewhere a server may
					// count on the space being there.
					if !run.sparse[f.stored] || !allZero(data) {
						if _, err := f.out.WriteAt(data, c.offset); err != nil {
							return f.part.explain(err)
						}
					}
					run.progress.add(int64(len(data)))
				}
				if f.left.Add(-int64(len(b.chunks))) == 0 {
					if err := done(f); err != nil {
						return f.part.explain(err)
					}
				}
			}
			return nil
		})
	}
	err := group.Wait()
	for f := range open {
		f.out.Close()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (run *restoring) unreadable(f *restoredFile, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return &respaldo.Error{Kind: respaldo.RepoFailed, What: fmt.Sprintf("cannot read %s of backup %s in %s", f.stored, run.backup[:min(shortID, len(run.backup))], run.r.where.name),
		Hint: "respaldo verify tells what else is damaged; restore another backup", Err: cause(err)}
}

func allZero(b []byte) bool {
	for len(b) >= len(zeros) {
		if [len(zeros)]byte(b[:len(zeros)]) != zeros {
			return false
		}
		b = b[len(zeros):]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

var zeros [512]byte
