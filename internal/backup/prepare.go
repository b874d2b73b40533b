package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
)

// PrepareRequest says on what volume a server's data is to lie. Empty fields are chosen.
type PrepareRequest struct {
	Kind   respaldo.VolumeKind `json:"kind,omitempty"`
	Device string              `json:"device,omitempty"`
	Wipe   string              `json:"wipe,omitempty"` // the device again: what it holds may go
	Group  string              `json:"group,omitempty"`
	Name   string              `json:"name,omitempty"`
	FSType string              `json:"fs_type,omitempty"`
	Bytes  int64               `json:"bytes,omitempty"`
	Free   float64             `json:"free"` // a fraction of one; below zero: chosen
	Mount  string              `json:"mount,omitempty"`
}

// asked tells that the request names a place.
func (r PrepareRequest) asked() bool { return r.Device != "" || r.Group != "" }

// PrepareStep is one step for people: what is done, and the commands that do the same, and
// those that take it back; none if it stays.
type PrepareStep struct {
	Name     string   `json:"name"`
	Says     string   `json:"says"`
	Commands []string `json:"commands"`
	Undo     []string `json:"undo,omitempty"`
	Done     bool     `json:"done"`
}

// Plan is what prepare shows before it acts.
type Plan struct {
	*Preparation
	Steps []PrepareStep `json:"steps"`
}

// preparing is a preparation under way.
type preparing struct {
	*operation
	*Preparation
	host    *host.Host
	service *host.Service
	stopped time.Time     // zero while the server runs
	down    time.Duration // that it did not
	gone    func() bool   // tells that a server which was told to stop has ended; nil if none was
}

// Prepared tells what was made, or undone.
type Prepared struct {
	*Preparation
	Seconds float64 `json:"downtime_seconds"` // that the server was stopped
}

// PlanPrepare decides how the server is made snapshot-capable, or reads what an interrupted
// run had decided. It changes nothing.
func (s *Site) PlanPrepare(ctx context.Context, r PrepareRequest) (*Plan, error) {
	p, err := s.loadPreparation()
	if err != nil {
		return nil, err
	}
	op := &operation{Site: s, volumes: s.volumes()}
	switch {
	case p == nil:
		w, err := op.decide(ctx, r)
		if err != nil {
			return nil, err
		}
		return w.plan(), nil
	case p.State == PrepareBack:
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "an undo of an earlier preparation was interrupted", Hint: "complete it first: respaldo prepare --undo"}
	case r != (PrepareRequest{Free: -1}) && r != p.Request:
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("server %s has a preparation for %s already (%s)", s.Server, p.Volume.Node(), p.State),
			Hint: "respaldo prepare without --device and --vg goes on with it, respaldo prepare --undo goes back; if that volume is long gone, delete " + s.journalOf()}
	}
	return op.planOf(ctx, p)
}

// PlanUndo reads what an undo would take back. It changes nothing.
func (s *Site) PlanUndo(ctx context.Context) (*Plan, error) {
	p, err := s.loadPreparation()
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, &respaldo.Error{Kind: respaldo.NotFound, What: "server " + s.Server + " was not prepared by respaldo: there is nothing to undo",
			Hint: "was it another? --server names it"}
	}
	return (&operation{Site: s, volumes: s.volumes()}).planOf(ctx, p)
}

func (op *operation) planOf(ctx context.Context, p *Preparation) (*Plan, error) {
	w := &preparing{operation: op, Preparation: p}
	if err := w.findService(ctx); err != nil {
		return nil, err
	}
	return w.plan(), nil
}

func (w *preparing) findService(ctx context.Context) (err error) {
	w.host = &host.Host{Run: w.Run, Log: w.Log}
	if w.Unit != "" {
		w.service, err = w.host.UnitService(ctx, w.Unit)
	} else {
		w.service, err = w.host.Service(ctx, 0, w.Service)
	}
	return err
}

func (w *preparing) plan() *Plan {
	plan := &Plan{Preparation: w.Preparation}
	for _, s := range w.steps() {
		one := PrepareStep{Name: s.name, Says: s.says, Commands: s.shows, Undo: s.backs, Done: w.has(s.name)}
		if s.holds && (w.Stays || w.Lives) {
			one.Undo = nil
		}
		plan.Steps = append(plan.Steps, one)
	}
	return plan
}

// Prepare does what a plan says, and goes on where an earlier run ended. Until the server
// has been started on the volume, any failure and any interrupt brings it back to where it
// was: it is running there when Prepare returns. So does a start that fails.
func (s *Site) Prepare(ctx context.Context, plan *Plan) (done Prepared, err error) {
	done.Preparation = plan.Preparation
	if plan.State == PrepareDone {
		return done, nil
	}
	w, err := s.beginPreparing(ctx, plan.Preparation)
	if err != nil {
		return done, err
	}
	defer w.close(ctx, &err)
	w.halfSwitched()
	w.State = PrepareForward
	if err := w.save(); err != nil {
		return done, err
	}
	err = w.forward(ctx)
	done.Seconds = w.down.Seconds()
	if err == nil {
		w.State = PrepareDone
		return done, w.save()
	}
	hint := "respaldo prepare goes on from here, respaldo prepare --undo goes back"
	if !w.has(stepStop) && w.Begun != stepStop {
		return done, &respaldo.Error{Kind: respaldo.KindOf(err), What: "the server was not touched, and works where it did before", Hint: hint, Err: err}
	}
	if w.Lives {
		return done, joinErrors(err, &respaldo.Error{Kind: respaldo.KindOf(err), What: "the server's data lies on the new volume now, but it is not as it should be", Hint: w.hintIfDown(hint)})
	}
	if failed := w.back(context.WithoutCancel(ctx), stepStop); failed != nil {
		return done, joinErrors(err, &respaldo.Error{Kind: respaldo.Failed, What: "could not bring the server back to where it was", Hint: w.hintIfDown(hint), Err: failed})
	}
	w.Report.Step("back", "the server works where it did before")
	return done, &respaldo.Error{Kind: respaldo.KindOf(err), What: "the server was not moved, and works where it did before", Hint: hint, Err: err}
}

