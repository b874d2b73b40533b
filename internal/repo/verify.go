package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo"
)

// Verified is what Verify read, and what of it is damaged.
type Verified struct {
	Bytes   int64
	Files   int
	Damaged []Damage // by path
}

// Damage is a file or directory of a backup that cannot be read back whole.
type Damage struct {
	Path string
	Err  error
}

// Verify reads all of a backup's data back from the repository, past every cache, and
// checks that each byte is what was written. It goes on after a damaged file and fails in
// the end with Kind RepoFailed; Verified tells what was found in any case.
func (r *Repo) Verify(ctx context.Context, b respaldo.Backup, report func(respaldo.Progress)) (Verified, error) {
	var v Verified
	ctx = withLog(ctx, r.opts.Log)
	rd, err := r.reader(ctx)
	if err != nil {
		return v, err
	}
	root, err := r.root(ctx, b)
	if err != nil {
		return v, err
	}

	p := reporter("verify", b.Bytes, report)
	var mu sync.Mutex
	damaged := map[string]error{}
	note := func(path string, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		mu.Lock()
		defer mu.Unlock()
		if damaged[path] == nil {
			damaged[path] = cause(err)
		}
		return nil
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(r.readers())
	file := func(path string, e *snapshot.DirEntry) error {
		list, err := rd.chunks(gctx, e)
		if err != nil {
			return note(path, err)
		}
		for batch := range slices.Chunk(list, batchChunks) {
			group.Go(func() error {
				for _, c := range batch {
					data, err := rd.read(gctx, c)
					if err != nil {
						if err := note(path, err); err != nil {
							return err
						}
					}
					p.add(int64(len(data)))
				}
				return nil
			})
		}
		if e.Type == snapshot.EntryTypeFile {
			p.file()
		}
		return nil
	}
	var walk func(path string, e *snapshot.DirEntry) error
	walk = func(path string, e *snapshot.DirEntry) error {
		if gctx.Err() != nil {
			return context.Cause(gctx)
		}
		if e.Type != snapshot.EntryTypeDirectory {
			return file(path, e)
		}
		children, err := rd.directory(gctx, e)
		if err != nil {
			return note(path+"/", err)
		}
		for _, child := range children {
			if err := walk(strings.TrimPrefix(path+"/"+child.Name, "/"), child); err != nil {
				return err
			}
		}
		return nil
	}
	err = walk("", root)
	err = errors.Join(err, group.Wait())
	p.finish()
	if ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	if err != nil {
		return v, r.where.explain("cannot verify a backup in", err)
	}
	v.Bytes, v.Files = p.done.Load(), int(p.files.Load())
	for path, err := range damaged {
		v.Damaged = append(v.Damaged, Damage{path, err})
	}
	slices.SortFunc(v.Damaged, func(a, b Damage) int { return strings.Compare(a.Path, b.Path) })
	if n := len(v.Damaged); n > 0 {
		return v, &respaldo.Error{Kind: respaldo.RepoFailed,
			What: fmt.Sprintf("backup %s is damaged in the repository: %s", b.ID[:min(shortID, len(b.ID))], names(v.Damaged)),
			Hint: "make a new backup now, verify older ones, and look at the repository's disk", Err: v.Damaged[0].Err}
	}
	return v, nil
}

// names lists the first few.
func names(list []Damage) string {
	var parts []string
	for _, d := range list[:min(3, len(list))] {
		parts = append(parts, d.Path)
	}
	if more := len(list) - len(parts); more > 0 {
		parts = append(parts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(parts, ", ")
}
