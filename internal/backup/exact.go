package backup

import (
	"context"
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// readImage reads the coordinates of an image that was taken without a lock, under which
// the server would have said them, in its own binlogs. Nobody waits for it.
//
// The proof confirms them, or whatever else starts a server on the image.
func (op *operation) readImage(ctx context.Context, o *Outlook, f *frozen) error {
	if !f.quiesced.FromImage || !o.facts.BinlogOn {
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
		if f.quiesced.Coordinates, err = mysql.CoordinatesOf(ctx, m, dirs); err != nil {
			return joinErrors(contextCause(ctx, err), mounted.Release(ctx))
		}
		return mounted.Release(ctx)
	})
}

// noteProof writes the proof into the manifest; and what it has shown of an image that was
// taken without a lock and that no binlog says: how far a replica had come, and what of its
// source's GTIDs it has in a table only.
func noteProof(m *respaldo.Manifest, proof respaldo.Proof) {
	m.Proof = proof
	if m.Quiesced.FromImage && proof.OK {
		m.Quiesced.Coordinates.Upstream = proof.Coordinates.Upstream
		m.Quiesced.Coordinates.GTIDSet = proof.Coordinates.GTIDSet
	}
}