// Undo takes a preparation back. What the server has written since lies at its old place
// afterwards; the volume that held it is left as it is.
func (s *Site) Undo(ctx context.Context, plan *Plan) (done Prepared, err error) {
	done.Preparation = plan.Preparation
	w, err := s.beginPreparing(ctx, plan.Preparation)
	if err != nil {
		return done, err
	}
	defer w.close(ctx, &err)
	if err := w.roomToGoBack(); err != nil {
		return done, err
	}
	w.State = PrepareBack
	if err := w.save(); err != nil {
		return done, err
	}
	err = w.back(ctx, "")
	done.Seconds = w.down.Seconds()
	if err == nil {
		w.State = PrepareUndone
		if err := os.Remove(w.journalOf()); err != nil {
			return done, err
		}
		return done, disk.Sync(w.StateDir)
	}
	if w.has(stepSwitch) && !w.has(stepStart) { // it was stopped, and its data is on the volume still
		w.State = PrepareForward
		w.halfSwitched()
		if failed := joinErrors(w.dropFresh(), w.forward(context.WithoutCancel(ctx))); failed != nil {
			return done, joinErrors(err, &respaldo.Error{Kind: respaldo.KindOf(failed), What: "could not go on with the server on the volume either", Hint: w.hintIfDown("respaldo prepare tries again"), Err: failed})
		}
		w.State = PrepareDone
		return done, joinErrors(&respaldo.Error{Kind: respaldo.KindOf(err), What: "the server was not moved back, and works on the volume as before", Err: err}, w.save())
	}
	return done, &respaldo.Error{Kind: respaldo.KindOf(err), What: "the undo is not complete", Hint: w.hintIfDown("respaldo prepare --undo goes on from here"), Err: err}
}

func (s *Site) beginPreparing(ctx context.Context, p *Preparation) (*preparing, error) {
	op, err := s.begin(ctx, "prepare")
	if err != nil {
		return nil, err
	}
	w := &preparing{operation: op, Preparation: p}
	if err = w.stillSo(ctx); err == nil {
		err = w.findService(ctx)
	}
	if err == nil {
		err = w.settle(ctx)
	}
	if err != nil {
		w.close(ctx, &err)
		return nil, err
	}
	return w, nil
}

// stillSo refuses a plan that was made in another situation: the question may have waited
// for its answer for hours.
func (w *preparing) stillSo(ctx context.Context) error {
	now, err := w.loadPreparation()
	if err != nil {
		return err
	}
	if (now == nil) != (w.State == PreparePlanned) || now != nil && (now.State != w.State || !slices.Equal(now.Done, w.Done)) {
		return &respaldo.Error{Kind: respaldo.Busy, What: "somebody else has gone on with the preparation meanwhile", Hint: "call it again"}
	}
	if w.State != PreparePlanned {
		return nil
	}
	return w.volumes.StillFree(ctx, w.Volume)
}

// settle puts a journal that another run left into the state in which it can be walked on.
func (w *preparing) settle(ctx context.Context) error {
	if w.Tried {
		w.Lives = true // nobody saw what became of the start
	}
	if w.has(stepSwitch) && !slices.ContainsFunc(w.Moves, Move.switched) { // going back, it died just before it noted that it was back
		w.Done = slices.DeleteFunc(w.Done, func(step string) bool { return step == stepSwitch })
		w.Tried, w.Lives = false, false
	}
	for _, m := range w.Moves {
		if w.Lives || !m.switched() || !exists(m.Aside) {
			continue
		}
		// The run died between two directories, and somebody may have started the server since.
		if _, err := host.SameTree(ctx, m.Aside, m.To, nil); errors.Is(err, host.ErrDiffers) {
			w.Lives = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

// forward does the steps that are not done.
func (w *preparing) forward(ctx context.Context) error {
	for _, s := range w.steps() {
		if w.has(s.name) {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		begun := w.Begun == s.name
		w.Begun = s.name
		if err := w.save(); err != nil {
			return err
		}
		ledger.Point("prepare." + s.name)
		if err := s.do(ctx, begun); err != nil {
			return &respaldo.Error{Kind: respaldo.KindOf(err), What: "could not " + s.says, Err: err}
		}
		ledger.Point("prepare." + s.name + ".done")
		w.Begun, w.Done = "", append(w.Done, s.name)
		if err := w.save(); err != nil {
			return err
		}
		w.Report.Step(s.name, s.says)
	}
	return nil
}

// back undoes steps, the last first, up to and including one; all of them if none is named.
func (w *preparing) back(ctx context.Context, until string) error {
	for _, s := range slices.Backward(w.steps()) {
		if !w.has(s.name) && w.Begun != s.name {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		ledger.Point("undo." + s.name)
		if s.undo != nil && !(s.holds && w.Stays) {
			if err := s.undo(ctx); err != nil {
				return &respaldo.Error{Kind: respaldo.KindOf(err), What: "could not take this back: " + s.says, Err: err}
			}
			w.Report.Step("undone", s.says)
		}
		ledger.Point("undo." + s.name + ".done")
		if w.Begun == s.name {
			w.Begun = ""
		}
		w.Done = slices.DeleteFunc(w.Done, func(step string) bool { return step == s.name })
		if err := w.save(); err != nil {
			return err
		}
		if s.name == until {
			break
		}
	}
	return nil
}
