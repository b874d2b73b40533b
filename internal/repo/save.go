package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kfs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// flushBytes is how much is read between two flushes of the index: an interrupted save is
// found again up to there, and the index of what is not flushed is all that grows in memory.
const flushBytes = 4 << 30

// Saved is a tree that lies in the repository and is not yet a backup: Record makes it one.
// What is never recorded is removed by maintenance, a day later at the earliest.
type Saved struct {
	Server  string
	Start   time.Time
	End     time.Time
	Bytes   int64    // of the files
	Files   int      // regular files
	Read    int64    // bytes read from disk
	Stored  int64    // bytes that this added to the repository, compressed
	Skipped []string // sockets and fifos, as named in the tree

	root  *node
	table fileTable
}

// Save uploads the tree. Every file is read, whatever its size and time say: InnoDB writes
// without touching either. No ignore file and no policy has a say; whatever cannot be read
// or kept fails the save, except sockets and fifos, which Saved lists.
//
// Nothing is visible before Record. What a cancelled or failed save has uploaded stays for
// the next one to find, or goes if the repository cannot take that in. progress is called from several goroutines, not concurrently.
func (r *Repo) Save(ctx context.Context, server string, t Tree, progress func(respaldo.Progress)) (*Saved, error) {
	saved := &Saved{Server: server, Start: time.Now()}
	s, err := scanTree(ctx, t, saved.Start)
	if err != nil {
		return nil, unreadable(err)
	}
	saved.Skipped, saved.root, saved.table = s.skipped, s.root, s.table

	var stored atomic.Int64
	var written packs
	ctx = written.watch(withLog(ctx, r.opts.Log))
	_, w, err := r.rep.NewDirectWriter(ctx, repo.WriteSessionOptions{Purpose: "save", OnUpload: func(n int64) { stored.Add(n) }})
	if err != nil {
		return nil, r.where.explain("cannot write into the repository", err)
	}
	defer w.Close(context.WithoutCancel(ctx))

	u := &upload{w: w, written: &written, async: r.writers(), progress: reporter("save", s.bytes, progress)}
	err = u.run(ctx, s)
	if err == nil {
		err = u.flush(ctx)
	}
	if err != nil {
		u.giveUp(ctx, r.opts.Log)
		var local *localError
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.As(err, &local):
			return nil, unreadable(local.err)
		}
		return nil, r.where.explain("cannot write into the repository", err)
	}
	u.progress.finish()
	saved.End, saved.Bytes, saved.Files = time.Now(), s.bytes+u.streamed.Load(), u.files
	saved.Read, saved.Stored = u.progress.done.Load(), stored.Load()
	return saved, nil
}

// localError is a failure to read what should be saved; all others are the repository's.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

func unreadable(err error) error {
	var ours *respaldo.Error
	if errors.As(err, &ours) || errors.Is(err, context.Canceled) {
		return err
	}
	hint := "the backup would not be whole without it: find out why it cannot be read"
	if errors.Is(err, fs.ErrPermission) {
		hint = "run respaldo as root, or as the user that owns the data directory"
	}
	return &respaldo.Error{Kind: respaldo.Failed, What: "cannot save a file", Hint: hint, Err: err}
}

// upload is one Save at work.
type upload struct {
	w        repo.DirectRepositoryWriter
	written  *packs
	progress *progress
	async    int
	files    int
	streamed atomic.Int64 // bytes of what had no length when it was listed

	flushing  sync.Mutex
	unflushed atomic.Int64
}

