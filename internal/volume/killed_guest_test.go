//go:build guest

package volume_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// refuseToRun notes a command's argv and does not run it.
type refuseToRun struct {
	run.Runner
	program string
	argv    []string
}

func (r *refuseToRun) Run(ctx context.Context, c run.Cmd) (run.Result, error) {
	if c.Argv[0] == r.program {
		r.argv = c.Argv
		return run.Result{Exit: 5}, &run.ExitError{Cmd: c.String(), Exit: 5, Stderr: "not run"}
	}
	return r.Runner.Run(ctx, c)
}

// commandLines returns what makes lvcreate's or lvremove's argv for a snapshot, as we
// call them; for lvremove the snapshot is there then.
func commandLines(t *testing.T, path, program string) func(name string) []string {
	t.Helper()
	spy := &refuseToRun{Runner: run.Local{}, program: program}
	origin := find(t, &volume.System{Run: spy}, path)
	return func(name string) []string {
		t.Helper()
		p, err := origin.Prepare(t.Context(), volume.Request{Name: name, Server: "killed", Bytes: 16 << 20})
		var snap volume.Snapshot
		if err == nil {
			snap, err = finish(t, p)
		}
		if program == "lvremove" && err == nil {
			err = snap.Remove(t.Context())
		}
		if err == nil || spy.argv == nil {
			t.Fatalf("%s was not called: %v", program, err)
		}
		return spy.argv
	}
}

// TestKilledCommand kills the commands that make and remove a snapshot, as we call them,
// right after calls by which they change something. After each, writers get on, the leftover
// is found by its tag and removed, and neither LVM nor the kernel keeps a trace. With
// RESPALDO_SOAK set every single call is swept, else those around the suspension of the origin.
func TestKilledCommand(t *testing.T) {
	for kind, programs := range map[string][]string{"thick-ext4": {"lvcreate", "lvconvert", "lvremove"}, "thin-ext4": {"lvcreate", "lvremove"}} {
		for _, program := range programs {
			t.Run(kind+"/"+program, func(t *testing.T) {
				v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 128 << 20})
				sys := system(t)
				origin := find(t, sys, v.Path)
				argv := commandLines(t, v.Path, program)
				calls := killAfter(t, 0, argv("respaldo-whole"))
				remove(t, sys, "respaldo-whole")
				t.Logf("%s makes these calls: %q", program, calls)
				before := guest.Look(t)
				for _, n := range worthKilling(t, calls) {
					name := fmt.Sprintf("respaldo-killed-%d", n)
					what := fmt.Sprint(n, " ", killAfter(t, n, argv(name))[n-1])
					recovered(t, sys, v, origin.Describe(), name, what)
					before.NothingLeft(t)
					if t.Failed() {
						t.Fatalf("after %s", what)
					}
				}
				if out := guest.Run(t, "vgck", v.Group); strings.TrimSpace(out) != "" {
					t.Errorf("vgck says %s", out)
				}
			})
		}
	}
}

// killAfter kills a volume command right after the nth call by which it changes something,
// n from 1 on; with n 0 it runs to its end. It returns all those calls up to there.
func killAfter(t *testing.T, n int, argv []string) []string {
	t.Helper()
	calls, killed := guest.KillWhen(t, argv, func(calls []string) bool { return len(calls) == n })
	if n > 0 && !killed {
		t.Fatalf("%v ended by itself after %q", argv, calls)
	}
	return calls
}

// worthKilling chooses calls, counted from 1: the last before the first suspension, the
// last suspension, what follows it, and the first and the last resumption.
func worthKilling(t *testing.T, calls []string) []int {
	if os.Getenv("RESPALDO_SOAK") != "" {
		all := make([]int, len(calls))
		for i := range all {
			all[i] = i + 1
		}
		return all
	}
	suspends, resumes := []int{}, []int{}
	for i, c := range calls {
		switch {
		case strings.HasPrefix(c, "suspend"):
			suspends = append(suspends, i+1)
		case strings.HasPrefix(c, "resume") && len(suspends) > 0:
			resumes = append(resumes, i+1)
		}
	}
	if len(suspends) == 0 { // lvremove of a thin snapshot, lvcreate of a thick one's store
		return []int{len(calls) / 2, len(calls) - 1}
	}
	last := suspends[len(suspends)-1]
	chosen := []int{suspends[0] - 1, last, last + 1, resumes[0], resumes[len(resumes)-1]}
	slices.Sort(chosen)
	return slices.Compact(chosen)
}

// recovered does what cleanup does, and then asks for what a user would.
func recovered(t *testing.T, sys *volume.System, v *guest.Volume, origin respaldo.Volume, name, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wrote := make(chan error, 1)
	go func() { // hangs as long as the origin is suspended
		f, err := os.Create(filepath.Join(v.Path, "written"))
		if err == nil {
			_, err = f.WriteString(what)
			err = firstOf(err, f.Sync(), f.Close())
		}
		wrote <- err
	}()
	// Writers get on even when no record says which origin it was.
	if err := sys.ResumeLeftovers(ctx); err != nil {
		t.Errorf("killed after %s: %v", what, err)
	}
	select {
	case err := <-wrote:
		if err != nil {
			t.Errorf("killed after %s: the origin cannot be written: %v", what, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("killed after %s: writers still hang\n%s", what, guest.Run(t, "dmsetup", "info", "-c"))
	}
	if err := sys.ResumeSuspended(ctx, origin); err != nil {
		t.Errorf("killed after %s: %v", what, err)
	}
	left, err := sys.Leftovers(ctx, "killed")
	if err != nil {
		t.Errorf("killed after %s: %v", what, err)
	}
	for _, snap := range left {
		if d := snap.Describe(); d.Name != name || d.Volume != origin.Name {
			t.Errorf("killed after %s: leftover %+v", what, d)
		}
		if err := snap.Remove(ctx); err != nil {
			t.Errorf("killed after %s: %v", what, err)
		}
	}
}

func firstOf(errs ...error) error {
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}

// What somebody else has suspended stays so, even in a group where names begin like ours.
func TestStrangersStaySuspended(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 64 << 20})
	before := guest.Look(t)
	for _, name := range []string{"other", "respaldo-archive"} {
		guest.Run(t, "lvcreate", "-qq", "-y", "-Wn", "-L", "8m", "-n", name, v.Group)
	}
	snap := take(t, find(t, system(t), v.Path), volume.Request{Server: "ours", Bytes: 16 << 20})
	device := v.Group + "-other"
	guest.Run(t, "dmsetup", "suspend", device)
	if err := system(t).ResumeLeftovers(t.Context()); err != nil {
		t.Error(err)
	}
	if state := strings.TrimSpace(guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "suspended", device)); state != "Suspended" {
		t.Errorf("%s is %s", device, state)
	}
	guest.Run(t, "dmsetup", "resume", device)
	if err := snap.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	guest.Run(t, "lvremove", "-qq", "-y", v.Group+"/other", v.Group+"/respaldo-archive")
	before.NothingLeft(t)
}
