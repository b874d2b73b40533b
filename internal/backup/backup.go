package backup

import (
	"context"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// BackupRequest says what else is wanted of a backup.
type BackupRequest struct {
	KeepSnapshot bool          // leave its snapshot, as CreateSnapshot would
	TTL          time.Duration // of that snapshot; 0: until it is removed
}

// Made is a backup, and what making it took.
type Made struct {
	Backup          respaldo.Backup `json:"backup"`
	SnapshotSeconds float64         `json:"snapshot_seconds"` // how long the snapshot lived; 0 if it still does
	Kept            *KeptSnapshot   `json:"kept,omitempty"`   // the snapshot, if it was to stay; its manifest is the backup's
	Skipped         []string        `json:"skipped,omitempty"`
	Forgotten       []string        `json:"forgotten,omitempty"` // backups that retention let go
}

// Backup makes one backup: quiesce the server, snapshot its volume, release; save the
// image; prove it; remove the snapshot, unless it is to stay. The backup becomes visible in
// the repository only when it is saved and proved. An error leaves nothing behind, neither
// here nor there; unless it came after that (made.Backup has an ID), about the snapshot.
// How it went is remembered (Status), and the hooks are told.
func (s *Site) Backup(ctx context.Context, request BackupRequest) (made Made, err error) {
	started := time.Now()
	made, err = s.backup(ctx, request)
	s.noteEnd(started, made, err)
	s.tellHooks(ctx, made, err)
	return made, err
}

func (s *Site) backup(ctx context.Context, request BackupRequest) (made Made, err error) {
	op, err := s.begin(ctx, operationBackup)
	if err != nil {
		return made, err
	}
	defer op.close(ctx, &err)
	op.noteStart()
	if err := op.before(ctx); err != nil {
		return made, err
	}

	repository, err := s.Repository(ctx)
	if err != nil {
		return made, err
	}
	defer closeRepo(ctx, repository, &err)
	op.makeRoom(ctx)

	outlook, err := op.look(ctx)
	if err != nil {
		return made, err
	}
	defer outlook.close()
	if err := outlook.Refusal(); err != nil {
		return made, err
	}
	if request.KeepSnapshot {
		if err := op.refuseToKeepProved(outlook); err != nil {
			return made, err
		}
	}
	for _, warning := range outlook.Warnings {
		s.Report.Warn(warning)
	}

	frozen, err := op.freeze(ctx, outlook, keep{kept: request.KeepSnapshot, ttl: request.TTL})
	if err != nil {
		return made, err
	}
	manifest := op.manifest(outlook, frozen)
	outlook.close() // what follows needs nothing of the server

	watched, stillValid := op.watch(ctx, frozen)
	saved, proof, err := op.saveAndProve(watched, frozen, &manifest, repository)
	if lost := stillValid(); lost != nil {
		err = joinErrors(lost, err) // why the rest failed, if it did
	}
	if err != nil {
		return made, err
	}
	if manifest.Proof = proof; proof.OK {
		noteStated(&manifest, proof.Coordinates)
	}

	ledger.Point("backup.record")
	if made.Backup, err = repository.Record(ctx, saved, manifest); err != nil {
		return made, err
	}
	ledger.Point("backup.recorded")
	made.Skipped = saved.Skipped
	s.Report.Step("recorded", made.Backup.ID)

	released := "snapshot removed"
	if request.KeepSnapshot {
		kept, err := op.letStay(ctx, frozen, manifest)
		if err != nil {
			return made, err
		}
		released, kept.Manifest, made.Kept = "snapshot stays", nil, &kept
	}
	if op.ledger.ReleaseAll(ctx) != nil {
		return made, nil // close tries once more, and says what is left then
	}
	if !request.KeepSnapshot {
		made.SnapshotSeconds = time.Since(frozen.quiesced.At).Seconds()
	}
	s.Report.Step("released", released)
	made.Forgotten = op.retain(ctx, repository, made.Backup)
	return made, nil
}

// refuseToKeepProved refuses what refuseToKeep does, and to keep a thick snapshot that the
// proof has written into.
func (op *operation) refuseToKeepProved(o *Outlook) error {
	if o.Volume.Kind == respaldo.LVMThick && op.Prove != respaldo.ProveNone {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the proof would write into the snapshot of " + o.Volume.Name + " that is to stay: there are no snapshots of thick LVM snapshots",
			Hint: "give --prove none with --keep-snapshot, or take one by itself with respaldo snapshot create"}
	}
	return refuseToKeep(o)
}

// saveAndProve works while the snapshot lives. The proof comes after the copy: on thick
// LVM there is one snapshot only, and the instance writes into it.
func (op *operation) saveAndProve(ctx context.Context, f *frozen, m *respaldo.Manifest, r *repo.Repo) (*repo.Saved, respaldo.Proof, error) {
	if err := op.gather(ctx, f); err != nil {
		return nil, respaldo.Proof{}, err
	}
	saved, err := op.save(ctx, f, m, r)
	if err != nil {
		return nil, respaldo.Proof{}, err
	}
	proof, err := op.prove(ctx, f, *m)
	return saved, proof, err
}

// save copies the image into the repository. Nothing of it is visible yet.
func (op *operation) save(ctx context.Context, f *frozen, m *respaldo.Manifest, r *repo.Repo) (*repo.Saved, error) {
	root, mounted, err := op.mount(ctx, f.snapshot, "image", false)
	if err != nil {
		return nil, err
	}
	op.Report.Step("opened", string(f.volume.Kind)+" snapshot, read-only")
	tree := treeOf(m, f.dirs(root))
	ledger.Point("backup.save")
	saved, err := r.Save(ctx, op.Server, tree, op.midway("backup.saving"))
	ledger.Point("backup.saved")
	if err != nil {
		return nil, joinErrors(contextCause(ctx, err), mounted.Release(ctx))
	}
	op.Report.Step("saved", savedDetail(saved))
	return saved, mounted.Release(ctx)
}

// prove starts a private server over a writable view of the image.
func (op *operation) prove(ctx context.Context, f *frozen, m respaldo.Manifest) (respaldo.Proof, error) {
	if op.Prove == respaldo.ProveNone {
		warning := "not proved, as asked: nobody knows whether this backup starts"
		if m.Unconfirmed() {
			warning += ", or whether its coordinates are right, which were read in its binlogs"
		}
		op.Report.Warn(warning)
		return respaldo.Proof{Level: respaldo.ProveNone}, nil
	}
	view, err := op.writableView(ctx, f)
	if err != nil {
		return respaldo.Proof{}, err
	}
	root, mounted, err := op.mount(ctx, view, "proof", true)
	if err != nil {
		return respaldo.Proof{}, err
	}
	proof, err := op.proveAt(ctx, m, f.dirs(root))
	if err != nil {
		return proof, joinErrors(contextCause(ctx, err), mounted.Release(ctx))
	}
	return proof, mounted.Release(ctx)
}
