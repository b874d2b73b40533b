package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// bare runs programs on a machine that has none of LVM's, whatever this one has.
type bare struct{}

func (bare) Run(context.Context, run.Cmd) (run.Result, error) { return run.Result{}, os.ErrNotExist }

// monitored is a server "shop" with a real repository, in which there is a backup of another
// host's server of the same name.
func monitored(t *testing.T) (s *Site, save func(ago time.Duration, proved bool) respaldo.Backup) {
	t.Helper()
	root, _ := origin(t)
	top := t.TempDir()
	folder := filepath.Join(top, "repo")
	r, b := repository(t, folder, root+"/data")
	s = &Site{Server: "shop", ServerID: "ours", Host: "db1", StateDir: filepath.Join(top, "state"), RunDir: filepath.Join(top, "run"), Run: bare{}, Report: quiet{},
		Repository: func(ctx context.Context) (*repo.Repo, error) {
			return repo.Open(ctx, repo.Config{URL: "file://" + folder}, "password", repo.Options{CacheDir: filepath.Join(top, "cache"), Host: "db1"})
		}}
	return s, func(ago time.Duration, proved bool) respaldo.Backup {
		t.Helper()
		m := b.Manifest
		m.ServerID, m.Taken = "ours", time.Now().Add(-ago)
		m.Proof = respaldo.Proof{Level: respaldo.ProveQuick, OK: proved, RecoverySeconds: 1.5}
		m.Quiesced = respaldo.Quiesced{HeldSeconds: 0.25, StalledSeconds: 0.375, UsualSeconds: 0.125, Stall: "seen", Tries: 2}
		b := respaldo.Backup{ID: record(t, r, root+"/data", m), Manifest: m, Bytes: 42}
		return b
	}
}

// says fails the test unless the status is in a state for exactly these reasons.
func says(t *testing.T, st *Status, state State, reasons ...string) {
	t.Helper()
	good := st.State == state && len(st.Problems) == len(reasons)
	for i := range min(len(reasons), len(st.Problems)) {
		good = good && strings.Contains(st.Problems[i].What, reasons[i])
	}
	kind := map[State]respaldo.Kind{StateAttention: respaldo.Attention, StateOverdue: respaldo.Overdue}[state]
	if err := st.Err(); !good || (err == nil) != (kind == 0) || err != nil && respaldo.KindOf(err) != kind {
		t.Errorf("%s: %+v\nnot %s: %q", st.State, st.Problems, state, reasons)
	}
}

var dayAndAHalf = StatusRequest{MaxAge: 36 * time.Hour, Warn: 0.75}

func TestStatusOfTheRepository(t *testing.T) {
	s, save := monitored(t)
	ctx := t.Context()
	st := s.Status(ctx, dayAndAHalf)
	says(t, st, StateOverdue, "there is no proved backup") // another host's does not count
	if !st.Reachable || st.Backups != 0 || st.Proved != nil {
		t.Errorf("%+v", st)
	}
	first := save(30*time.Hour, true)
	st = s.Status(ctx, dayAndAHalf)
	says(t, st, StateOK)
	if st.Backups != 1 || st.Proved == nil || st.Proved.ID != first.ID || time.Duration(st.AgeSeconds*1e9).Round(time.Hour) != 30*time.Hour {
		t.Errorf("%+v", st)
	}
	says(t, s.Status(ctx, StatusRequest{MaxAge: 26 * time.Hour}), StateOverdue, "is 30 h 0 min old, more than 26 h 0 min")
	unproved := save(time.Hour, false)
	st = s.Status(ctx, dayAndAHalf)
	says(t, st, StateAttention, "the last backup, "+unproved.ID+", is not proved")
	if st.Proved.ID != first.ID {
		t.Errorf("the proved one is %s, not %s", st.Proved.ID, first.ID)
	}
	says(t, s.Status(ctx, StatusRequest{MaxAge: time.Hour}), StateOverdue, "is 30 h 0 min old", "is not proved") // the worst first
	last := save(time.Minute, true)
	says(t, s.Status(ctx, dayAndAHalf), StateOK)
	wrong := save(-1000*time.Hour, true)
	st = s.Status(ctx, dayAndAHalf)
	says(t, st, StateAttention, wrong.ID+" is dated")
	if st.Proved.ID != last.ID {
		t.Errorf("a backup of a wrong clock counts: %+v", st.Proved)
	}
}

