package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

const kindRollback ledger.Kind = "rollback"

// rollback is one under way, as the ledger has it: all that is needed to lead it to an end
// when the run that began it is dead.
type rollback struct {
	Phase    phase           `json:"phase"`
	Way      volume.Rollback `json:"way"`
	Mounted  volume.Mounted  `json:"mounted"`
	Service  host.Commands   `json:"service"`
	DataDir  string          `json:"data_dir"`
	Running  bool            `json:"running"` // the server did when it began
	PID      int             `json:"pid,omitempty"`
	Started  uint64          `json:"started,omitempty"`
	SaveTo   string          `json:"save_to,omitempty"`
	Timeline history         `json:"timeline"` // that begins with the switch

	Copied     []string `json:"copied,omitempty"`       // binlogs into SaveTo, begun or done
	MadeSaveTo bool     `json:"made_save_to,omitempty"` // it was not there

	held   *ledger.Held
	copied *ledger.Held // the entry of the snapshot's copy
	over   bool         // the volume is back and mounted: a failure from here on changes nothing
}

// phase is how far a rollback has come. Whether a switch has begun, the volume itself says.
type phase string

const (
	stillUp   phase = "preparing" // the server runs on, if it did
	stopping  phase = "stopping"  // it may not
	switching phase = "switching" // the volume may be another
)

const attrRollback = "rollback"

func (op *operation) beginRollback(p *RollbackPlan) (*rollback, error) {
	r := &rollback{Phase: stillUp, Way: *p.way, Mounted: p.mounted, DataDir: p.manifest.Layout.DataDir, Running: p.Running, SaveTo: p.SaveTo,
		Service: p.service.Commands()}
	if p.Running {
		r.PID, r.Started = p.facts.Process.PID, p.facts.Process.Started
	}
	// The coordinates of the snapshot come again, with another history: also where they are
	// not before those of the last image.
	last := op.lastImage()
	r.Timeline = history{Timeline: history{}.timeline("", respaldo.Coordinates{}), ServerUUID: p.Manifest.ServerUUID,
		Coordinates: p.Manifest.Quiesced.Coordinates, Volume: last.Volume, HeldSeconds: last.HeldSeconds}
	content, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	r.held, err = op.ledger.Intend(kindRollback, map[string]string{attrRollback: string(content)})
	return r, err
}

// note writes down what has become known.
func (r *rollback) note() error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return r.held.Note(attrRollback, string(content))
}

func (r *rollback) enter(next phase) error {
	r.Phase = next
	if err := r.note(); err != nil {
		return err
	}
	ledger.Point("rollback." + string(next))
	return nil
}

// endRollback leads a rollback that has failed back, or forward where it has come too far,
// and strikes it off when the server has its volume.
func (op *operation) endRollback(ctx context.Context, r *rollback, failed error) error {
	ctx = context.WithoutCancel(ctx)
	if failed != nil && !r.over {
		forward, notStarted, err := op.settleRollback(ctx, r)
		failed = joinErrors(failed, notStarted)
		if err != nil {
			return joinErrors(failed, err) // stays in the ledger
		}
		if forward {
			op.Report.Warn("the volume has gone back to " + r.Way.Snapshot.Name + " all the same")
		} else {
			op.Report.Warn("nothing has gone back: the volume is as it was")
		}
	}
	if r.copied != nil {
		failed = joinErrors(failed, r.copied.Released())
	}
	return joinErrors(failed, r.held.Released())
}

// settleRollback leads a rollback that ended midway to where the volume is mounted and the
// server runs, if it did: forward if the volume has begun to be another, back otherwise. A
// server that does not start is apart from what else may go wrong: its volume is there.
func (op *operation) settleRollback(ctx context.Context, r *rollback) (forward bool, notStarted, err error) {
	if r.Phase == switching {
		if forward, err = op.volumes.SwitchBegun(ctx, &r.Way); err != nil {
			return false, nil, err
		}
	}
	if forward {
		if err := op.switchOver(ctx, r); err != nil {
			return true, nil, err
		}
		started, notStarted := op.startIfStopped(ctx, r)
		if started && notStarted == nil {
			notStarted = op.sameAsSnapshot(ctx, r)
		}
		return true, notStarted, nil
	}
	if r.Phase != stillUp {
		if err := op.mountAgain(ctx, r); err != nil {
			return false, nil, err
		}
		if r.Running {
			r.Phase = stopping // for what is said of a server that does not start
			_, notStarted = op.startIfStopped(ctx, r)
		}
	}
	err = op.volumes.UndoRollback(ctx, &r.Way)
	if r.Way.KeepsState() {
		if removeErr := os.Remove(op.manifestPath(r.Way.State.Name)); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			err = joinErrors(err, removeErr)
		}
	}
	return false, notStarted, joinErrors(err, r.dropCopiedBinlogs())
}

