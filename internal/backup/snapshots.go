package backup

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// KeptSnapshot is a snapshot on this machine and, when it was kept on purpose, what it is
// an image of.
type KeptSnapshot struct {
	Snapshot respaldo.Snapshot  `json:"snapshot"`
	Fill     respaldo.Fill      `json:"fill"`
	Inactive bool               `json:"inactive,omitempty"` // as a thin one is after a reboot: not lost
	Manifest *respaldo.Manifest `json:"manifest,omitempty"`
	// StateBefore is the snapshot that a rollback went to, where this one is what the volume
	// was before it.
	StateBefore string `json:"state_before,omitempty"`
	Note        string `json:"note,omitempty"` // what becomes of one that was just taken
	UsedBy      string `json:"used_by,omitempty"`
	Warning     string `json:"warning,omitempty"` // that its storage fills up, and what to do
}

// CreateSnapshot takes a snapshot that stays until it is removed or expires. It is not
// proved: nothing was started on it.
func (s *Site) CreateSnapshot(ctx context.Context, ttl time.Duration) (made KeptSnapshot, err error) {
	op, err := s.begin(ctx, "snapshot create")
	if err != nil {
		return made, err
	}
	defer op.close(ctx, &err)
	op.makeRoom(ctx)
	outlook, err := op.look(ctx)
	if err != nil {
		return made, err
	}
	defer outlook.close()
	if err := outlook.Refusal(); err != nil {
		return made, err
	}
	if err := refuseToKeep(outlook); err != nil {
		return made, err
	}
	f, err := op.freeze(ctx, outlook, keep{kept: true, ttl: ttl})
	if err != nil {
		return made, err
	}
	return op.letStay(ctx, f, op.manifest(outlook, f))
}

// refuseToKeep refuses a snapshot that would not be an image by itself.
func refuseToKeep(o *Outlook) error {
	if !o.tailElsewhere() {
		return nil
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: "the binlogs do not lie on " + o.Volume.Name + ", so a snapshot alone is no complete image",
		Hint: "make a backup, which takes the binlogs along, or move them onto the volume"}
}

// letStay completes a snapshot that is kept: with its manifest on disk it says what it is an
// image of, and is the ledger's no longer.
func (op *operation) letStay(ctx context.Context, f *frozen, m respaldo.Manifest) (kept KeptSnapshot, err error) {
	kept = KeptSnapshot{Snapshot: f.snapshot.Describe(), Manifest: &m}
	kept.Note = unwatched(kept.Snapshot.Kind)
	if kept.Fill, err = f.snapshot.Fill(ctx); err != nil {
		return kept, err
	}
	if err := op.saveManifest(kept.Snapshot.Name, keptManifest{Manifest: m, Inside: f.inside()}); err != nil {
		return kept, err
	}
	ledger.Point("snapshot.stays")
	if err := f.held.Released(); err != nil || op.KeepSnapshots == (repo.Policy{}) {
		return kept, err
	}
	op.makeRoom(ctx) // the policy counts this one, too
	return kept, nil
}

// unwatched says what happens to a snapshot that nobody looks after.
func unwatched(kind respaldo.VolumeKind) string {
	const nobody = "nobody watches it between runs of respaldo: "
	switch kind {
	case respaldo.LVMThick:
		return nobody + "it is lost once the server has changed more than it has room for, and then removed by the next backup or respaldo cleanup"
	case respaldo.LVMThin:
		return nobody + "it holds on to whatever the server changes, and a full thin pool stops the server; above the threshold the next backup or respaldo cleanup removes kept snapshots, the oldest first, so have a timer run that"
	}
	return nobody + "it holds on to whatever the server changes, and a full filesystem stops the server; it is not removed for that, so watch the filesystem's room, or give a --ttl and have a timer run respaldo cleanup"
}

