//go:build guest

package volume_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestRollback is what every kind of volume does alike when it goes back to a snapshot.
// The subvolume of one Btrfs is mounted by itself, the other's is reached through its parent.
func TestRollback(t *testing.T) {
	kinds := []string{"thick-ext4", "thin-ext4", "btrfs-on-lv"}
	if os.Getenv("RESPALDO_SOAK") != "" {
		kinds = guest.Kinds
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 384 << 20})
			data := filepath.Join(v.Path, "mysql")
			switch kind {
			case "btrfs":
				guest.Run(t, "btrfs", "-q", "subvolume", "create", data)
			case "btrfs-on-lv":
				guest.Run(t, "btrfs", "-q", "subvolume", "create", data)
				mounted := t.TempDir()
				guest.Run(t, "mount", "-o", "subvol=mysql,noatime", v.Device, mounted)
				t.Cleanup(func() { guest.Run(t, "umount", mounted) })
				data = mounted
			default:
				if err := os.Mkdir(data, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			goesBack(t, kind, data)
		})
	}
}

// halfway is where a test ends a switch as a crash would.
type halfway string

// switchUntil ends a switch after a step; it tells whether it came so far.
func switchUntil(t *testing.T, sys *volume.System, r *volume.Rollback, step string) (reached bool) {
	t.Helper()
	defer func() {
		if at, ok := recover().(halfway); ok {
			reached = string(at) == step
		}
	}()
	err := sys.Switch(t.Context(), r, volume.SwitchOptions{Step: func(name string) {
		if name == step {
			panic(halfway(name))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return false
}

func goesBack(t *testing.T, kind, data string) {
	ctx, sys := t.Context(), system(t)
	file := filepath.Join(data, "file")
	then, now := []byte("then"), []byte("now")
	write(t, file, then)
	origin := find(t, sys, data)
	before := guest.Look(t)
	snap := take(t, origin, volume.Request{Name: "then", Server: "back", Bytes: 64 << 20, Kept: true})
	passing := take(t, origin, volume.Request{Name: "passing", Server: "back", Bytes: 64 << 20})
	_, err := sys.PlanRollback(ctx, origin, passing, volume.Request{Server: "back"})
	refused(t, err, respaldo.Refused, "passing", "not taken to stay")
	if err := passing.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	write(t, file, now)

	if origin.Describe().Kind == respaldo.Btrfs {
		nested := filepath.Join(data, "nested")
		guest.Run(t, "btrfs", "-q", "subvolume", "create", nested)
		_, _, err := sys.Mounted(ctx, origin.Describe())
		refused(t, err, respaldo.Refused, nested, "would not go back with it")
		guest.Run(t, "btrfs", "-q", "subvolume", "delete", nested)
	}
	m, _, err := sys.Mounted(ctx, origin.Describe())
	if err != nil {
		t.Fatal(err)
	}
	worker, err := os.StartProcess("/usr/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{Dir: data})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, sys.UnmountVolume(ctx, m), respaldo.Leftovers, "sleep (pid")
	worker.Kill()
	worker.Wait()

	back := func(to volume.Snapshot, state string, steps ...string) *volume.Rollback {
		t.Helper()
		origin := find(t, sys, data)
		r, err := sys.PlanRollback(ctx, origin, to, volume.Request{Name: state, Server: "back"})
		if err != nil {
			t.Fatal(err)
		}
		r.State.Created = time.Now()
		if r.KeepsState() {
			if _, err := sys.CopyForRollback(ctx, r, nil); err != nil {
				t.Fatal(err)
			}
		}
		if m.At != "" {
			refused := sys.Unused(ctx, r)
			if origin.Describe().Kind != respaldo.Btrfs && respaldo.KindOf(refused) != respaldo.Leftovers {
				t.Errorf("a volume that is mounted is said to be unused: %v", refused)
			}
		}
		if err := sys.UnmountVolume(ctx, m); err != nil {
			t.Fatal(err)
		}
		for _, step := range steps { // each a crash
			if !switchUntil(t, sys, r, step) {
				t.Errorf("no step %s", step)
			}
			begun, err := sys.SwitchBegun(ctx, r)
			if want := step != "copy.released" && step != "state.kept"; err != nil || begun != want {
				t.Errorf("after %s, begun: %v, %v", step, begun, err)
			}
		}
		for range 2 {
			if err := sys.Switch(ctx, r, volume.SwitchOptions{}); err != nil {
				t.Fatal(err)
			}
			if begun, err := sys.SwitchBegun(ctx, r); err != nil || !begun {
				t.Errorf("begun: %v, %v", begun, err)
			}
		}
		for range 2 {
			if err := sys.MountAgain(ctx, m); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	storage, _, _ := strings.Cut(kind, "-")
	steps := map[string][]string{"thick": {"merge.begun"}, "thin": {"copy.released", "renamed.away"}, "btrfs": {"state.kept", "exchanged"}}[storage]
	r := back(snap, "now", steps...)
	same(t, file, then)
	if !r.KeepsState() {
		if storage != "thick" {
			t.Error("the state is not kept")
		}
		before.NothingLeft(t)
		return
	}

	state, err := sys.Lookup(ctx, "now")
	if err != nil {
		t.Fatal(err)
	}
	if d := state.Describe(); !d.Kept || d.Server != "back" || d.Volume != origin.Describe().Name || time.Since(d.Created) > time.Hour {
		t.Errorf("the state is kept as %+v", d)
	}
	dir := filepath.Join(t.TempDir(), "state")
	mount(t, state, dir, false)
	inside := dir
	if _, err := os.Stat(filepath.Join(dir, "mysql")); err == nil {
		inside = filepath.Join(dir, "mysql")
	}
	same(t, filepath.Join(inside, "file"), now)
	unmount(t, state, dir)

	// And back again, to the state and to the snapshot, which are both still there.
	back(state, "then-2")
	same(t, file, now)
	if list, err := find(t, sys, data).Snapshots(ctx); err != nil || len(list) != 3 {
		t.Errorf("snapshots: %v, %v", list, err)
	}

	// One that ends before the volume has changed leaves nothing.
	r, err = sys.PlanRollback(ctx, find(t, sys, data), snap, volume.Request{Name: "never", Server: "back"})
	if err != nil {
		t.Fatal(err)
	}
	r.State.Created = time.Now()
	if _, err := sys.CopyForRollback(ctx, r, nil); err != nil {
		t.Fatal(err)
	}
	if err := sys.UnmountVolume(ctx, m); err != nil {
		t.Fatal(err)
	}
	switchUntil(t, sys, r, steps[0])
	for range 2 {
		if err := sys.UndoRollback(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := sys.MountAgain(ctx, m); err != nil {
		t.Fatal(err)
	}
	same(t, file, now)
	for _, name := range []string{"then", "now", "then-2"} {
		remove(t, sys, name)
	}
	before.NothingLeft(t)
}
