//go:build guest

package volume_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestVolumeConformance is what every kind of volume does alike.
func TestVolumeConformance(t *testing.T) {
	for _, kind := range guest.Kinds {
		t.Run(kind, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 384 << 20})
			data := filepath.Join(v.Path, "mysql")
			if kind == "btrfs" { // its sibling has a folder at the top level
				guest.Run(t, "btrfs", "-q", "subvolume", "create", data)
			} else if err := os.Mkdir(data, 0o755); err != nil {
				t.Fatal(err)
			}
			before := guest.Look(t)
			sys := system(t)
			origin := find(t, sys, data)
			t.Run("Describe", func(t *testing.T) { describes(t, origin, v) })
			t.Run("UnderLoad", func(t *testing.T) { takenUnderLoad(t, origin, data) })
			t.Run("Life", func(t *testing.T) { life(t, sys, origin, data) })
			if kind != "thick-xfs" && kind != "thin-xfs" && kind != "btrfs-on-lv" { // no different from their siblings
				t.Run("Busy", func(t *testing.T) { busy(t, sys, origin) })
				t.Run("Foreign", func(t *testing.T) { foreign(t, sys, origin, v) })
				t.Run("Cancelled", func(t *testing.T) { cancelled(t, origin) })
			}
			before.NothingLeft(t)
		})
	}
}

