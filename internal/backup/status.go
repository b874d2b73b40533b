package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// StatusRequest says when to complain.
type StatusRequest struct {
	MaxAge time.Duration // of the last proved backup
	// Warn is the fill of a pool, a Btrfs filesystem or a kept snapshot, as a fraction of
	// one, from which on it is a problem.
	Warn float64
	// Patience is how long the repository may take to answer; 0 is a minute. A monitor does
	// not wait for a dead host's time-out.
	Patience time.Duration
}

// State is what a monitor shows.
type State string

const (
	StateOK        State = "ok"
	StateAttention State = "attention" // backups are young enough, something else is wrong
	StateOverdue   State = "overdue"   // no proved backup that is young enough
)

// Problem is one thing that is not as it should be.
type Problem struct {
	State State  `json:"state"` // how bad it is
	What  string `json:"what"`
	Hint  string `json:"hint,omitempty"`
}

// Status is how one server's backups are, without asking the server itself.
type Status struct {
	Server string    `json:"server"`
	At     time.Time `json:"at"`
	State  State     `json:"state"`
	// Proved is the last backup that was proved, nil if there is none. It is what the
	// repository says, or where that cannot be asked, what this machine remembers of it.
	Proved     *respaldo.Backup `json:"proved,omitempty"`
	AgeSeconds float64          `json:"age_seconds,omitempty"` // of what it is a backup of
	MaxAge     float64          `json:"max_age_seconds"`
	// Reachable tells that the repository answered; Backups counts this server's in it.
	Reachable bool           `json:"repository_reachable"`
	Backups   int            `json:"backups"`
	Kept      int            `json:"kept_snapshots"`
	Fill      *respaldo.Fill `json:"fill,omitempty"` // of the thin pool or Btrfs filesystem
	LastRun   *LastRun       `json:"last_run,omitempty"`
	Running   string         `json:"running,omitempty"` // an operation that is under way
	Leftovers []Leftover     `json:"leftovers,omitempty"`
	Problems  []Problem      `json:"problems,omitempty"`
}

func (st *Status) problem(state State, what, hint string) {
	st.Problems = append(st.Problems, Problem{State: state, What: what, Hint: hint})
	if st.State == StateOK || state == StateOverdue {
		st.State = state
	}
}

// cannot notes what could not be looked at: a monitor must not be calm for that.
func (st *Status) cannot(look string, err error) {
	st.problem(StateAttention, "cannot "+look+": "+err.Error(), strings.Join(respaldo.HintsOf(err), "; "))
}

// Err is every problem as an error of kind Overdue or Attention, the worst first; nil for
// StateOK.
func (st *Status) Err() error {
	var all []error
	for _, p := range st.Problems {
		kind := respaldo.Attention
		if p.State == StateOverdue {
			kind = respaldo.Overdue
		}
		all = append(all, &respaldo.Error{Kind: kind, What: st.Server + ": " + p.What, Hint: p.Hint})
	}
	return errors.Join(all...)
}

// fromFuture is how far a backup's time may lie ahead of our clock. One that lies further
// was made when a clock was wrong, and would look young for as long.
const fromFuture = 5 * time.Minute

// Status looks at the repository, this machine's records, its snapshots and their storage,
// and changes nothing. Whatever cannot be looked at is among the problems.
func (s *Site) Status(ctx context.Context, request StatusRequest) *Status {
	st := &Status{Server: s.Server, At: time.Now().UTC(), State: StateOK, MaxAge: request.MaxAge.Seconds()}
	known, err := s.remembered()
	if err != nil {
		st.cannot("read what this machine remembers", err)
	}
	st.LastRun = known.Last
	st.Running, _ = ledger.Running(s.StateDir, s.Server)

	newest := s.statusOfRepository(ctx, st, known, cmp.Or(request.Patience, time.Minute))
	st.judgeAge(request.MaxAge)
	st.judgeLastRun()
	s.statusOfPreparation(st)
	s.statusOfLeftovers(ctx, st, request.Warn)
	if newest != nil {
		s.statusOfVolume(ctx, st, newest.Manifest.Volume, request.Warn)
	}
	slices.SortStableFunc(st.Problems, func(a, b Problem) int { return cmp.Compare(b.State, a.State) }) // overdue first
	return st
}