// Snapshots lists this server's snapshots on this machine, those of a running operation
// included, oldest first.
func (s *Site) Snapshots(ctx context.Context) ([]KeptSnapshot, error) {
	found, err := s.volumes().Leftovers(ctx, "")
	if err != nil {
		return nil, err
	}
	list := []KeptSnapshot{}
	for _, snapshot := range found {
		k := KeptSnapshot{Snapshot: snapshot.Describe()}
		if of := k.Snapshot.Server; of != s.Server && !ledger.SideOf(of, s.Server) {
			continue
		}
		if k.Fill, err = snapshot.Fill(ctx); err != nil {
			return nil, err
		}
		k.Inactive = !k.Fill.Valid && k.Snapshot.Kind == respaldo.LVMThin && !exists(k.Snapshot.Path)
		kept, err := s.loadKept(k.Snapshot.Name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if kept != nil {
			k.Manifest, k.StateBefore = &kept.Manifest, kept.StateBefore
		}
		if k.UsedBy, err = s.usedBy(k.Snapshot.Name); err != nil {
			return nil, err
		}
		if k.Fill.Valid {
			k.Warning = s.crowded(k.Snapshot, k.Fill)
		}
		list = append(list, k)
	}
	return list, nil
}

// Warnings are what the list of snapshots warns of, each once: many share one pool.
func Warnings(list []KeptSnapshot) []string {
	var warnings []string
	for _, k := range list {
		if k.Warning != "" && !slices.Contains(warnings, k.Warning) {
			warnings = append(warnings, k.Warning)
		}
	}
	return warnings
}

// crowded warns of the storage behind a snapshot.
func (s *Site) crowded(d respaldo.Snapshot, fill respaldo.Fill) string {
	what := d.Volume
	if d.Kind == respaldo.LVMThick {
		what = "snapshot " + d.Name
	}
	return volume.Crowded(d.Kind, what, fill, s.watchOptions(d.Kind, false))
}

// RemoveSnapshot removes one of this server's snapshots. One that is not tagged as ours,
// whatever its name, is refused.
func (s *Site) RemoveSnapshot(ctx context.Context, name string) (err error) {
	op, err := s.begin(ctx, "snapshot remove")
	if err != nil {
		return err
	}
	defer op.close(ctx, &err)
	snapshot, err := op.volumes.Lookup(ctx, name)
	if err != nil {
		return err
	}
	of := snapshot.Describe().Server
	if ledger.SideOf(of, s.Server) {
		return &respaldo.Error{Kind: respaldo.Busy, What: "the snapshot " + name + " belongs to " + sideName(of) + ", which goes on",
			Hint: "it goes with that: respaldo stop " + sideName(of) + " where it is served"}
	}
	if of != s.Server {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the snapshot " + name + " is of server " + of,
			Hint: "respaldo snapshot remove --server " + of + " " + name}
	}
	return op.removeKept(ctx, snapshot)
}

// retireKept removes the kept snapshots that have expired, that the policy keeps no longer,
// that are lost, or, the oldest first, whose pool would soon stop the origin: nobody watches
// them between operations. It is a part of what takes snapshots and of cleanup; nobody who
// restores wants fewer of them. One that is in use stays, and it is said by whom.
func (op *operation) retireKept(ctx context.Context, swept *Swept) error {
	snapshots, err := op.volumes.Leftovers(ctx, op.Server)
	if err != nil {
		return err
	}
	unwanted := op.unwanted(snapshots)
	var stay []volume.Snapshot
	for _, snapshot := range snapshots {
		d := snapshot.Describe()
		switch why := unwanted[d.Name]; {
		case !d.Kept: // could not be swept, and was said
		case why == "":
			stay = append(stay, snapshot)
		default:
			err = joinErrors(err, op.retire(ctx, why, snapshot, swept, func() { op.Report.Step("expired", "snapshot "+d.Name+" removed: "+why) }))
		}
	}
	for _, snapshot := range stay { // with the room that the others have given back
		why, lookErr := volume.Overdue(ctx, snapshot, volume.WatchOptions{GiveUpAt: op.PoolData, GiveUpMetadataAt: op.PoolMetadata})
		err = joinErrors(err, lookErr)
		if why != "" {
			err = joinErrors(err, op.retire(ctx, why, snapshot, swept, func() {
				op.Report.Warn("removed snapshot " + snapshot.Describe().Name + ", which was to stay: " + why)
			}))
		}
	}
	return joinErrors(err, op.forgetManifests(ctx, snapshots))
}

// unwanted says of kept snapshots why they go by themselves. One with a time of its own is
// not the policy's, and neither is what a rollback has undone: there is no other copy of it.
func (op *operation) unwanted(snapshots []volume.Snapshot) map[string]string {
	why := map[string]string{}
	var judged []respaldo.Backup
	for _, snapshot := range snapshots {
		switch d := snapshot.Describe(); {
		case !d.Kept:
		case d.Expires.IsZero() && op.stateBefore(d.Name):
		case d.Expires.IsZero():
			judged = append(judged, respaldo.Backup{ID: d.Name, Start: d.Created})
		case !time.Now().Before(d.Expires):
			why[d.Name] = "its time has passed"
		}
	}
	_, forget := repo.Retain(op.KeepSnapshots, judged)
	for _, b := range forget {
		why[b.ID] = "[keep_snapshots] keeps newer ones"
	}
	return why
}

// stateBefore tells that a snapshot is what a volume was before a rollback, or may be.
func (s *Site) stateBefore(name string) bool {
	kept, err := s.loadKept(name)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return kept.StateBefore != ""
}

