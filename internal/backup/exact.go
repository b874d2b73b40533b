package backup

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// readImage reads the coordinates of an image that was taken without a lock, under which
// the server would have said them, in its own binlogs. Nobody waits for it. Whoever starts
// a server on the image has them confirmed: see noteStated.
func (op *operation) readImage(ctx context.Context, o *Outlook, f *frozen) error {
	if !f.quiesced.FromImage {
		return nil
	}
	at := &f.quiesced.Coordinates
	if len(at.Upstream) == 0 { // a replica's applier went on, and how far it was only a server on the image can say
		for _, u := range o.facts.Upstream {
			at.Upstream = append(at.Upstream, respaldo.Upstream{Channel: u.Channel, Host: u.Host, Port: u.Port})
		}
	}
	if !o.facts.BinlogOn {
		return nil
	}
	m := respaldo.Manifest{Version: o.facts.Version, Layout: o.facts.Layout, BinlogOn: true, Variables: o.facts.Variables}
	return op.watched(ctx, f, f.snapshot, false, func(ctx context.Context) error {
		root, mounted, err := op.mount(ctx, f.snapshot, "coordinates", false)
		if err != nil {
			return err
		}
		dirs := map[string]string{}
		for real, inside := range f.inside() {
			dirs[real] = filepath.Join(root, inside)
		}
		read, err := mysql.CoordinatesOf(ctx, m, dirs)
		if err != nil {
			return joinErrors(contextCause(ctx, err), mounted.Release(ctx))
		}
		at.File, at.Position, at.GTIDSet = read.File, read.Position, read.GTIDSet
		return mounted.Release(ctx)
	})
}

// noteStated adds to the coordinates of an image that was taken without a lock what a server
// started on it states and no binlog says: how far a replica had come, unless its applier
// stood still for the snapshot and was asked, and what of its source's GTIDs it has in a
// table only. That server must have confirmed the rest.
func noteStated(m *respaldo.Manifest, stated respaldo.Coordinates) {
	if !m.Quiesced.FromImage {
		return
	}
	at := &m.Quiesced.Coordinates
	at.GTIDSet = stated.GTIDSet
	asked := func(u respaldo.Upstream) bool { return u.File != "" || u.GTIDSet != "" }
	if !slices.ContainsFunc(at.Upstream, asked) {
		at.Upstream = stated.Upstream
	}
}
