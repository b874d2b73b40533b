package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// RollbackPlan is what a rollback would do, and what would be lost by it.
type RollbackPlan struct {
	Snapshot respaldo.Snapshot  `json:"snapshot"`
	Manifest *respaldo.Manifest `json:"manifest"`
	Volume   respaldo.Volume    `json:"volume"`
	// Running is false for a server that cannot be asked: what would be lost is then read
	// from its files alone.
	Running bool         `json:"running"`
	Service string       `json:"service"` // who stops and starts it
	Lost    RollbackLoss `json:"lost"`
	SaveTo  string       `json:"save_to,omitempty"` // where the binlogs since the snapshot go
	// State is the snapshot that would hold what the volume is now; empty on thick LVM, which
	// cannot keep it.
	State string   `json:"state,omitempty"`
	Notes []string `json:"notes,omitempty"`

	manifest respaldo.Manifest
	covers   []Cover
	snapshot volume.Snapshot
	way      *volume.Rollback
	mounted  volume.Mounted
	service  *host.Service
	server   *mysql.Server // nil unless Running
	facts    *mysql.Facts
	gtids    string // of the server now
	saved    []string
}

// RollbackLoss is what came after the snapshot.
type RollbackLoss struct {
	Since   time.Time            `json:"since"`
	Seconds float64              `json:"seconds"`
	From    respaldo.Coordinates `json:"from"`
	To      respaldo.Coordinates `json:"to"`
	// Transactions are those in the binlogs, counted; -1 where they cannot be.
	Transactions int      `json:"transactions"`
	GTIDs        string   `json:"gtids,omitempty"`
	Binlogs      []string `json:"binlogs,omitempty"`
	BinlogBytes  int64    `json:"binlog_bytes,omitempty"`
	// Purged tells that some of the binlogs since the snapshot are gone already.
	Purged   bool            `json:"purged,omitempty"`
	Replicas []mysql.Replica `json:"replicas,omitempty"` // that would need a rebuild
}

func (p *RollbackPlan) close() {
	if p.server != nil {
		p.server.Close()
		p.server = nil
	}
}

// planRollback looks and refuses. It changes nothing.
func (op *operation) planRollback(ctx context.Context, request RollbackRequest) (_ *RollbackPlan, err error) {
	p := &RollbackPlan{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := op.findSnapshot(ctx, request.Snapshot, p); err != nil {
		return nil, err
	}
	if err := op.lookAtServer(ctx, p); err != nil {
		return nil, err
	}
	if err := op.lookAtPlaces(ctx, p); err != nil {
		return nil, err
	}
	pid := 0
	if p.Running {
		pid = p.facts.Process.PID
	}
	if p.service, err = op.findService(ctx, pid); err != nil {
		return nil, err
	}
	p.Service = p.service.String()
	if err := op.refuseOthers(p, pid); err != nil {
		return nil, err
	}
	if err := op.countLoss(ctx, p); err != nil {
		return nil, err
	}
	if err := op.chooseSaveTo(ctx, p, request.SaveBinlogs); err != nil {
		return nil, err
	}
	op.remarkRollback(ctx, p)
	return p, nil
}

// findService finds out who stops and starts the server with this process, 0 if it does
// not run.
func (op *operation) findService(ctx context.Context, pid int) (*host.Service, error) {
	if pid == 0 && op.Several && len(op.Service.Start) == 0 {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "cannot tell how the server is stopped and started: it does not run, and other servers are configured, too",
			Hint: `give the commands in the configuration, stop = ["…"] and start = ["…"] in [server.` + op.Server + `]`}
	}
	return (&host.Host{Run: op.Run, Log: op.Log}).Service(ctx, pid, op.Service)
}

// findSnapshot finds one of ours of this server that stays, with its manifest.
func (op *operation) findSnapshot(ctx context.Context, name string, p *RollbackPlan) (err error) {
	if p.snapshot, err = op.volumes.Lookup(ctx, name); err != nil {
		return err
	}
	p.Snapshot = p.snapshot.Describe()
	if of := p.Snapshot.Server; of != op.Server {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the snapshot " + name + " is of server " + of,
			Hint: "respaldo rollback --server " + of + " " + name}
	}
	p.Manifest, err = op.loadManifest(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &respaldo.Error{Kind: respaldo.Refused, What: "nobody knows what the snapshot " + name + " is an image of: " + op.manifestPath(name) + " is missing",
			Hint: "it belongs to an operation, or was not completed; respaldo snapshot list shows those that can be gone back to"}
	}
	return joinErrors(err, op.refuseUsed(p.Snapshot))
}

