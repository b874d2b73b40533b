package volume

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Rollback is a volume's way back to one of its snapshots. It can be written down as JSON:
// whoever reads it after a crash can have Switch go on where it was ended.
//
// On thin LVM and Btrfs a writable copy of the snapshot takes the volume's place and name,
// and what the volume was becomes a kept snapshot of ours, the State: nothing is copied or
// lost, the snapshot itself stays, and the next rollback can be to either. On thick LVM the
// snapshot is merged into its volume, which uses it up; there is no State.
type Rollback struct {
	Snapshot respaldo.Snapshot `json:"snapshot"` // to go back to
	Volume   respaldo.Volume   `json:"volume"`   // as it is before
	State    respaldo.Snapshot `json:"state,omitzero"`
	// Copy is the name of the writable copy, CopyID its LV's or subvolume's UUID, once it is made.
	Copy   string `json:"copy,omitempty"`
	CopyID string `json:"copy_id,omitempty"`
}

// KeepsState tells that the present state stays as a snapshot.
func (r *Rollback) KeepsState() bool { return r.State.Name != "" }

// SwitchOptions are told how a Switch goes. Each may be nil.
type SwitchOptions struct {
	Started  func(pid int)           // a volume command runs, which nobody should kill
	Step     func(name string)       // what a crash may come after
	Progress func(respaldo.Progress) // of a merge; bytes are a share of the snapshot's
}

func (o SwitchOptions) step(name string) {
	if o.Step != nil {
		o.Step(name)
	}
}

// rollbacker is what each kind of volume does its own way.
type rollbacker interface {
	// planRollback refuses what cannot be, and chooses names.
	planRollback(ctx context.Context, snap Snapshot, r *Rollback) error
}

// PlanRollback refuses a snapshot that its volume cannot go back to (another volume's, an
// overflowed one, one that is not kept, or in use) and chooses the names of what Switch
// will make. The request's Name is the State's, and so are Server, Run and Expires. Nothing
// is changed.
func (s *System) PlanRollback(ctx context.Context, v Volume, snap Snapshot, state Request) (*Rollback, error) {
	d, of := snap.Describe(), v.Describe()
	refuse := func(hint, format string, args ...any) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: "snapshot " + d.Name + " " + fmt.Sprintf(format, args...), Hint: hint}
	}
	switch {
	case d.Volume != of.Name || d.Kind != of.Kind:
		return nil, refuse("a volume goes back to its own snapshots only; for the data alone, restore a backup", "is of %s, and the data lies on %s", d.Volume, of.Name)
	case !d.Kept:
		return nil, refuse("it goes when that operation ends; see respaldo snapshot list", "belongs to an operation, and was not taken to stay")
	}
	fill, err := snap.Fill(ctx)
	if err != nil {
		return nil, err
	}
	if !fill.Valid && !(d.Kind == respaldo.LVMThin && !exists(d.Path)) { // an inactive thin one is as good as ever
		return nil, &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + d.Name + " is lost: it has overflowed, or cannot be read",
			Hint: "go back to another one (respaldo snapshot list), or restore a backup"}
	}
	r := &Rollback{Snapshot: d, Volume: of}
	if d.Kind != respaldo.LVMThick {
		if state.Name == "" {
			state.Name = NewName(state.Server, time.Now())
		}
		r.State = respaldo.Snapshot{Name: state.Name, Server: state.Server, Run: state.Run, Kind: d.Kind, Volume: of.Name,
			Kept: true, Expires: state.Expires}
	}
	planner, ok := v.(rollbacker)
	if !ok {
		return nil, refuse("restore a backup", "cannot be gone back to on %s", of.Kind)
	}
	return r, planner.planRollback(ctx, snap, r)
}

// CopyForRollback makes the writable copy of the snapshot, which is an ordinary snapshot of
// ours until Switch: Remove is the way back. It must not be called on thick LVM.
func (s *System) CopyForRollback(ctx context.Context, r *Rollback, started func(pid int)) (Snapshot, error) {
	snap, err := s.Lookup(ctx, r.Snapshot.Name)
	if err != nil {
		return nil, err
	}
	cloner, ok := snap.(Cloner)
	if !ok {
		return nil, fmt.Errorf("there are no copies of %s snapshots", r.Snapshot.Kind)
	}
	// It takes no room by itself: a pool or filesystem that is nearly full may be the very
	// reason to go back.
	request := Request{Name: r.Copy, Server: r.State.Server, Run: r.State.Run, Started: started, PoolData: 0.99, PoolMetadata: 0.95}
	copied, err := cloner.Clone(ctx, request)
	if err != nil {
		return nil, err
	}
	r.CopyID, err = idOf(ctx, copied)
	return copied, err
}

