package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo"
)

// Copied is what Copy has written.
type Copied struct {
	Bytes   int64
	Files   int
	Skipped []string // sockets and fifos
}

// Copy writes a tree of this machine into targets, with no repository between, and keeps
// every promise that Restore makes about them. What names the tree for people. The tree must
// stand still.
func Copy(ctx context.Context, t Tree, what string, targets map[string]string, o RestoreOptions, report func(respaldo.Progress)) (*Copied, error) {
	s, err := scanTree(ctx, t, time.Now())
	if err != nil {
		return nil, unreadable(err)
	}
	c := &treeCopy{sources: map[*restoredFile]*node{}}
	w := &writing{what: what, owners: newOwners(fileTable{}), sparse: map[string]bool{}, progress: reporter("copy", 0, report)}
	for _, name := range s.table.Sparse {
		w.sparse[name] = true
	}
	var parts []*part
	for stored, target := range targets {
		n := s.root.find(path.Clean(stored))
		if n == nil {
			return nil, &respaldo.Error{Kind: respaldo.NotFound, What: fmt.Sprintf("%s has no %s", what, stored), Hint: "see what places it has"}
		}
		p := &part{target: target}
		c.plan(p, n, "")
		if parts, err = addPart(parts, p); err != nil {
			return nil, err
		}
	}
	w.copy = func(ctx context.Context, parts []*part) error { return c.run(ctx, w, parts) }
	if err := w.write(ctx, parts, o); err != nil {
		return nil, err
	}
	return &Copied{Bytes: w.progress.done.Load(), Files: int(w.progress.files.Load()), Skipped: s.skipped}, nil
}

// find is what lies at a path below a node, nil if nothing does.
func (n *node) find(name string) *node {
	for _, part := range strings.Split(name, "/") {
		i := slices.IndexFunc(n.children, func(c *node) bool { return c.name == part })
		if i < 0 {
			return nil
		}
		n = n.children[i]
	}
	return n
}

// treeCopy is one Copy at work.
type treeCopy struct {
	sources map[*restoredFile]*node
}

func (c *treeCopy) plan(p *part, n *node, rel string) {
	f := &restoredFile{part: p, stored: n.stored, path: rel}
	c.sources[f] = n
	switch {
	case n.info.mode.IsDir():
		f.entry = n.dirEntry(snapshot.EntryTypeDirectory)
		p.dirs = append(p.dirs, f)
		for _, child := range n.children {
			c.plan(p, child, path.Join(rel, child.name))
		}
	case n.info.mode.IsRegular():
		f.entry = n.dirEntry(snapshot.EntryTypeFile)
		p.files = append(p.files, f)
	default:
		f.entry = n.dirEntry(snapshot.EntryTypeSymlink)
		p.links = append(p.links, link{f, string(n.data)})
	}
	if rel == "" {
		p.entry = f.entry
	}
}

// run copies the contents; two files at once keep the disk busy at the ends of files.
func (c *treeCopy) run(ctx context.Context, w *writing, parts []*part) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, p := range parts {
		for _, f := range p.files {
			if gctx.Err() != nil {
				break
			}
			group.Go(func() error { return c.file(gctx, w, f) })
		}
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *treeCopy) file(ctx context.Context, w *writing, f *restoredFile) (err error) {
	n := c.sources[f]
	unread := func(err error) error {
		return &respaldo.Error{Kind: respaldo.Failed, What: fmt.Sprintf("cannot read %s of %s", f.stored, w.what), Err: err}
	}
	var in io.Reader = strings.NewReader(string(n.data))
	if n.path != "" {
		file, err := os.Open(n.path)
		if err != nil {
			return unread(err)
		}
		defer file.Close()
		in = file
	}
	if f.out, err = f.part.create(f); err != nil {
		return f.part.explain(err)
	}
	defer f.out.Close() // again, where all went well
	buffer := make([]byte, 1<<20)
	for at := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		got, err := io.ReadFull(in, buffer)
		if errors.Is(err, io.EOF) && at != f.entry.FileSize || err == nil && at+int64(got) > f.entry.FileSize {
			return unread(errChanged)
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return unread(err)
		}
		if got == 0 {
			break
		}
		if !w.sparse[f.stored] || !allZero(buffer[:got]) {
			if _, err := f.out.WriteAt(buffer[:got], at); err != nil {
				return f.part.explain(err)
			}
		}
		at += int64(got)
		w.progress.add(int64(got))
	}
	w.progress.file()
	return f.part.explain(w.owners.finish(f))
}