// lookAtServer asks the server, or where it does not run the snapshot's manifest, what it is
// and where its files lie.
func (op *operation) lookAtServer(ctx context.Context, p *RollbackPlan) error {
	m := p.Manifest
	p.manifest = *m
	server, err := mysql.Connect(ctx, op.MySQL, op.Log)
	if err != nil {
		if respaldo.KindOf(err) != respaldo.Unreachable {
			return err
		}
		if inUse := refuseOpen(m.Layout.DataDir); inUse != nil {
			return joinErrors(err, inUse) // it runs, and does not let us in
		}
		op.Report.Warn("the server does not run: what would be lost is read from its files, and cannot be told exactly")
		return nil
	}
	facts, err := server.Facts(ctx)
	if err != nil {
		server.Close()
		return err
	}
	p.Running, p.server, p.facts = true, server, facts
	if facts.Layout.DataDir != m.Layout.DataDir {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the server's data directory is %s, and was %s when the snapshot was taken", facts.Layout.DataDir, m.Layout.DataDir),
			Hint: "the option file and the snapshot must agree: give the server its former data directory, or restore a backup"}
	}
	if facts.Cluster != "" {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the server is a node of " + facts.Cluster + ", whose other nodes would not go back",
			Hint: "restore a backup, and have the cluster start from it"}
	}
	p.manifest.Version, p.manifest.Variables, p.manifest.Layout = facts.Version, facts.Variables, facts.Layout
	p.manifest.BinlogOn, p.manifest.Encrypted, p.manifest.Lost, p.manifest.Binary = facts.BinlogOn, facts.Encrypted, facts.Lost, facts.Process.Binary
	return nil
}

// lookAtPlaces refuses a layout that would not go back as a whole, and a volume that cannot
// be taken from under it.
func (op *operation) lookAtPlaces(ctx context.Context, p *RollbackPlan) error {
	layout := p.manifest.Layout
	v, err := op.volumes.Find(ctx, layout.Of(respaldo.DataRole)[0].Real)
	if respaldo.KindOf(err) == respaldo.NotFound && !p.Running {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the data directory " + layout.DataDir + " is not there",
			Hint: "mount " + p.Snapshot.Volume + " at " + p.Manifest.Volume.MountPoint + ", and run again", Err: err}
	}
	if err != nil {
		return err
	}
	p.Volume = v.Describe()
	if p.Volume.Name != p.Snapshot.Volume && !p.Running {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the data directory %s lies on %s now, and the snapshot is of %s", layout.DataDir, p.Volume.Name, p.Snapshot.Volume),
			Hint: "mount " + p.Snapshot.Volume + " at " + p.Manifest.Volume.MountPoint + ", and run again"}
	}
	state := op.snapshotRequest(keep{kept: true})
	if p.way, err = op.volumes.PlanRollback(ctx, v, p.snapshot, state); err != nil {
		return err
	}
	p.State = p.way.State.Name
	var refused error
	for _, place := range layout.Places {
		cover, err := op.cover(ctx, place, p.Volume)
		elsewhere := err == nil && (cover.From == FromTail || cover.From == NotNeeded && exists(place.Real))
		if elsewhere {
			err = &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s (%s) does not lie on %s, and would not go back with it", place.Path, place.Role, p.Volume.Name),
				Hint: "move it onto the volume of the data directory; to go back now, restore a backup"}
		}
		refused = joinErrors(refused, err)
		p.covers = append(p.covers, cover)
	}
	if refused != nil {
		return refused
	}
	p.manifest.Layout.Places = storedPlaces(p.covers)
	var notes []string
	if p.mounted, notes, err = op.volumes.Mounted(ctx, p.Volume); err != nil {
		return err
	}
	p.Notes = append(p.Notes, notes...)
	return errors.Join(
		op.refuseOnVolume(ctx, p, op.StateDir, "the state directory", "set state_dir to a directory elsewhere"),
		op.refuseOnVolume(ctx, p, op.Folder, "the repository", "move it elsewhere: backups on the volume of the data are lost with it, too"),
		op.refuseOnVolume(ctx, p, op.CacheDir, "the cache", "set cache_dir to a directory elsewhere"))
}