// What the repository cannot say, or is not there to say, this machine remembers.
func TestStatusFromMemory(t *testing.T) {
	s, save := monitored(t)
	s.Redact = func(text string) string { return strings.ReplaceAll(text, "s3cret", "***") }
	ctx := t.Context()
	good := save(2*time.Hour, true)
	s.noteEnd(time.Now(), Made{Backup: good}, nil)
	st := s.Status(ctx, dayAndAHalf)
	says(t, st, StateOK)
	if st.LastRun == nil || !st.LastRun.OK || st.LastRun.Backup != good.ID {
		t.Errorf("%+v", st.LastRun)
	}
	// Busy is the other operation's business, and keeps its record.
	s.noteEnd(time.Now(), Made{}, &respaldo.Error{Kind: respaldo.Busy, What: "busy"})
	says(t, s.Status(ctx, dayAndAHalf), StateOK)
	s.noteEnd(time.Now(), Made{}, &respaldo.Error{Kind: respaldo.LockTimeout, What: "no lock for s3cret", Hint: "wait"})
	st = s.Status(ctx, dayAndAHalf)
	says(t, st, StateAttention, "no lock for ***")
	if st.Problems[0].Hint != "wait" || st.LastRun.Kind != int(respaldo.LockTimeout) {
		t.Errorf("%+v %+v", st.Problems, st.LastRun)
	}

	op, err := s.open(operationBackup)
	if err != nil {
		t.Fatal(err)
	}
	op.noteStart()
	if st = s.Status(ctx, dayAndAHalf); st.Running != operationBackup {
		t.Errorf("running: %q", st.Running)
	}
	says(t, st, StateOK)
	if _, err := op.ledger.Intend(kindMount, map[string]string{"path": "/run/respaldo/mounts/x"}); err != nil {
		t.Fatal(err)
	}
	says(t, s.Status(ctx, dayAndAHalf), StateOK) // its mount is in use
	lock, err := os.ReadFile(filepath.Join(s.StateDir, "shop.lock"))
	if err = errors.Join(err, op.ledger.Close()); err != nil {
		t.Fatal(err)
	}
	died(t, s, lock)
	says(t, s.Status(ctx, dayAndAHalf), StateAttention, "never ended: it was killed", "left behind by an operation that ended abruptly: mount /run/respaldo/mounts/x")

	save(time.Hour, true)
	gone := respaldo.Backup{ID: "gone", Manifest: good.Manifest}
	gone.Manifest.Taken = time.Now()
	s.note(func(r *records) { *r = records{Proved: &gone} })
	if err := os.Remove(filepath.Join(s.StateDir, "shop.ledger")); err != nil {
		t.Fatal(err)
	}
	says(t, s.Status(ctx, dayAndAHalf), StateAttention, "backup gone was made here, but is no longer in the repository")

	s.note(func(r *records) { r.Proved = &good })
	journal, _ := json.Marshal(Preparation{Format: preparationFormat, State: PrepareForward})
	if err := os.WriteFile(s.journalOf(), journal, 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, s.Status(ctx, dayAndAHalf), StateAttention, "respaldo prepare was interrupted (under way)")
	journal, _ = json.Marshal(Preparation{Format: preparationFormat, State: PrepareDone})
	if err := os.WriteFile(s.journalOf(), journal, 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, s.Status(ctx, dayAndAHalf), StateOK)
	r := rollback{Way: volume.Rollback{Snapshot: respaldo.Snapshot{Name: "before-upgrade"}}}
	way, _ := json.Marshal(r)
	if name := rolledBackTo(ledger.Entry{Kind: kindRollback, Attrs: map[string]string{attrRollback: string(way)}}); name != "to before-upgrade" {
		t.Errorf("a dead rollback is named %q", name)
	}
	s.Repository = func(context.Context) (*repo.Repo, error) { return nil, errors.New("connection refused") }
	st = s.Status(ctx, dayAndAHalf)
	says(t, st, StateAttention, "cannot reach the repository: connection refused")
	if st.Reachable || st.Proved == nil || st.Proved.ID != good.ID {
		t.Errorf("%+v", st)
	}
	s.Repository = func(context.Context) (*repo.Repo, error) { select {} } // as a host that answers nothing
	says(t, s.Status(ctx, StatusRequest{MaxAge: 36 * time.Hour, Patience: time.Millisecond}), StateAttention, "cannot reach the repository: no answer within 1.00 ms")
	s.Repository = func(context.Context) (*repo.Repo, error) { return nil, errors.New("connection refused") }
	says(t, s.Status(ctx, StatusRequest{MaxAge: time.Hour}), StateOverdue, "as far as this machine remembers", "cannot reach")
}