// retire removes a snapshot that was to stay, unless somebody uses it.
func (op *operation) retire(ctx context.Context, why string, snapshot volume.Snapshot, swept *Swept, say func()) error {
	name := snapshot.Describe().Name
	user, err := op.usedBy(name)
	if err != nil {
		return err
	}
	if user != "" {
		op.Report.Warn("snapshot " + name + " should go (" + why + "), and is in use by " + user)
		return nil
	}
	if err := op.removeFor(ctx, why, snapshot, swept); err != nil {
		return err
	}
	say()
	return nil
}

// makeRoom retires kept snapshots before another one is taken. What cannot be removed is
// no reason to have no backup tonight.
func (op *operation) makeRoom(ctx context.Context) {
	if err := op.retireKept(ctx, &Swept{}); err != nil {
		op.Report.Warn(err.Error() + "; see respaldo cleanup")
	}
}

// forgetManifests removes the manifests of snapshots that somebody else has removed. One
// whose volume is not to be seen now (a disk that comes later, a filesystem that is not
// mounted) may be there still.
func (op *operation) forgetManifests(ctx context.Context, there []volume.Snapshot) error {
	manifests, err := os.ReadDir(filepath.Dir(op.manifestPath("")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, m := range manifests {
		name := strings.TrimSuffix(m.Name(), ".json")
		if slices.ContainsFunc(there, func(s volume.Snapshot) bool { return s.Describe().Name == name }) {
			continue
		}
		of, loadErr := op.loadManifest(name)
		if loadErr != nil || of.Server != op.Server { // another server's
			continue
		}
		if v, findErr := op.volumes.Find(ctx, of.Volume.MountPoint); findErr != nil || !sameStorage(v.Describe(), of.Volume) {
			continue
		}
		if removeErr := os.Remove(op.manifestPath(name)); removeErr != nil {
			err = joinErrors(err, removeErr)
		}
	}
	return err
}

// sameStorage tells that two descriptions are of one volume, which a rollback may have given
// another ID meanwhile.
func sameStorage(a, b respaldo.Volume) bool {
	return a.Kind == b.Kind && a.Name == b.Name && a.FSUUID == b.FSUUID
}

// removeKept removes a snapshot, which nothing must have mounted, and its manifest.
func (op *operation) removeKept(ctx context.Context, snapshot volume.Snapshot) error {
	if err := op.refuseUsed(snapshot.Describe()); err != nil {
		return err
	}
	if err := snapshot.Remove(ctx); err != nil {
		return err
	}
	if err := os.Remove(op.manifestPath(snapshot.Describe().Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// manifestPath is where a kept snapshot's manifest lies, beside the ledger: the snapshot
// itself is read-only.
func (s *Site) manifestPath(name string) string {
	return filepath.Join(s.StateDir, "snapshots", name+".json")
}

// keptManifest is what lies on disk for a kept snapshot.
type keptManifest struct {
	respaldo.Manifest
	// Inside is where the places that the snapshot holds lie below its root, by their real
	// paths.
	Inside map[string]string `json:"inside"`
	// StateBefore is the snapshot that a rollback went to, where this one is what the volume
	// was before it.
	StateBefore string `json:"state_before,omitempty"`
}

// inside is where a place lies in the snapshot, if it does.
func (k *keptManifest) inside(p respaldo.Place) (string, bool) {
	if k.Inside == nil { // noted by an early version: as the volume was mounted
		rel, err := filepath.Rel(k.Volume.MountPoint, p.Real)
		return rel, err == nil && filepath.IsLocal(rel) && p.Role != respaldo.OptionFileRole
	}
	at, ok := k.Inside[p.Real]
	return at, ok
}

// inside is what of the image the snapshot holds.
func (f *frozen) inside() map[string]string {
	places := map[string]string{}
	for _, c := range f.covers {
		if c.From == FromSnapshot {
			places[c.Place.Real] = c.inside
		}
	}
	return places
}

func (s *Site) saveManifest(name string, m keptManifest) error {
	content, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(s.manifestPath(name), append(content, '\n'))
}

func (s *Site) loadManifest(name string) (*respaldo.Manifest, error) {
	kept, err := s.loadKept(name)
	if err != nil {
		return nil, err
	}
	return &kept.Manifest, nil
}

func (s *Site) loadKept(name string) (*keptManifest, error) {
	content, err := os.ReadFile(s.manifestPath(name))
	if err != nil {
		return nil, err
	}
	var m keptManifest
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, &respaldo.Error{Kind: respaldo.Failed, What: "cannot read " + s.manifestPath(name),
			Hint: "the snapshot is good, but nobody knows its coordinates: remove it, or look into it by hand", Err: err}
	}
	if m.Format > respaldo.ManifestFormat {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: s.manifestPath(name) + " was written by a newer respaldo",
			Hint: "use that version"}
	}
	return &m, nil
}

// hasManifest is true, too, where nobody can tell: a snapshot is not removed for that.
func (s *Site) hasManifest(name string) bool {
	_, err := os.Lstat(s.manifestPath(name))
	return !errors.Is(err, fs.ErrNotExist)
}
