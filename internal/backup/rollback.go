package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// RollbackRequest says which snapshot a volume goes back to, and what is asked before.
type RollbackRequest struct {
	Snapshot    string
	SaveBinlogs string // a directory for the binlogs since the snapshot; empty: one below StateDir
	// Confirm is shown what would be lost before anything is touched; its error ends it. nil
	// is not asked.
	Confirm func(RollbackPlan) error
	DryRun  bool // look, and end there
}

// RolledBack is what a rollback has done.
type RolledBack struct {
	Plan  RollbackPlan    `json:"plan"`
	Proof *respaldo.Proof `json:"proof,omitempty"` // of the snapshot, before the server was stopped
	// Saved are the binlogs that were copied to Plan.SaveTo.
	Saved []string `json:"saved_binlogs,omitempty"`
	// State is the snapshot that holds what the volume was; empty on thick LVM.
	State       string  `json:"state,omitempty"`
	Timeline    string  `json:"timeline,omitempty"` // that has begun
	DownSeconds float64 `json:"down_seconds,omitempty"`
}

// Rollback puts the server's volume itself back to a kept snapshot: the server is stopped,
// the volume exchanged or merged, mounted, and the server started. Until the volume changes,
// whatever fails leads back to the server running as before; from there on everything
// leads forward, also after a crash (settleRollback).
func (s *Site) Rollback(ctx context.Context, request RollbackRequest) (done RolledBack, err error) {
	op, err := s.begin(ctx, "rollback")
	if err != nil {
		return done, err
	}
	defer op.close(ctx, &err)
	plan, err := op.planRollback(ctx, request)
	if err != nil {
		return done, err
	}
	defer plan.close()
	done.Plan = *plan
	if request.DryRun {
		return done, nil
	}
	if request.Confirm != nil {
		if err := request.Confirm(*plan); err != nil {
			return done, err
		}
	}
	if done.Proof, err = op.proveBefore(ctx, plan); err != nil {
		return done, err
	}
	return done, op.goBack(ctx, plan, &done)
}

// goBack is the part that stops the server.
func (op *operation) goBack(ctx context.Context, p *RollbackPlan, done *RolledBack) (err error) {
	r, err := op.beginRollback(p)
	if err != nil {
		return err
	}
	defer func() { err = op.endRollback(ctx, r, err) }()

	if err := op.copyBinlogs(ctx, p, r, true); err != nil {
		return err
	}
	if err := op.copySnapshot(ctx, r); err != nil {
		return err
	}
	stopped := time.Now()
	if err := op.stopServer(ctx, p, r); err != nil {
		return err
	}
	if err := op.copyBinlogs(ctx, p, r, false); err != nil {
		return err
	}
	if err := op.describeState(ctx, p, r); err != nil {
		return err
	}
	if err := op.takeDown(ctx, r); err != nil {
		return err
	}
	if err := r.enter(switching); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // from here on the way is forward
	if err := op.switchOver(ctx, r); err != nil {
		return err
	}
	r.over = true
	done.State, done.Timeline, done.Saved = r.Way.State.Name, r.Timeline.Timeline, p.saved
	if err := op.startServer(ctx, r); err != nil {
		return err
	}
	done.DownSeconds = time.Since(stopped).Seconds()
	return op.sameAsSnapshot(ctx, r)
}

// proveBefore starts a private server on a copy of the snapshot, so that a rollback to a bad
// image never begins. On thick LVM there are no copies, and the proof itself would change
// what the volume is to become: there the server's own start is the proof.
func (op *operation) proveBefore(ctx context.Context, p *RollbackPlan) (*respaldo.Proof, error) {
	if op.Prove == respaldo.ProveNone || p.Volume.Kind == respaldo.LVMThick {
		return nil, nil
	}
	f := &frozen{volume: p.Volume, snapshot: p.snapshot, covers: p.covers, quiesced: p.Manifest.Quiesced}
	if err := op.gather(ctx, f); err != nil {
		return nil, err
	}
	proof, err := op.prove(ctx, f, *p.Manifest)
	if err != nil {
		return nil, err
	}
	return &proof, nil
}

// copySnapshot makes the writable copy that becomes the volume, while the server still runs.
// Its entry has no release of its own: what has its name later may be what the volume was.
func (op *operation) copySnapshot(ctx context.Context, r *rollback) error {
	if !r.Way.KeepsState() {
		return nil
	}
	held, err := op.ledger.Intend(kindSnapshot, snapshotAttrs(r.Way.Copy, r.Way.Volume))
	if err != nil {
		return err
	}
	r.copied = held
	if _, err := op.volumes.CopyForRollback(ctx, &r.Way, volumeCommand(op, held)); err != nil {
		return err
	}
	ledger.Point("rollback.copied")
	return r.note()
}

// takeDown unmounts the volume and makes sure that nobody has it open: a merge of one that
// is would wait for its next activation.
func (op *operation) takeDown(ctx context.Context, r *rollback) error {
	if err := volume.Settle(r.Mounted.Path); err != nil {
		return err
	}
	if err := op.volumes.UnmountVolume(ctx, r.Mounted); err != nil {
		return err
	}
	ledger.Point("rollback.unmounted")
	if err := op.volumes.Unused(ctx, &r.Way); err != nil {
		return err
	}
	if r.Mounted.At != "" {
		op.Report.Step("unmounted", r.Mounted.At)
	}
	return nil
}

// mountAgain mounts the volume, unless a server runs on what lies below its mount point:
// somebody has started that meanwhile, and would go on writing where nobody sees it.
func (op *operation) mountAgain(ctx context.Context, r *rollback) error {
	mounted, err := op.volumes.IsMounted(r.Mounted)
	if err != nil {
		return err
	}
	if !mounted {
		if err := refuseOpen(r.DataDir); err != nil {
			return &respaldo.Error{Kind: respaldo.Leftovers, What: "a server was started at " + r.DataDir + " while its volume was not mounted", Err: errors.New(err.Error()),
				Hint: "stop it, see what it has written to " + r.Mounted.At + ", then run: respaldo cleanup --server " + op.Server}
		}
	}
	return op.volumes.MountAgain(ctx, r.Mounted)
}

// switchOver has the volume be what the snapshot was, and mounts it. It can be repeated
// after a crash.
func (op *operation) switchOver(ctx context.Context, r *rollback) error {
	err := op.volumes.Switch(ctx, &r.Way, volume.SwitchOptions{
		Started:  func(pid int) { noteProcess(op, r.held, pid) },
		Step:     func(name string) { ledger.Point("rollback." + name) },
		Progress: op.Report.Progress,
	})
	if err != nil {
		return err
	}
	ledger.Point("rollback.switched")
	if err := op.saveHistory(r.Timeline); err != nil {
		return err
	}
	if err := op.mountAgain(ctx, r); err != nil {
		return err
	}
	ledger.Point("rollback.mounted")
	what := "the snapshot was merged into " + r.Way.Volume.Name
	if !r.Way.KeepsState() { // there is nothing left that it is the manifest of
		if err := os.Remove(op.manifestPath(r.Way.Snapshot.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if r.Way.KeepsState() {
		what = fmt.Sprintf("%s is a copy of it now; what it was stays as snapshot %s", r.Way.Volume.Name, r.Way.State.Name)
	}
	op.Report.Step("back", what)
	return nil
}
