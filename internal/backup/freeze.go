package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// frozen is an image that is not opened yet: a snapshot, and what belongs to it.
type frozen struct {
	volume   respaldo.Volume
	name     string // of the snapshot
	snapshot volume.Snapshot
	held     *ledger.Held
	quiesced respaldo.Quiesced
	covers   []Cover
	owner    mysql.Process     // whose user the files belong to
	binlogs  *mysql.BinlogTail // opened under the lock, where they lie elsewhere
	tail     string            // the directory that they were copied to
	live     map[string]string // what lies outside the snapshot → our copy of it
}

// keep says what becomes of a snapshot after its operation. The zero keep removes it.
type keep struct {
	kept bool
	ttl  time.Duration // 0: until somebody removes it
}

func (op *operation) snapshotRequest(k keep) volume.Request {
	now := time.Now()
	r := volume.Request{
		Name:   volume.NewName(op.Server, now),
		Server: op.scope, Run: op.ledger.Run(), Bytes: op.SnapshotBytes, Kept: k.kept,
		PoolData: op.PoolData, PoolMetadata: op.PoolMetadata,
	}
	if k.ttl > 0 {
		r.Expires = now.Add(k.ttl)
	}
	return r
}

// freezeOnce takes the snapshot of a quiesced server. Everything slow happens before the lock:
// the size is chosen, the command built, the intent on disk, the filesystem flushed. What it
// returns says how far it came also when it failed.
func (op *operation) freezeOnce(ctx context.Context, o *Outlook, k keep, patience time.Duration) (*frozen, error) {
	request := op.snapshotRequest(k)
	f := &frozen{volume: o.Volume, covers: o.Covers, owner: o.facts.Process, name: request.Name}
	probe := o.facts.ProbeStall() // as early as can be, to know what is usual
	defer probe.Close()
	var pending volume.Pending
	var err error
	f.held, err = op.ledger.Acquire(ctx, kindSnapshot, snapshotAttrs(request.Name, o.Volume),
		func(held *ledger.Held) (err error) {
			request.Started = volumeCommand(op, held)
			if pending, err = o.volume.Prepare(ctx, request); err != nil {
				return err
			}
			return op.quiesceAndTake(ctx, o, pending, f, mysql.QuiesceRequest{Mode: o.Lock, Reason: o.LockReason, Budget: op.MaxLock, Patience: patience,
				Waiting: op.waiting(patience), KillBlockers: op.killBlockers(), Probe: probe, Facts: o.facts})
		},
		func(ctx context.Context) error { return op.dropSnapshot(ctx, pending, request.Name, o.Volume) })
	if err != nil && f.binlogs != nil {
		f.binlogs.Close()
	}
	return f, err
}

// gather copies what an image needs and the snapshot does not hold.
func (op *operation) gather(ctx context.Context, f *frozen) (err error) {
	if err := op.copyTail(ctx, f); err != nil {
		return err
	}
	f.live, err = op.copyLive(ctx, f.covers)
	return err
}

// quiesceAndTake is the part that writers wait for. Between the lock and its release there
// is the instant of the snapshot and nothing else: the command that takes it is started
// before, and ends after.
//
// The filesystem is flushed twice, which makes the locked window three to five times
// shorter: what there is now, however long that takes, and right before the lock what was
// written since, which takes no time in which a calm server could get busy again.
func (op *operation) quiesceAndTake(ctx context.Context, o *Outlook, pending volume.Pending, f *frozen, request mysql.QuiesceRequest) error {
	settle := func() error { return volume.Settle(o.Volume.MountPoint) }
	if err := settle(); err != nil {
		return err
	}
	request.BeforeLock = func() error {
		if err := pending.Ready(ctx); err != nil {
			return err
		}
		ledger.Point("snapshot.ready")
		return settle()
	}
	var err error
	f.quiesced, err = op.quiesce(ctx, o, request,
		func(ctx context.Context, at respaldo.Coordinates) error {
			ledger.Point("locked")
			if err := pending.Take(ctx); err != nil {
				return err
			}
			ledger.Point("snapshot.taken")
			if o.tailElsewhere() {
				f.binlogs, err = o.facts.OpenBinlogTail(at)
			}
			return err
		})
	var unfinished error
	f.snapshot, unfinished = pending.Finish()
	f.quiesced.PauseSeconds = pending.Pause().Seconds()
	return joinErrors(err, unfinished)
}

