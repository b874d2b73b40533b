package backup

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/run"
)

// moved is a preparation whose one directory was exchanged for a link to its copy, just
// before the server is started there.
func moved(t *testing.T) (w *preparing, write func(path, text string)) {
	t.Helper()
	top := t.TempDir()
	m := Move{What: "data", Dir: top + "/old/mysql", To: top + "/volume/data", Aside: top + "/old/mysql" + asideSuffix}
	w = &preparing{operation: &operation{Site: &Site{Server: "main", StateDir: top, Run: run.Local{}, Log: slog.New(slog.DiscardHandler), Report: quiet{}}},
		Preparation: &Preparation{Format: preparationFormat, Moves: []Move{m}, State: PrepareForward, Done: []string{stepStop, stepCopy}}}
	write = func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(m.Dir+"/ibdata1", "as it was")
	write(m.To+"/other", "")
	if err := w.copy(t.Context(), m.Dir, m.To); err != nil {
		t.Fatal(err)
	}
	if err := w.setAside(); err != nil {
		t.Fatal(err)
	}
	w.Done, w.Tried = append(w.Done, stepSwitch), true
	return w, write
}

func (w *preparing) holds(t *testing.T, dir, want string) {
	t.Helper()
	if text, err := os.ReadFile(dir + "/ibdata1"); string(text) != want {
		t.Errorf("%s has %q, not %q: %v", dir, text, want, err)
	}
}

// A server that was started on the volume may have said yes to others before we heard of
// it: what it wrote comes back, and what was set aside only if it wrote nothing.
func TestNothingWrittenOnTheVolumeIsLost(t *testing.T) {
	w, write := moved(t)
	m := w.Moves[0]
	write(m.To+"/ibdata1", "written on the volume")
	if err := w.switchBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.holds(t, m.Dir, "written on the volume")
	w.holds(t, m.Aside, "as it was")
	if !w.Stays || w.Lives || w.Tried || !isDir(m.Dir) {
		t.Errorf("%+v", w.Preparation)
	}
	// And forward again: three versions are kept apart.
	write(m.Dir+"/ibdata1", "written at the old place")
	if err := w.copy(t.Context(), m.Dir, m.To); err != nil {
		t.Fatal(err)
	}
	if err := w.setAside(); err != nil {
		t.Fatal(err)
	}
	w.holds(t, m.Dir, "written at the old place")
	w.holds(t, m.Aside, "as it was")
	w.holds(t, w.Moves[0].Aside, "written at the old place")

	w, _ = moved(t)
	m = w.Moves[0]
	if err := w.switchBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.holds(t, m.Dir, "as it was")
	if w.Stays || w.Tried || !isDir(m.Dir) || exists(m.Aside) {
		t.Errorf("%+v", w.Preparation)
	}
}

// A run that died on its way back, when it was back and had not noted that, does not take
// what is on the volume for the present.
func TestPrepareKnowsThatItWasBack(t *testing.T) {
	w, write := moved(t)
	m := w.Moves[0]
	tried := *w.Preparation
	if err := w.switchBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(m.Dir+"/ibdata1", "written since")
	w.Preparation = &tried
	w.Done = slices.Clone(w.Done)
	if err := w.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.halfSwitched()
	if w.Lives || len(w.Done) > 0 || w.Begun != stepStop {
		t.Errorf("it would go on with %+v", w.Preparation)
	}
}

// What an undo has copied before it failed goes, and what lies on the volume stays.
func TestFailedUndoLeavesNoCopy(t *testing.T) {
	w, write := moved(t)
	m := w.Moves[0]
	write(m.fresh()+"/ibdata1", "half")
	if err := w.dropFresh(); err != nil || exists(m.fresh()) {
		t.Errorf("%s is still there: %v", m.fresh(), err)
	}
	w.holds(t, m.Dir, "as it was")
}

// A server that works on the volume is left at work when we give up.
func TestServerOnTheVolumeStays(t *testing.T) {
	w, _ := moved(t)
	holdOpen(t, w.Moves[0].To+"/ibdata1")
	w.MySQL.Socket = "/nonexistent"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.startHere(ctx); err == nil || !w.Lives {
		t.Errorf("%v; %+v", err, w.Preparation)
	}
	if hint := w.hintIfDown("do this"); !strings.HasPrefix(hint, "do this") {
		t.Errorf("of a server that runs: %q", hint)
	}
}

// A server that was told to stop, and for which nobody waits any longer, still looks like
// one that runs: it is started only when it has ended.
func TestStartWaitsForTheEnd(t *testing.T) {
	w, asked := &preparing{}, 0
	w.gone = func() bool { asked++; return asked == 3 }
	if err := w.letItEnd(); err != nil || asked != 3 || w.gone != nil {
		t.Errorf("asked %d times whether it has ended: %v", asked, err)
	}
}