func describes(t *testing.T, origin volume.Volume, v *guest.Volume) {
	d := origin.Describe()
	kinds := map[string]respaldo.VolumeKind{"thick": respaldo.LVMThick, "thin": respaldo.LVMThin, "btrfs": respaldo.Btrfs}
	storage, _, _ := strings.Cut(v.Kind, "-")
	if d.Kind != kinds[storage] || d.FSType != v.FSType || d.MountPoint != v.Path || d.Bytes < 300<<20 {
		t.Errorf("described as %+v", d)
	}
	if storage != "btrfs" && d.Name != v.LV {
		t.Errorf("name %q, not %q", d.Name, v.LV)
	}
	if uuid := strings.TrimSpace(guest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", v.Device)); d.FSUUID != uuid {
		t.Errorf("filesystem UUID %q, blkid says %q", d.FSUUID, uuid)
	}
	sp, err := origin.Space(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if sp.Origin != d.Bytes || sp.Free <= 0 || sp.Pause <= 0 || storage == "thick" != (sp.Suggested > 0) || storage == "thick" == sp.Fill.Valid {
		t.Errorf("space %+v", sp)
	}
}

// takenUnderLoad: the snapshot is one instant between its command's start and end.
func takenUnderLoad(t *testing.T, origin volume.Volume, data string) {
	w := startTwins(data)
	w.moves(t)
	snap, p, least, most := w.taken(t, origin, volume.Request{Server: "load", Bytes: 64 << 20})
	if d := p.Describe(); d.Name == "" || d.Name != snap.Describe().Name || d.Server != "load" {
		t.Errorf("pending %+v became %+v", d, snap.Describe())
	}
	w.moves(t)
	dir := filepath.Join(t.TempDir(), "image")
	mount(t, snap, dir, false)
	inside := dir + strings.TrimPrefix(data, origin.Describe().MountPoint)
	if _, err := os.Stat(inside); origin.Describe().Kind == respaldo.Btrfs && err != nil {
		inside = dir // the subvolume itself
	}
	first, second := lastTwin(t, filepath.Join(inside, "twin0")), lastTwin(t, filepath.Join(inside, "twin1"))
	if first != second && first != second+1 {
		t.Errorf("the snapshot is no instant: %d in one file, %d in the other", first, second)
	}
	if second < least || first > most {
		t.Errorf("the snapshot is of another time: it holds %d and %d, and was taken between %d and %d", first, second, least, most)
	}
	if err := w.end(); err != nil {
		t.Errorf("the origin's writer failed: %v", err)
	}
	unmount(t, snap, dir)
	if err := snap.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func life(t *testing.T, sys *volume.System, origin volume.Volume, data string) {
	ctx := t.Context()
	old := make([]byte, 1<<20)
	rand.Read(old)
	kept := filepath.Join(data, "kept")
	write(t, kept, old)
	want := respaldo.Snapshot{Name: "life-1.x", Server: "shop, #1 äö", Run: "run/1", Kind: origin.Describe().Kind, Volume: origin.Describe().Name,
		Kept: true, Expires: time.Date(2031, 1, 2, 3, 4, 5, 678000, time.UTC)}
	request := volume.Request{Name: want.Name, Server: want.Server, Run: want.Run, Bytes: 64 << 20, Kept: true, Expires: want.Expires}
	start := time.Now()
	snap := take(t, origin, request)
	write(t, kept, make([]byte, 1<<20)) // the origin moves on
	write(t, filepath.Join(data, "later"), old)

	_, err := origin.Prepare(ctx, request)
	refused(t, err, respaldo.Refused, want.Name, "taken")

	// All of our state is lost; the system itself knows.
	list, err := system(t).Leftovers(ctx, want.Server)
	if err != nil || len(list) != 1 {
		t.Fatalf("leftovers %v, %v", list, err)
	}
	got := list[0].Describe()
	if d := got.Created.Sub(start); d < -2*time.Second || d > time.Minute {
		t.Errorf("created at %s, not after %s", got.Created, start)
	}
	want.Created, want.Path = got.Created, snap.Describe().Path
	if got != want {
		t.Errorf("found again as %+v, not %+v", got, want)
	}
	if list, err = origin.Snapshots(ctx); err != nil || len(list) != 1 || list[0].Describe() != want {
		t.Errorf("the volume's snapshots: %v, %v", list, err)
	}
	snap = list[0]

	dir := filepath.Join(t.TempDir(), "image")
	mount(t, snap, dir, false)
	inside := dir
	if _, err := os.Stat(filepath.Join(dir, "mysql")); err == nil {
		inside = filepath.Join(dir, "mysql")
	}
	same(t, filepath.Join(inside, "kept"), old)
	if _, err := os.Stat(filepath.Join(inside, "later")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was written later is in the snapshot: %v", err)
	}
	if err := os.WriteFile(filepath.Join(inside, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing into a read-only mount: %v", err)
	}
	if fill, err := snap.Fill(ctx); err != nil || !fill.Valid || fill.Data <= 0 || fill.Data >= 1 {
		t.Errorf("fill %+v, %v", fill, err)
	}
	if cloner, ok := snap.(volume.Cloner); ok != (want.Kind != respaldo.LVMThick) {
		t.Errorf("a %s snapshot can be cloned: %v", want.Kind, ok)
	} else if ok {
		clone, err := cloner.Clone(ctx, volume.Request{Server: want.Server, Run: "proof"})
		if err != nil {
			t.Fatal(err)
		}
		writable(t, clone, strings.TrimPrefix(inside, dir))
		same(t, filepath.Join(inside, "kept"), old)
		if list, err := origin.Snapshots(ctx); err != nil || len(list) != 2 {
			t.Errorf("snapshot and clone: %v, %v", list, err)
		}
		if err := clone.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
	unmount(t, snap, dir)
	if want.Kind == respaldo.LVMThick {
		writable(t, snap, strings.TrimPrefix(inside, dir))
	}
	same(t, kept, make([]byte, 1<<20))
	for range 2 {
		if err := snap.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
	if fill, err := snap.Fill(ctx); err == nil && fill.Valid {
		t.Error("a snapshot that is gone is said to be valid")
	}
	_, err = sys.Lookup(ctx, want.Name)
	refused(t, err, respaldo.NotFound, want.Name)
	os.Remove(kept)
}

// writable mounts a snapshot writable, overwrites in it, and unmounts it.
func writable(t *testing.T, snap volume.Snapshot, inside string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "instance")
	mount(t, snap, dir, true)
	write(t, filepath.Join(dir, inside, "kept"), []byte("of the instance"))
	same(t, filepath.Join(dir, inside, "kept"), []byte("of the instance"))
	unmount(t, snap, dir)
}

func busy(t *testing.T, sys *volume.System, origin volume.Volume) {
	ctx := t.Context()
	snap := take(t, origin, volume.Request{Name: "busy", Server: "busy", Bytes: 32 << 20})
	state := t.TempDir()
	dir := filepath.Join(state, "image")
	mount(t, snap, dir, false)
	holder, err := os.StartProcess("/usr/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	who := fmt.Sprintf("sleep (pid %d)", holder.Pid)
	refused(t, snap.Remove(ctx), respaldo.Leftovers, dir, who)
	refused(t, snap.Unmount(ctx, dir), respaldo.Leftovers, dir, who)
	if points, err := sys.MountsUnder(state); err != nil || len(points) != 1 || points[0] != dir {
		t.Errorf("mounts under %s: %v, %v", state, points, err)
	}
	refused(t, snap.Mount(ctx, dir, false), respaldo.Leftovers, dir, "already mounted")
	// Let go while the unmount is being tried.
	result := make(chan error, 1)
	patient := &volume.System{BusyFor: time.Minute}
	go func() { result <- patient.Unmount(ctx, dir) }()
	holder.Kill()
	holder.Wait()
	if err := <-result; err != nil {
		t.Errorf("the holder is gone, and yet: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
	if err := sys.Unmount(ctx, dir); err != nil {
		t.Errorf("unmounting again: %v", err)
	}
	if err := snap.Remove(ctx); err != nil {
		t.Error(err)
	}
}

// foreign: what does not say that it is ours is not ours, whatever its name.
func foreign(t *testing.T, sys *volume.System, origin volume.Volume, v *guest.Volume) {
	ctx := t.Context()
	snap := take(t, origin, volume.Request{Name: "respaldo-theirs", Server: "foreign", Bytes: 32 << 20})
	var restore func()
	if v.Kind == "btrfs" || v.Kind == "btrfs-on-lv" {
		info := filepath.Join(v.Path, ".respaldo/respaldo-theirs.json")
		if err := os.Rename(info, info+".x"); err != nil {
			t.Fatal(err)
		}
		restore = func() { os.Rename(info+".x", info) }
	} else {
		name := v.Group + "/respaldo-theirs"
		guest.Run(t, "lvchange", "-qq", "--deltag", "respaldo", name)
		restore = func() { guest.Run(t, "lvchange", "-qq", "--addtag", "respaldo", name) }
	}
	refused(t, snap.Remove(ctx), respaldo.Refused, "respaldo-theirs", "not ours")
	if list, err := sys.Leftovers(ctx, ""); err != nil || len(list) != 0 {
		t.Errorf("listed as ours: %v, %v", list, err)
	}
	restore()
	remove(t, sys, "respaldo-theirs")
}

// cancelled: a snapshot that is prepared and not taken leaves nothing, nor does it exist;
// and one whose name another run took meanwhile leaves that one alone.
func cancelled(t *testing.T, origin volume.Volume) {
	if origin.Describe().Kind == respaldo.LVMThin { // the others take the name when it is prepared
		late, err := origin.Prepare(t.Context(), volume.Request{Name: "race", Server: "cancelled", Run: "late", Bytes: 32 << 20})
		if err != nil {
			t.Fatal(err)
		}
		first := take(t, origin, volume.Request{Name: "race", Server: "cancelled", Run: "first", Bytes: 32 << 20})
		_, err = finish(t, late)
		refused(t, err, respaldo.Refused, "already exists")
		if err := late.Cancel(t.Context()); err != nil {
			t.Error(err)
		}
		if f, err := first.Fill(t.Context()); err != nil || !f.Valid {
			t.Errorf("cancelling one run's snapshot hurt another's: %+v, %v", f, err)
		}
		if err := first.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	p, err := origin.Prepare(t.Context(), volume.Request{Name: "never", Server: "cancelled", Bytes: 32 << 20})
	if err == nil {
		err = p.Ready(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Cancel(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if list, err := origin.Snapshots(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("snapshots %v, %v", list, err)
	}
}

func mount(t *testing.T, snap volume.Snapshot, dir string, writable bool) {
	t.Helper()
	if err := snap.Mount(t.Context(), dir, writable); err != nil {
		t.Fatal(err)
	}
}

func unmount(t *testing.T, snap volume.Snapshot, dir string) {
	t.Helper()
	if err := snap.Unmount(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		_, err = f.Write(content)
		err = firstOf(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, path string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%s has other content: %d bytes, %v", path, len(got), err)
	}
}

// refused checks an error for a person: its kind, that it says these words, and that it
// has a hint.
func refused(t *testing.T, err error, kind respaldo.Kind, words ...string) {
	t.Helper()
	if err == nil || respaldo.KindOf(err) != kind || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("error %v (kind %d, hints %q), not one of kind %d with a hint", err, respaldo.KindOf(err), respaldo.HintsOf(err), kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}