func (u *upload) run(ctx context.Context, s *scan) error {
	// Two files at once keep the processors busy while one of them waits for the disk.
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	// The biggest first: otherwise the last one runs alone.
	slices.SortStableFunc(s.files, func(a, b *node) int { return cmp.Compare(b.info.size, a.info.size) })
	for _, n := range s.files {
		if gctx.Err() != nil {
			break
		}
		if n.info.mode.IsRegular() {
			u.files++
		}
		group.Go(func() error { return u.file(gctx, n) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, n := range s.root.children {
		if err := u.directory(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// writers is how many chunks of one file are compressed in parallel, so that one big table
// uses all processors. Each may end up writing a pack, which over a network takes 50 MB of
// memory for as long as it takes.
func (r *Repo) writers() int {
	if r.where.remote() {
		return 1
	}
	return min(runtime.GOMAXPROCS(0), 4)
}

// file saves one regular file or symlink. Whoever knows which of its bytes have not
// changed since an earlier backup reads less here: chunks are fixed, so an object made of
// that backup's chunks and the changed ones has the same ID as one read in full.
func (u *upload) file(ctx context.Context, n *node) error {
	o := object.WriterOptions{Description: n.stored, MetadataCompressor: compressor}
	kind := snapshot.EntryTypeSymlink
	if n.info.mode.IsRegular() {
		kind, o.Compressor, o.Splitter, o.AsyncWrites = snapshot.EntryTypeFile, compressor, chunkSplitter, u.async
	}
	if n.stream != nil {
		o.Splitter = streamSplitter
	}
	w := u.w.NewObjectWriter(ctx, o)
	defer w.Close()
	if n.stream != nil {
		total, err := u.pump(ctx, w, n.stream)
		if err != nil {
			return err
		}
		n.info.size = total
		u.streamed.Add(total)
	} else if n.data != nil {
		if _, err := w.Write(n.data); err != nil {
			return err
		}
		n.info.size = int64(len(n.data))
		if kind == snapshot.EntryTypeFile {
			u.progress.add(n.info.size)
		}
	} else if err := u.copy(ctx, w, n); err != nil {
		return err
	}
	id, err := w.Result()
	if err != nil {
		return err
	}
	n.entry = n.dirEntry(kind)
	n.entry.ObjectID = id
	n.data = nil
	if kind == snapshot.EntryTypeFile {
		u.progress.file()
	}
	return nil
}

var readBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

func (u *upload) copy(ctx context.Context, w io.Writer, n *node) error {
	// O_NOFOLLOW and O_NONBLOCK: what was a file when it was listed must still be one.
	f, err := os.OpenFile(n.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return &localError{err}
	}
	defer f.Close()
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	total, err := u.pump(ctx, w, f)
	if err != nil {
		return err
	}
	if total != n.info.size {
		return &localError{&respaldo.Error{Kind: respaldo.Failed,
			What: fmt.Sprintf("%s had %d bytes, then %d", n.path, n.info.size, total),
			Hint: "what is saved must not be written to: save a snapshot", Err: errChanged}}
	}
	return nil
}

// pump writes all that r has, and returns how much that was.
func (u *upload) pump(ctx context.Context, w io.Writer, r io.Reader) (total int64, err error) {
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		got, err := r.Read(*buf)
		if got > 0 {
			if _, err := w.Write((*buf)[:got]); err != nil {
				return total, err
			}
			total += int64(got)
			u.progress.add(int64(got))
			if err := u.flushNow(ctx, int64(got)); err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, &localError{err}
		}
	}
}

func (u *upload) flushNow(ctx context.Context, n int64) error {
	if u.unflushed.Add(n) < flushBytes || !u.flushing.TryLock() {
		return nil
	}
	defer u.flushing.Unlock()
	u.unflushed.Store(0)
	return u.flush(ctx)
}

func (u *upload) flush(ctx context.Context) error {
	err := u.w.Flush(ctx)
	if err == nil {
		u.written.flushed()
	}
	return err
}

// giveUp ends a save that failed. The next attempt finds what is uploaded only if the
// index says so; what does not get into the index is useless.
func (u *upload) giveUp(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	err := u.flush(ctx)
	if err != nil {
		err = u.written.discard(ctx, u.w.BlobStorage())
	}
	if err != nil && log != nil {
		log.Warn("what a failed save has uploaded stays until maintenance finds it", "error", err)
	}
}

// directory writes the directories from the leaves up; files are saved by then.
func (u *upload) directory(ctx context.Context, n *node) error {
	if n.entry != nil {
		return nil
	}
	for _, child := range n.children {
		if err := u.directory(ctx, child); err != nil {
			return err
		}
	}
	var err error
	n.entry, err = writeDirectory(ctx, u.w, n, n.children)
	return err
}

func writeDirectory(ctx context.Context, w repo.RepositoryWriter, n *node, children []*node) (*snapshot.DirEntry, error) {
	var b snapshotfs.DirManifestBuilder
	for _, child := range children {
		b.AddEntry(child.entry)
	}
	list := b.Build(kfs.UTCTimestampFromTime(n.info.mtime), "")
	id, err := snapshotfs.WriteDirManifest(ctx, w, path.Clean(n.stored), list, compressor)
	if err != nil {
		return nil, err
	}
	entry := n.dirEntry(snapshot.EntryTypeDirectory)
	entry.FileSize, entry.ObjectID, entry.DirSummary = 0, id, list.Summary
	return entry, nil
}

// progress counts for one operation and reports at most ten times a second.
type progress struct {
	phase  string
	total  int64
	report func(respaldo.Progress)
	done   atomic.Int64
	files  atomic.Int64

	mu   sync.Mutex
	last time.Time
}

func reporter(phase string, total int64, report func(respaldo.Progress)) *progress {
	p := &progress{phase: phase, total: total, report: report}
	p.finish()
	return p
}

func (p *progress) add(n int64) {
	p.done.Add(n)
	if p.report == nil || !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	if time.Since(p.last) > 100*time.Millisecond {
		p.tell()
	}
}

func (p *progress) file() { p.files.Add(1) }

// finish reports once more, whatever the last report was.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell()
}

func (p *progress) tell() {
	if p.report != nil {
		if p.done.Load() > 0 { // the first bytes are always reported: it moves
			p.last = time.Now()
		}
		p.report(respaldo.Progress{Phase: p.phase, Done: p.done.Load(), Total: p.total, Files: int(p.files.Load())})
	}
}