// statusOfRepository finds the last proved backup, and returns the newest of all.
func (s *Site) statusOfRepository(ctx context.Context, st *Status, known records, patience time.Duration) (newest *respaldo.Backup) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", FormatDuration(patience)))
	defer cancel()
	list, err := s.listed(ctx)
	if err != nil {
		st.cannot("reach the repository", err)
		st.Proved = known.Proved
		return known.Proved
	}
	st.Reachable, st.Backups = true, len(list)
	for _, b := range list {
		if b.Manifest.Taken.After(st.At.Add(fromFuture)) {
			st.problem(StateAttention, fmt.Sprintf("backup %s is dated %s, in the future", b.ID, b.Manifest.Taken.Local().Format(time.DateTime)),
				"a clock was or is wrong; the backup does not count here")
			continue
		}
		if newest == nil || !b.Manifest.Taken.Before(newest.Manifest.Taken) {
			newest = &b
		}
		if b.Manifest.Proof.OK && (st.Proved == nil || !b.Manifest.Taken.Before(st.Proved.Manifest.Taken)) {
			st.Proved = &b
		}
	}
	if newest != nil && !newest.Manifest.Proof.OK {
		st.problem(StateAttention, "the last backup, "+newest.ID+", is not proved", "respaldo verify "+newest.ID+" --start")
	}
	if lost := known.Proved; lost != nil && (st.Proved == nil || lost.Manifest.Taken.After(st.Proved.Manifest.Taken)) {
		st.problem(StateAttention, "backup "+lost.ID+" was made here, but is no longer in the repository", "find out who removed it: respaldo never lets the newest one go")
	}
	return newest
}

