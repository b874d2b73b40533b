package volume

import (
	"context"
	"errors"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// failing is a Runner whose every command fails.
type failing struct {
	out string
	err error
}

func (f failing) Run(context.Context, run.Cmd) (run.Result, error) {
	return run.Result{Stdout: []byte(f.out)}, f.err
}

// TestResumeSuspendedSaysWhenItCannot, so that nobody thinks that writers flow.
func TestResumeSuspendedSaysWhenItCannot(t *testing.T) {
	broken := errors.New("dmsetup: cannot allocate memory")
	s := &System{Run: failing{err: broken}}
	if err := s.ResumeSuspended(t.Context(), respaldo.Volume{Kind: respaldo.LVMThick, Name: "vg/lv", ID: "x"}); respaldo.KindOf(err) != respaldo.Leftovers || !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if err := s.ResumeSuspended(t.Context(), respaldo.Volume{Kind: respaldo.Btrfs, Name: "@data"}); err != nil {
		t.Errorf("Btrfs has nothing to resume: %v", err)
	}
}