// idOf is what names a snapshot's volume whatever it is called.
func idOf(ctx context.Context, snap Snapshot) (string, error) {
	switch t := snap.(type) {
	case thinSnapshot:
		row, ok, err := t.row(ctx)
		if err == nil && !ok {
			err = fmt.Errorf("snapshot %s is gone", t.name())
		}
		return row.UUID, err
	case *btrfsSnapshot:
		top, err := t.sys.openTop(t.device)
		if err != nil {
			return "", err
		}
		defer top.Close()
		sub, err := t.subvolume(top)
		return sub.uuid, err
	}
	return "", fmt.Errorf("a %s snapshot has no copies", snap.Describe().Kind)
}

// Switch puts the volume back. Nothing may have it mounted or open, which it refuses
// (Leftovers, naming who) before anything is changed. Called again after a crash, or after
// it has failed, it goes on where it was ended; when all is done already it does nothing.
// Once begun it is not interrupted by ctx.
func (s *System) Switch(ctx context.Context, r *Rollback, o SwitchOptions) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	ctx = context.WithoutCancel(ctx)
	switch r.Volume.Kind {
	case respaldo.LVMThick:
		return s.mergeThick(ctx, r, o)
	case respaldo.LVMThin:
		return s.swapThin(ctx, r, o)
	case respaldo.Btrfs:
		return s.swapBtrfs(ctx, r, o)
	}
	return fmt.Errorf("no rollback on %s", r.Volume.Kind)
}

// SwitchBegun tells that a Switch has come so far that the volume is not what it was, or is
// about to be another: from there the way is forward. Asked only where a Switch was meant:
// on thick LVM a snapshot that is gone counts as merged.
func (s *System) SwitchBegun(ctx context.Context, r *Rollback) (bool, error) {
	vg, lv := cutName(r.Volume)
	if r.Volume.Kind == respaldo.Btrfs {
		top, err := s.openTop(r.Volume.Device)
		if err != nil {
			return false, err
		}
		defer top.Close()
		there, err := uuidAt(under(top, r.Volume.Name))
		return there == r.CopyID && r.CopyID != "", err
	}
	rows, err := s.lvs(ctx, vg)
	if err != nil {
		return false, lvmError(respaldo.Failed, "cannot read volume group "+vg, err)
	}
	if r.Volume.Kind == respaldo.LVMThick {
		merging, there := mergeState(rows, lv, r.Snapshot.Name)
		return merging || !there, nil
	}
	for _, row := range rows {
		if row.UUID == r.Volume.ID {
			return row.LV != lv, nil
		}
	}
	return true, nil // what was the volume is gone altogether
}

// Unused refuses a volume that something still has open or mounted, naming it; Switch would
// too, but this is asked before anybody has decided.
func (s *System) Unused(ctx context.Context, r *Rollback) error {
	if r.Volume.Kind == respaldo.Btrfs {
		return nil // whoever has its files open goes on seeing them
	}
	return s.unused(ctx, r.Volume.Name, r.Volume.Device)
}

// UndoRollback removes the copy that CopyForRollback has made, and Switch may have begun to
// prepare. It is for a volume that is what it was (see SwitchBegun), and idempotent.
func (s *System) UndoRollback(ctx context.Context, r *Rollback) error {
	if r.Copy == "" {
		return nil
	}
	if r.Volume.Kind == respaldo.LVMThin && r.CopyID != "" { // it may have lost its tags already
		vg, _ := cutName(r.Volume)
		rows, err := s.lvs(ctx, vg)
		if err != nil {
			return lvmError(respaldo.Leftovers, "cannot read volume group "+vg, err)
		}
		for _, row := range rows {
			if row.UUID != r.CopyID || row.LV != r.Copy {
				continue
			}
			d := r.State
			d.Name, d.Kept, d.Created = r.Copy, false, time.Now()
			argv := []string{"lvchange"}
			for _, tag := range encodeTags(d) {
				argv = append(argv, "--addtag", tag)
			}
			if _, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(append(argv, vg+"/"+r.Copy)), Uninterruptible: true}); err != nil {
				return lvmError(respaldo.Leftovers, "cannot tag "+vg+"/"+r.Copy+" as ours again", err)
			}
		}
	}
	snap, err := s.Lookup(ctx, r.Copy)
	if respaldo.KindOf(err) == respaldo.NotFound && err != nil {
		return nil
	}
	if err != nil {
		return err
	}
	return snap.Remove(ctx)
}

func cutName(v respaldo.Volume) (vg, lv string) {
	vg, lv, _ = strings.Cut(v.Name, "/")
	return vg, lv
}