// refuseOnVolume refuses to have our own notes go back with the volume.
func (op *operation) refuseOnVolume(ctx context.Context, p *RollbackPlan, dir, what, hint string) error {
	if dir == "" { // a repository elsewhere
		return nil
	}
	for !exists(dir) {
		dir = filepath.Dir(dir)
	}
	at, err := op.volumes.Locate(ctx, dir)
	if err != nil {
		return err
	}
	on, err := op.liesOn(ctx, at, p.Volume)
	if err != nil || !on {
		return err
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s (%s) lies on %s, and would go back with it", what, dir, p.Volume.Name), Hint: hint}
}

// refuseOthers refuses while somebody besides the server uses the volume: nothing would be
// won by finding out with the server stopped.
func (op *operation) refuseOthers(p *RollbackPlan, server int) error {
	others, err := op.volumes.Inhabitants(p.mounted, server)
	if err != nil || len(others) == 0 {
		return err
	}
	var names []string
	for _, o := range others[:min(len(others), 5)] {
		names = append(names, o.String())
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: p.mounted.Path + " is in use by others than the server: " + strings.Join(names, "; "),
		Hint: "end them, or have them leave that directory, and run again"}
}

// countLoss says what came after the snapshot.
func (op *operation) countLoss(ctx context.Context, p *RollbackPlan) error {
	taken := p.Manifest.Quiesced
	lost := &p.Lost
	lost.Since, lost.Seconds, lost.From, lost.Transactions = taken.At, time.Since(taken.At).Seconds(), taken.Coordinates, -1
	if p.Running {
		var err error
		if lost.To, err = p.server.Coordinates(ctx); err != nil {
			return err
		}
		p.gtids = lost.To.GTIDSet
		if lost.GTIDs, lost.Transactions, err = p.server.Since(ctx, taken.Coordinates.GTIDSet, p.gtids); err != nil {
			return err
		}
		if lost.Replicas, err = p.server.Replicas(ctx); err != nil {
			return err
		}
	}
	binlogs, err := op.binlogsSince(p)
	if err != nil {
		return err
	}
	for i, b := range binlogs {
		lost.Binlogs = append(lost.Binlogs, b.Name)
		lost.BinlogBytes += b.Bytes
		if i == 0 && !lost.Purged {
			lost.BinlogBytes -= min(b.Bytes, int64(taken.Coordinates.Position))
		}
	}
	if len(binlogs) == 0 || lost.BinlogBytes > countLimit {
		return nil
	}
	start := taken.Coordinates.Position
	if lost.Purged {
		start = 0
	}
	count, end, known, err := mysql.CountTransactions(ctx, binlogs, start)
	if err != nil {
		return err
	}
	if known {
		lost.Transactions = count
	}
	if known && !p.Running {
		lost.To = respaldo.Coordinates{File: binlogs[len(binlogs)-1].Name, Position: end}
	}
	return nil
}

// countLimit is how much of binlogs is read to count their transactions while somebody
// waits for the question.
const countLimit = 4 << 30

// remarkRollback adds what a person should know before saying yes.
func (op *operation) remarkRollback(ctx context.Context, p *RollbackPlan) {
	note := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	if !p.Running {
		note("the server does not run: nobody can say which replicas it has, and what it had not written to its binlog is not counted")
	}
	switch {
	case !p.manifest.BinlogOn:
		note("the binlog is off: what came after the snapshot cannot be brought back from it")
	case p.Lost.Purged:
		note("the binlogs do not reach back to the snapshot any more: what is saved of them cannot be replayed onto it")
	}
	if p.Volume.Kind == respaldo.LVMThick {
		note("thick LVM cannot keep what the volume is now, and uses the snapshot up: this rollback cannot be undone")
		note("thick LVM cannot have the snapshot proved beforehand: the server's own start will show whether it is good")
		if others := op.otherSnapshots(ctx, p); len(others) > 0 {
			note("the volume's other snapshots take up what the merge overwrites, and are lost if they have no room for it: %s", strings.Join(others, ", "))
		}
	} else if op.Prove == respaldo.ProveNone {
		note("the snapshot is not proved beforehand, as asked: nobody knows whether it starts")
	}
	if then, now := p.Manifest.Version, p.manifest.Version; then.Text != now.Text {
		note("the snapshot was taken of %s, and the server's program is %s now", then, now)
	}
	for _, u := range p.Lost.To.Upstream {
		note("the server is itself a replica of %s:%d: started again, it fetches from there what it has lost here, unless it is started with skip-replica-start (skip-slave-start)", u.Host, u.Port)
	}
	if also := besidesData(p.mounted.Path, p.manifest.Layout.Of(respaldo.DataRole)[0].Real); len(also) > 0 {
		note("everything on the volume goes back, not the data alone; there is also %s", strings.Join(also, ", "))
	}
}

// otherSnapshots names the volume's snapshots besides the one to go back to. It is for a
// remark: where they cannot be listed there is none.
func (op *operation) otherSnapshots(ctx context.Context, p *RollbackPlan) (names []string) {
	found, _ := op.volumes.Leftovers(ctx, "")
	for _, s := range found {
		if d := s.Describe(); d.Volume == p.Volume.Name && d.Name != p.Snapshot.Name {
			names = append(names, d.Name)
		}
	}
	return names
}

// besidesData lists what lies at the top of a volume and does not lead to the data.
func besidesData(top, data string) (names []string) {
	if resolved(top) == resolved(data) {
		return nil
	}
	entries, _ := os.ReadDir(top)
	for _, e := range entries {
		path := filepath.Join(top, e.Name())
		if e.Name() == "lost+found" || e.Name() == ".respaldo" || within(data, path) {
			continue
		}
		if len(names) == 5 {
			return append(names, "…")
		}
		names = append(names, path)
	}
	return names
}
