//go:build guest

package volume_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// system is the machine's own, with what it does in the test's log.
func system(t *testing.T) *volume.System {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	return &volume.System{Run: run.Local{Log: log}, Log: log, BusyFor: time.Second}
}

func find(t *testing.T, sys *volume.System, path string) volume.Volume {
	t.Helper()
	v, err := sys.Find(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// take prepares and takes a snapshot.
func take(t *testing.T, v volume.Volume, r volume.Request) volume.Snapshot {
	t.Helper()
	p, err := v.Prepare(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := finish(t, p)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// finish takes what is prepared.
func finish(t *testing.T, p volume.Pending) (volume.Snapshot, error) {
	t.Helper()
	err := p.Take(t.Context())
	snap, finishErr := p.Finish()
	if err != nil && (snap != nil || finishErr != nil) {
		t.Errorf("not taken (%v), and yet: %v, %v", err, snap, finishErr)
	}
	return snap, firstOf(err, finishErr)
}

// remove looks a snapshot up by name and removes it; none is fine too.
func remove(t *testing.T, sys *volume.System, name string) {
	t.Helper()
	snap, err := sys.Lookup(t.Context(), name)
	if respaldo.KindOf(err) == respaldo.NotFound && err != nil {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	if err := snap.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
}
