package volume

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// TestWaitsForItsCommands: a volume command of ours is waited for, not killed, and
// another program that has its process ID by now is not waited for.
func TestWaitsForItsCommands(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess("/bin/sh", []string{"lvcreate", "-c", "read line", "my-vg/data"}, &os.ProcAttr{Files: []*os.File{in}})
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for !isVolumeCommand(p.Pid, "my-vg") && ctx.Err() == nil { // until it is the shell
	}
	if err := waitForCommands(ctx, "my-vg", []int{p.Pid}); respaldo.KindOf(err) != respaldo.Busy || err == nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command at work: %v", err)
	}
	if err := waitForCommands(t.Context(), "vg", []int{os.Getpid(), p.Pid, 1 << 30}); err != nil {
		t.Errorf("processes that have nothing to do with the group: %v", err)
	}
	done := make(chan error)
	go func() { done <- waitForCommands(t.Context(), "my-vg", []int{p.Pid}) }()
	io.WriteString(out, "go\n")
	out.Close()
	p.Wait()
	if err := <-done; err != nil {
		t.Errorf("after the command's end: %v", err)
	}
}

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