// dropSnapshot removes a snapshot of ours, whatever state a failed or killed command left
// it in; an origin left suspended is resumed first, since writers hang on it.
func (op *operation) dropSnapshot(ctx context.Context, pending volume.Pending, name string, origin respaldo.Volume) error {
	if err := op.volumes.ResumeSuspended(ctx, origin); err != nil {
		return err
	}
	if pending != nil {
		if err := pending.Cancel(ctx); err != nil {
			return err
		}
	}
	s, err := op.volumes.Lookup(ctx, name)
	if respaldo.KindOf(err) == respaldo.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return s.Remove(ctx)
}

// copyTail copies the binlogs up to the coordinates when they lie outside the snapshot.
func (op *operation) copyTail(ctx context.Context, f *frozen) error {
	if f.binlogs == nil {
		return nil
	}
	defer f.binlogs.Close()
	var err error
	if f.tail, err = op.scratch(ctx, op.workDir(), "binlog"); err != nil {
		return err
	}
	if err := op.giveTo(f.owner, f.tail); err != nil { // it is a place of the server's, here and when restored
		return err
	}
	names, err := f.binlogs.CopyTo(ctx, f.tail)
	if err != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot copy the binlogs up to " + f.quiesced.Coordinates.String(),
			Hint: "make room in " + op.workDir() + ", or set state_dir to a larger filesystem", Err: err}
	}
	op.Report.Step("binlogs", fmt.Sprintf("%s copied up to %s", english.Plural(len(names), "file", ""), f.quiesced.Coordinates))
	return nil
}

// giveTo makes a directory the server's, where we may: its private instance runs as the
// same user.
func (op *operation) giveTo(server mysql.Process, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(dir, server.UID, server.GID)
}

// watch follows the snapshot's fill level until stop, which makes the last check: a
// snapshot that overflowed at any moment before yields no backup.
func (op *operation) watch(ctx context.Context, f *frozen) (context.Context, func() error) {
	return volume.Watch(ctx, f.snapshot, op.watchOptions(f.volume.Kind, false))
}

func (s *Site) watchOptions(kind respaldo.VolumeKind, kept bool) volume.WatchOptions {
	options := volume.WatchOptions{Spare: kept}
	if kind == respaldo.LVMThin {
		options.GiveUpAt, options.GiveUpMetadataAt = s.PoolData, s.PoolMetadata
	}
	return options
}

// writableView is what an instance may write into without changing the image: a snapshot
// of the snapshot, or on thick LVM, which has none, the snapshot itself.
func (op *operation) writableView(ctx context.Context, f *frozen) (volume.Snapshot, error) {
	cloner, ok := f.snapshot.(volume.Cloner)
	if !ok {
		return f.snapshot, nil
	}
	request := op.snapshotRequest(keep{})
	var clone volume.Snapshot
	_, err := op.ledger.Acquire(ctx, kindSnapshot, snapshotAttrs(request.Name, f.volume),
		func(held *ledger.Held) (err error) {
			request.Started = volumeCommand(op, held)
			clone, err = cloner.Clone(ctx, request)
			return err
		},
		func(ctx context.Context) error { return op.dropSnapshot(ctx, nil, request.Name, f.volume) })
	return clone, err
}

func snapshotAttrs(name string, v respaldo.Volume) map[string]string {
	return map[string]string{"name": name, "volume_kind": string(v.Kind), "volume": v.Name, "volume_id": v.ID}
}

// volumeOf reads back which volume a snapshot entry was about.
func volumeOf(e ledger.Entry) respaldo.Volume {
	return respaldo.Volume{Kind: respaldo.VolumeKind(e.Attrs["volume_kind"]), Name: e.Attrs["volume"], ID: e.Attrs["volume_id"]}
}