// settleRollbacks is settleRollback for what dead runs have left. A server that does not
// start is said, and is no reason to do this again and again: its volume is there.
func (op *operation) settleRollbacks(ctx context.Context, entries []ledger.Entry, swept *Swept) error {
	for _, e := range entries {
		if e.Kind != kindRollback {
			continue
		}
		if err := waitForExit(ctx, e); err != nil {
			return err
		}
		r := &rollback{}
		if err := json.Unmarshal([]byte(e.Attrs[attrRollback]), r); err != nil {
			return &respaldo.Error{Kind: respaldo.Leftovers, What: "cannot read in the ledger how far a rollback had come", Err: err,
				Hint: "see whether the server's volume is mounted, and start the server"}
		}
		var err error
		if r.held, err = op.ledger.Intend(kindRollback, e.Attrs); err != nil {
			return err
		}
		forward, notStarted, err := op.settleRollback(ctx, r)
		if notStarted != nil {
			op.Report.Warn(notStarted.Error())
		}
		if err == nil { // nothing else that cannot be swept is a reason to do this again
			err = op.ledger.Cleaned(e)
		}
		err = joinErrors(err, r.held.Released())
		if err != nil {
			return &respaldo.Error{Kind: respaldo.Leftovers, What: "a rollback to " + r.Way.Snapshot.Name + " ended midway, and could not be brought to an end", Err: err,
				Hint: "the server may be without its volume: see what is in the way, then run: respaldo cleanup --server " + op.Server}
		}
		what := "undone: the volume and the server are as they were"
		if forward {
			what = "finished: the volume is what the snapshot was"
			if r.Way.KeepsState() {
				what += ", and what it was stays as " + r.Way.State.Name
			}
			if r.SaveTo != "" {
				what += "; the binlogs since are in " + r.SaveTo
			}
		}
		swept.Rollbacks = append(swept.Rollbacks, "the rollback to "+r.Way.Snapshot.Name+", which had ended abruptly, was "+what)
	}
	return nil
}

func (op *operation) serviceOf(ctx context.Context, r *rollback) (*host.Service, error) {
	return (&host.Host{Run: op.Run, Log: op.Log}).Service(ctx, 0, r.Service)
}

// stopServer returns when its process has ended. One that crashed is stopped as well, since
// somebody may be about to start it again.
func (op *operation) stopServer(ctx context.Context, p *RollbackPlan, r *rollback) error {
	if err := r.enter(stopping); err != nil {
		return err
	}
	gone := func() bool { return refuseOpen(r.DataDir) == nil }
	if p.Running {
		p.close() // our connections are none that its shutdown should wait for
		gone = func() bool { return !p.facts.Process.Alive() }
	}
	if err := p.service.Stop(ctx, gone); err != nil && (p.Running || !gone()) {
		return err
	}
	if err := refuseOpen(r.DataDir); err != nil {
		return err // something else has started it again
	}
	op.Report.Step("stopped", p.Service)
	ledger.Point("rollback.stopped")
	return nil
}

// shutdownPatience is how long a server that was told to stop is waited for before it is
// started again; and recoverPatience how long it may recover before it answers.
const (
	shutdownPatience = 10 * time.Minute
	recoverPatience  = 30 * time.Minute
)

// startIfStopped starts a server that we have stopped, or were about to, and tells whether
// it had to.
func (op *operation) startIfStopped(ctx context.Context, r *rollback) (bool, error) {
	told := mysql.Process{PID: r.PID, Started: r.Started}
	if refuseOpen(r.DataDir) != nil && !(r.PID > 0 && told.Alive()) {
		return false, nil // it runs, and is not the one that was told to stop
	}
	service, err := op.serviceOf(ctx, r)
	if err != nil {
		return true, err
	}
	waiting, cancel := context.WithTimeout(ctx, shutdownPatience)
	defer cancel()
	if r.PID > 0 && told.Alive() {
		if err := service.Stop(waiting, func() bool { return !told.Alive() }); err != nil {
			return true, err
		}
	}
	return true, op.startServer(ctx, r)
}

// startServer returns when the server answers, or does not let us in.
func (op *operation) startServer(ctx context.Context, r *rollback) error {
	service, err := op.serviceOf(ctx, r)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := service.Start(ctx); err != nil {
		return op.notStarted(r, err)
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		server, err := mysql.Connect(ctx, op.MySQL, op.Log)
		if err == nil {
			server.Close()
			if refuseOpen(r.DataDir) == nil { // one that had been started before the volume was there
				return &respaldo.Error{Kind: respaldo.NotProved, What: "a server answers, and has nothing open in " + r.DataDir + ": it is none that lives on the volume",
					Hint: "see who has started it and on which files, stop it, and start the server again"}
			}
			op.Report.Step("started", "the server answers, after "+FormatDuration(time.Since(begun)))
			ledger.Point("rollback.started")
			return nil
		}
		late := time.Since(begun) > recoverPatience || time.Since(begun) > time.Minute && refuseOpen(r.DataDir) == nil
		if late || ctx.Err() != nil {
			return op.notStarted(r, err)
		}
		<-tick.C
	}
}

func (op *operation) notStarted(r *rollback, cause error) error {
	hint := "see the server's error log"
	if r.Way.KeepsState() && r.Phase == switching {
		hint += "; back to what the volume was: respaldo rollback " + r.Way.State.Name
	}
	return &respaldo.Error{Kind: respaldo.NotProved, What: fmt.Sprintf("the volume is mounted at %s, and the server does not start", r.Mounted.Path), Hint: hint, Err: cause}
}

// sameAsSnapshot asks the server, which has just been started, whether it is what the
// snapshot's manifest says. That itself may be gone.
func (op *operation) sameAsSnapshot(ctx context.Context, r *rollback) error {
	at := r.Timeline.Coordinates
	server, err := mysql.Connect(ctx, op.MySQL, op.Log)
	if err != nil {
		return err
	}
	defer server.Close()
	other, err := server.SameHistory(ctx, respaldo.Manifest{ServerUUID: r.Timeline.ServerUUID, Quiesced: respaldo.Quiesced{Coordinates: at}})
	if err != nil {
		return err
	}
	if other == "" {
		op.Report.Step("the same", "the server goes on from "+at.String())
		return nil
	}
	hint := "see its error log"
	if r.Way.KeepsState() {
		hint += "; back to what the volume was: respaldo rollback " + r.Way.State.Name
	}
	return &respaldo.Error{Kind: respaldo.NotProved, What: "the server runs, and is not what the snapshot was: " + other, Hint: hint}
}