// died makes what this process noted that of one that was killed: its name is still in the
// lock file, and its lock is not.
func died(t *testing.T, s *Site, lock []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.StateDir, "shop.lock"), lock, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.StateDir, "shop.ledger")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := ledger.Peek(s.StateDir, "shop")
	if err != nil || len(entries) != 1 || !entries[0].Alive() {
		t.Fatalf("%+v %v", entries, err)
	}
	start, _ := json.Marshal(entries[0].Start)
	later, _ := json.Marshal(entries[0].Start + 1)
	text = bytes.ReplaceAll(text, append([]byte(`"start":`), start...), append([]byte(`"start":`), later...))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Prometheus's own parser reads the metrics, and finds in them what the status says.
func TestMetrics(t *testing.T) {
	s, save := monitored(t)
	b := save(time.Hour, true)
	s.noteEnd(time.Now(), Made{Backup: b}, nil)
	st := s.Status(t.Context(), dayAndAHalf)
	st.Fill = &respaldo.Fill{Data: 0.5, Metadata: 0.25}
	never := &Status{Server: "never", At: st.At, State: StateOverdue}
	var text bytes.Buffer
	if err := WriteMetrics(&text, []*Status{st, never}); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text.String()))
	if err != nil {
		t.Fatalf("%v\n%s", err, text.String())
	}
	values := map[string]float64{}
	for name, family := range families {
		if family.GetHelp() == "" || family.GetType().String() != "GAUGE" {
			t.Errorf("%s is a %s, and %q", name, family.GetType(), family.GetHelp())
		}
		for _, m := range family.GetMetric() {
			key := name
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			values[key] = m.GetGauge().GetValue()
		}
	}
	for key, want := range map[string]float64{
		"respaldo_last_proved_backup_timestamp_seconds shop":       float64(st.Proved.Manifest.Taken.UnixMilli()) / 1000,
		"respaldo_last_proved_backup_bytes shop":                   float64(st.Proved.Bytes),
		"respaldo_last_proved_backup_duration_seconds shop":        st.Proved.End.Sub(st.Proved.Start).Seconds(),
		"respaldo_last_proved_backup_writers_held_seconds shop":    0.25,
		"respaldo_last_proved_backup_writers_stalled_seconds shop": 0.375,
		"respaldo_last_proved_backup_writers_usual_seconds shop":   0.125,
		"respaldo_last_proved_backup_tries shop":                   2,
		"respaldo_last_proved_backup_recovery_seconds shop":        1.5,
		"respaldo_max_age_seconds shop":                            36 * 3600,
		"respaldo_last_run_success shop":                           1,
		"respaldo_repository_reachable shop":                       1,
		"respaldo_repository_reachable never":                      0,
		"respaldo_backups shop":                                    1,
		"respaldo_kept_snapshots shop":                             0,
		"respaldo_leftovers shop":                                  0,
		"respaldo_overdue shop":                                    0,
		"respaldo_overdue never":                                   1,
		"respaldo_storage_fill_ratio shop data":                    0.5,
		"respaldo_storage_fill_ratio shop metadata":                0.25,
	} {
		if got, ok := values[key]; !ok || got != want {
			t.Errorf("%s is %v (there: %v), not %v", key, got, ok, want)
		}
	}
	for _, key := range []string{"respaldo_last_proved_backup_timestamp_seconds never", "respaldo_backups never", "respaldo_last_run_success never"} {
		if _, ok := values[key]; ok {
			t.Errorf("%s has a value that nobody knows", key)
		}
	}
}