// volumeCommand is told when the command that takes a snapshot has been started: from here
// on it outlives us, and a cleanup waits for it.
func volumeCommand(op *operation, held *ledger.Held) func(pid int) {
	return func(pid int) {
		noteProcess(op, held, pid)
		ledger.Point("snapshot.command")
	}
}

// noteProcess writes a process into the ledger. Failing to is no reason to stop: it runs.
func noteProcess(op *operation, held *ledger.Held, pid int) {
	if err := held.NoteProcess(pid); err != nil {
		op.Report.Warn(err.Error())
	}
}

// dirs says where each place of the layout is found when the snapshot is mounted at root.
func (f *frozen) dirs(root string) map[string]string {
	found := maps.Clone(f.live)
	for _, c := range f.covers {
		switch c.From {
		case FromSnapshot:
			found[c.Place.Real] = filepath.Join(root, c.inside)
		case FromTail:
			found[c.Place.Real] = f.tail
		}
	}
	return found
}

// treeOf is what is stored or restored of an image: each place under its stored name. A
// place of which there is no copy loses that name in the manifest.
func treeOf(m *respaldo.Manifest, dirs map[string]string) repo.Tree {
	var tree repo.Tree
	added := map[string]bool{}
	for i, p := range m.Layout.Places {
		if p.Stored == "" || added[p.Stored] { // one directory may have several roles
			continue
		}
		added[p.Stored] = true
		if path, ok := dirs[p.Real]; ok {
			tree.Entries = append(tree.Entries, repo.TreeEntry{Name: p.Stored, Path: path})
		} else {
			m.Layout.Places[i].Stored = "" // too large to carry, and said so
		}
	}
	return tree
}

// manifest writes down what the image is, before the proof, and remembers it as the last
// one taken.
func (op *operation) manifest(o *Outlook, f *frozen) respaldo.Manifest {
	facts := o.facts
	uuid := facts.Variables["server_uuid"]
	if uuid == "" {
		uuid = facts.Variables["server_uid"]
	}
	m := respaldo.Manifest{
		Format: respaldo.ManifestFormat, Program: op.Program,
		Server: op.Server, ServerID: op.ServerID, ServerUUID: uuid, Host: op.Host,
		Timeline: op.lastImage().timeline(uuid, f.quiesced.Coordinates),
		Taken:    f.quiesced.At, Version: facts.Version, Layout: facts.Layout, Volume: o.Volume,
		Quiesced: f.quiesced, BinlogOn: facts.BinlogOn, Encrypted: facts.Encrypted, Lost: facts.Lost,
		Variables: facts.Variables, Binary: facts.Process.Binary,
	}
	m.Layout.Places = storedPlaces(o.Covers)
	op.noteImage(m)
	return m
}

// storedPlaces gives each place that a backup carries its name there: "data", "redo",
// "tablespace-2" where a role has several, "option-file/my.cnf" for a single file.
func storedPlaces(covers []Cover) []respaldo.Place {
	var places []respaldo.Place
	count := map[respaldo.Role]int{}
	seen := map[string]string{}
	for _, c := range covers {
		p := c.Place
		if c.From != NotNeeded && !p.Inside {
			if name, again := seen[p.Real]; again {
				p.Stored = name
			} else {
				count[p.Role]++
				p.Stored = string(p.Role)
				if n := count[p.Role]; n > 1 {
					p.Stored = fmt.Sprintf("%s-%d", p.Role, n)
				}
				if info, err := os.Stat(p.Real); err == nil && info.Mode().IsRegular() {
					p.Stored += "/" + filepath.Base(p.Real)
				}
				seen[p.Real] = p.Stored
			}
		}
		places = append(places, p)
	}
	return places
}

// contextCause prefers why the work was cancelled over what the cancellation looked like.
func contextCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return joinErrors(cause, err)
	}
	return err
}
