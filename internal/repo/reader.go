package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
)

// reader reads objects chunk by chunk. kopia's own object reader reads one after the other;
// here the chunks of a file can be fetched in any order and in parallel, which hides the
// latency of a remote repository.
type reader struct{ content content.Reader }

func newReader(rep repo.DirectRepository) *reader { return &reader{rep.ContentReader()} }

// memoryIndexBytes is up to which size a repository's index is read into memory: about
// 200 GB of different data.
const memoryIndexBytes = 64 << 20

// uncached is the repository opened a second time, to read much: kopia would write every
// chunk into its cache first, and what an earlier run has cached may be fine where the
// repository is not. Only a big index makes it take a cache, of its own, so that the index
// is mapped and not in memory.
type uncached struct {
	mu  sync.Mutex
	rep repo.DirectRepository
	dir string
}

// reader returns a reader past the caches; Close ends it.
func (r *Repo) reader(ctx context.Context) (*reader, error) {
	u := &r.uncached
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rep != nil {
		if err := u.rep.Refresh(ctx); err != nil {
			return nil, r.where.explain("cannot read the index of the repository", err)
		}
		return newReader(u.rep), nil
	}
	blobs, err := r.rep.IndexBlobs(ctx, false)
	if err != nil {
		return nil, r.where.explain("cannot read the index of the repository", err)
	}
	var index int64
	for _, b := range blobs {
		index += b.Length
	}
	r.sweep()
	dir, err := os.MkdirTemp(r.dir, "read-*")
	if err != nil {
		return nil, noCache(err)
	}
	caching := &content.CachingOptions{}
	if index > memoryIndexBytes {
		caching = &content.CachingOptions{CacheDirectory: dir, MetadataCacheSizeBytes: 64 << 20, MetadataCacheSizeLimitBytes: 64 << 20}
	}
	rep, err := r.open(context.WithoutCancel(ctx), filepath.Join(filepath.Base(dir), "repository"), caching)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	u.rep, u.dir = rep, dir
	return newReader(rep), nil
}

// sweep removes what killed processes left beside the caches. No restore takes a month.
func (r *Repo) sweep() {
	old, _ := filepath.Glob(filepath.Join(r.dir, "read-*"))
	for _, dir := range old {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > 30*24*time.Hour {
			os.RemoveAll(dir)
		}
	}
}

func (u *uncached) close(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rep == nil {
		return nil
	}
	err := errors.Join(u.rep.Close(ctx), os.RemoveAll(u.dir))
	u.rep = nil
	return err
}

// batchChunks is how many chunks one goroutine reads in a row: 2 MiB.
const batchChunks = 16

// readers is how many chunks to read at once: enough to use the processors, and over a
// network to hide its latency (30 ms a chunk are 4 MB/s one by one).
func (r *Repo) readers() int {
	if r.where.remote() {
		return 32
	}
	return max(2, runtime.GOMAXPROCS(0))
}

// contents is what object.LoadIndexObject asks for.
type contents struct{ content.Reader }

func (contents) PrefetchContents(context.Context, []content.ID, string) []content.ID { return nil }

// chunk is a piece of a file, at most chunkBytes long where respaldo wrote it.
type chunk struct {
	offset int64
	length int64
	id     content.ID
}

// chunks returns where the pieces of a file lie, in order and without gaps. It costs about
// 60 bytes of memory per chunk: 50 MB for 100 GB.
func (rd *reader) chunks(ctx context.Context, e *snapshot.DirEntry) ([]chunk, error) {
	index, indirect := e.ObjectID.IndexObjectID()
	if !indirect {
		id, err := direct(e.ObjectID)
		return []chunk{{0, e.FileSize, id}}, err
	}
	entries, err := object.LoadIndexObject(ctx, contents{rd.content}, index)
	if err != nil {
		return nil, err
	}
	list := make([]chunk, len(entries))
	var at int64
	for i, entry := range entries {
		id, err := direct(entry.Object)
		if err != nil {
			return nil, err
		}
		if entry.Start != at || entry.Length <= 0 {
			return nil, fmt.Errorf("the list of chunks of %s has a gap at byte %d", e.Name, at)
		}
		list[i] = chunk{at, entry.Length, id}
		at += entry.Length
	}
	if at != e.FileSize {
		return nil, fmt.Errorf("%s has %d bytes in its directory and %d in its chunks", e.Name, e.FileSize, at)
	}
	return list, nil
}

func direct(id object.ID) (content.ID, error) {
	cid, compressed, ok := id.ContentID()
	if !ok || compressed {
		return cid, fmt.Errorf("object %v is not of a kind that respaldo writes", id)
	}
	return cid, nil
}

// read returns one chunk's bytes; decrypting them proves that they are what was written.
func (rd *reader) read(ctx context.Context, c chunk) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, err := rd.content.GetContent(ctx, c.id)
	if err == nil && int64(len(data)) != c.length {
		err = fmt.Errorf("a chunk has %d bytes instead of %d", len(data), c.length)
	}
	return data, err
}

// all reads a whole file or symlink into memory.
func (rd *reader) all(ctx context.Context, e *snapshot.DirEntry) ([]byte, error) {
	list, err := rd.chunks(ctx, e)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	for _, c := range list {
		data, err := rd.read(ctx, c)
		if err != nil {
			return nil, err
		}
		buf.Write(data)
	}
	return buf.Bytes(), nil
}

// directory returns the entries of a directory, in kopia's order: directories first.
func (rd *reader) directory(ctx context.Context, e *snapshot.DirEntry) ([]*snapshot.DirEntry, error) {
	o, err := object.Open(ctx, contents{rd.content}, e.ObjectID)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	var list snapshot.DirManifest
	if err := json.NewDecoder(o).Decode(&list); err != nil {
		return nil, err
	}
	for _, child := range list.Entries {
		// Names come from whoever wrote the repository; they must stay below their directory.
		if !fs.ValidPath(child.Name) || child.Name == "." || strings.Contains(child.Name, "/") {
			return nil, fmt.Errorf("directory %q has an entry called %q", e.Name, child.Name)
		}
	}
	return list.Entries, nil
}