// listed are this very server's backups. Not every kind of repository heeds the context
// while it connects: one that does not is left behind, and ends with the program.
func (s *Site) listed(ctx context.Context) (list []respaldo.Backup, err error) {
	answered := make(chan struct{})
	var found []respaldo.Backup
	var failed error
	go func() {
		defer close(answered)
		found, failed = s.list(ctx)
	}()
	select {
	case <-answered:
		return found, failed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *Site) list(ctx context.Context) (list []respaldo.Backup, err error) {
	var repository *repo.Repo
	if repository, err = s.Repository(ctx); err != nil {
		return nil, err
	}
	defer closeRepo(ctx, repository, &err)
	all, err := repository.List(ctx, s.Server)
	return slices.DeleteFunc(s.ours(all), func(b respaldo.Backup) bool { return b.Manifest.Dump != nil }), err
}

func (st *Status) judgeAge(most time.Duration) {
	from := ""
	if !st.Reachable {
		from = ", as far as this machine remembers"
	}
	if st.Proved == nil {
		st.problem(StateOverdue, "there is no proved backup"+from, "respaldo backup --server "+st.Server)
		return
	}
	age := max(0, st.At.Sub(st.Proved.Manifest.Taken))
	st.AgeSeconds = age.Seconds()
	if age > most {
		st.problem(StateOverdue, fmt.Sprintf("the last proved backup is %s old, more than %s%s", FormatDuration(age), FormatDuration(most), from),
			"see why the runs since came to nothing, or make one now: respaldo backup --server "+st.Server)
	}
}

func (st *Status) judgeLastRun() {
	last := st.LastRun
	switch {
	case last == nil || last.OK:
	case !last.Ended.IsZero():
		st.problem(StateAttention, fmt.Sprintf("the last run failed at %s: %s", last.Ended.Local().Format(time.DateTime), last.Error), strings.Join(last.Hints, "; "))
	case st.Running != operationBackup:
		st.problem(StateAttention, fmt.Sprintf("the last run, begun at %s, never ended: it was killed, or the machine went down", last.Started.Local().Format(time.DateTime)),
			"respaldo cleanup --server "+st.Server)
	}
}

// statusOfLeftovers counts what nobody uses any more: what the ledger notes of dead
// processes, and snapshots of no living operation; and looks at the kept ones.
func (s *Site) statusOfLeftovers(ctx context.Context, st *Status, warn float64) {
	entries := s.noted(st)
	alive := map[string]bool{} // runs
	for _, e := range entries {
		if e.Alive() {
			alive[e.Run] = true
		}
	}
	for _, e := range entries {
		switch path := e.Attrs["path"]; {
		case alive[e.Run] || e.Kind == kindSnapshot: // those that are there say so themselves
		case e.Kind != kindTarget:
			st.Leftovers = append(st.Leftovers, Leftover{Kind: string(e.Kind), Name: cmp.Or(path, e.Attrs["name"], rolledBackTo(e))})
		case repo.Incomplete(path):
			st.problem(StateAttention, path+" holds an incomplete restore", "run it again, or delete the directory")
		}
	}
	snapshots, err := s.Snapshots(ctx)
	if err != nil {
		st.cannot("look at the snapshots", err)
	}
	for _, k := range snapshots {
		switch {
		case k.Snapshot.Kept:
			st.Kept++
			st.judgeKept(k, warn)
		case !alive[k.Snapshot.Run]:
			st.Leftovers = append(st.Leftovers, Leftover{Kind: string(kindSnapshot), Name: k.Snapshot.Name})
		}
	}
	var names []string
	for _, l := range st.Leftovers {
		names = append(names, l.Kind+" "+l.Name)
	}
	if len(names) > 0 {
		st.problem(StateAttention, "left behind by an operation that ended abruptly: "+strings.Join(names, ", "), "respaldo cleanup --server "+st.Server)
	}
}

// rolledBackTo names the snapshot of a rollback.
func rolledBackTo(e ledger.Entry) string {
	var r rollback
	if e.Kind != kindRollback || json.Unmarshal([]byte(e.Attrs[attrRollback]), &r) != nil {
		return ""
	}
	return "to " + r.Way.Snapshot.Name
}

// statusOfPreparation tells of one that is not complete. One whose run is at work goes on.
func (s *Site) statusOfPreparation(st *Status) {
	p, err := s.loadPreparation()
	switch {
	case err != nil:
		st.cannot("read how far respaldo prepare is", err)
	case p != nil && p.State != PrepareDone && st.Running != "prepare":
		st.problem(StateAttention, "respaldo prepare was interrupted ("+string(p.State)+")", "call it again to go on, or with --undo to go back")
	}
}

// noted is what the ledgers say that somebody holds: the server's and its sides'.
func (s *Site) noted(st *Status) (entries []ledger.Entry) {
	sides, err := ledger.Sides(s.Server, s.StateDir)
	if err != nil {
		st.cannot("look for ledgers", err)
	}
	for _, scope := range append([]string{s.Server}, sides...) {
		held, err := ledger.Peek(s.StateDir, scope)
		if err != nil {
			st.cannot("read the ledger", err)
		}
		entries = append(entries, held...)
	}
	return entries
}

func (st *Status) judgeKept(k KeptSnapshot, warn float64) {
	name, cleanup := k.Snapshot.Name, "respaldo cleanup --server "+st.Server
	switch expires := k.Snapshot.Expires; {
	case !expires.IsZero() && expires.Before(st.At) && k.UsedBy == "":
		st.problem(StateAttention, fmt.Sprintf("snapshot %s was to go at %s and is still there", name, expires.Local().Format(time.DateTime)), cleanup+", by a timer")
	case !k.Fill.Valid && !k.Inactive:
		st.problem(StateAttention, "snapshot "+name+" has overflowed: what it holds is lost", cleanup)
	case k.Snapshot.Kind == respaldo.LVMThick && k.Fill.Data >= warn:
		st.problem(StateAttention, fmt.Sprintf("snapshot %s is %.0f%% full, and lost at 100%%", name, 100*k.Fill.Data), "remove it, or give it more room with lvextend")
	}
}

// statusOfVolume looks at the storage that snapshots share with the server, found by where
// the last backup's volume was mounted.
func (s *Site) statusOfVolume(ctx context.Context, st *Status, was respaldo.Volume, warn float64) {
	if was.Kind == respaldo.LVMThick || was.MountPoint == "" {
		return // a thick snapshot's room is its own
	}
	v, err := s.volumes().Find(ctx, was.MountPoint)
	if err == nil && !sameStorage(v.Describe(), was) {
		err = errors.New("another volume is mounted at " + was.MountPoint + " than at the last backup")
	}
	if err != nil {
		st.cannot("look at the volume", err)
		return
	}
	space, err := v.Space(ctx)
	if err != nil {
		st.cannot("look at the volume", err)
		return
	}
	st.Fill = &space.Fill
	where := "the thin pool of " + was.Name
	if was.Kind == respaldo.Btrfs {
		where = "the Btrfs filesystem at " + was.MountPoint
	}
	if f := space.Fill; f.Data >= warn || f.Metadata >= warn {
		st.problem(StateAttention, fmt.Sprintf("%s is %.0f%% full, its metadata %.0f%%; a full one stops the server", where, 100*f.Data, 100*f.Metadata),
			"give it more room, or remove kept snapshots: respaldo snapshot list --server "+st.Server)
	}
}
