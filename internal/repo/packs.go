package repo

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
)

// packs are the blobs that a save has written since the index was last flushed. When the
// save fails for good they would be dead weight for days, until maintenance may judge
// them: on a repository that has just run full, all the space that there was.
type packs struct {
	mu    sync.Mutex
	ids   []blob.ID
	index bool // an index may refer to them: then they are no longer ours to delete
}

type packsKey struct{}

// watch makes a context whose writes are noted in p.
func (p *packs) watch(ctx context.Context) context.Context {
	return context.WithValue(ctx, packsKey{}, p)
}

// dataBlob tells packs and the marker of the session that writes them from everything else.
func dataBlob(id blob.ID) bool {
	for _, prefix := range append(content.PackBlobIDPrefixes, content.BlobIDPrefixSession) {
		if strings.HasPrefix(string(id), string(prefix)) {
			return true
		}
	}
	return false
}

// begin is called before a blob is written. Of an index even a failed write may be there.
func (p *packs) begin(id blob.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index = p.index || !dataBlob(id)
}

func (p *packs) written(id blob.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dataBlob(id) {
		p.ids = append(p.ids, id)
	}
}

// flushed is called after a flush that succeeded.
func (p *packs) flushed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids, p.index = nil, false
}

// discard deletes what nothing can refer to.
func (p *packs) discard(ctx context.Context, st blob.Storage) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.index {
		return nil
	}
	var failed error
	for _, id := range p.ids {
		failed = errors.Join(failed, st.DeleteBlob(ctx, id))
	}
	return failed
}
