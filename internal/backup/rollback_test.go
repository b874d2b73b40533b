package backup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// What somebody puts beside the copies of the binlogs stays, and so does the directory that
// was there before.
func TestCopiedBinlogsAreDropped(t *testing.T) {
	for _, there := range []bool{true, false} {
		dir := t.TempDir()
		l, err := ledger.Open(filepath.Join(dir, "state"), "main", "rollback", filepath.Join(dir, "run"))
		if err != nil {
			t.Fatal(err)
		}
		r := &rollback{SaveTo: filepath.Join(dir, "binlogs")}
		if there {
			if err := os.Mkdir(r.SaveTo, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if r.held, err = l.Intend(kindRollback, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.willCopy([]mysql.Binlog{{Name: "binlog.000001"}, {Name: "binlog.000002"}}); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(r.SaveTo, 0o700); err != nil {
			t.Fatal(err)
		}
		theirs := filepath.Join(r.SaveTo, "binlog.000003")
		for _, path := range []string{filepath.Join(r.SaveTo, "binlog.000001"), theirs} {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.willCopy([]mysql.Binlog{{Name: "binlog.000002"}, {Name: "binlog.000003"}}); respaldo.KindOf(err) != respaldo.Refused {
			t.Errorf("another's file would be overwritten: %v", err)
		}
		for range 2 { // and again after a crash
			if err := r.dropCopiedBinlogs(); err != nil {
				t.Error(err)
			}
		}
		if entries, err := os.ReadDir(r.SaveTo); err != nil || len(entries) != 1 {
			t.Errorf("left: %v, %v", entries, err)
		}
		os.Remove(theirs)
		if err := r.dropCopiedBinlogs(); err != nil || exists(r.SaveTo) != there {
			t.Errorf("the directory, which was there %v, is there %v: %v", there, exists(r.SaveTo), err)
		}
		if err := joinErrors(r.held.Released(), l.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Somebody has started the server while its volume was away: nothing is mounted over it.
func TestServerBelowTheMountPoint(t *testing.T) {
	at := t.TempDir()
	data := filepath.Join(at, "mysql")
	file := filepath.Join(data, "ibdata1")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pid := holdOpen(t, file)
	calls := &called{}
	op := &operation{Site: &Site{Server: "shop", Run: calls}, volumes: &volume.System{Run: calls}}
	r := &rollback{DataDir: data, Mounted: volume.Mounted{At: at, Path: at, Device: "/dev/null", FSType: "ext4"}}
	err := op.mountAgain(t.Context(), r)
	if respaldo.KindOf(err) != respaldo.Leftovers || !strings.Contains(err.Error(), pid) || len(respaldo.HintsOf(err)) != 1 || len(calls.argv) > 0 {
		t.Errorf("ran %q: %v, %q", calls.argv, err, respaldo.HintsOf(err))
	}
	r.DataDir = filepath.Join(at, "elsewhere")
	if err := op.mountAgain(t.Context(), r); err != nil || len(calls.argv) != 1 {
		t.Errorf("ran %q: %v", calls.argv, err)
	}
}

// called notes what would be run.
type called struct{ argv [][]string }

func (c *called) Run(_ context.Context, cmd run.Cmd) (run.Result, error) {
	c.argv = append(c.argv, cmd.Argv)
	return run.Result{}, nil
}

// The usual unit may be that of a server which runs.
func TestServiceOfOneOfSeveral(t *testing.T) {
	op := &operation{Site: &Site{Server: "shop", Several: true}}
	_, err := op.findService(t.Context(), 0)
	if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "[server.shop]") {
		t.Errorf("%v", err)
	}
	op.Service = host.Commands{Stop: []string{"stop-shop"}, Start: []string{"start-shop"}}
	if s, err := op.findService(t.Context(), 0); err != nil || s.String() != "start-shop" {
		t.Errorf("%v, %v", s, err)
	}
}
