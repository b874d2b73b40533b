//go:build guest

package volume_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// fillGroup leaves so many bytes free in a volume's group.
func fillGroup(t *testing.T, v *guest.Volume, origin volume.Volume, leave int64) {
	t.Helper()
	sp, err := origin.Space(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", fmt.Sprintf("%db", sp.Free-leave), "-n", "filler", v.Group)
}

// overwrite makes a thick snapshot store so many bytes.
func overwrite(t *testing.T, path string, bytes int) {
	t.Helper()
	block := make([]byte, bytes)
	rand.Read(block)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.Write(block)
		err = firstOf(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Errorf("the origin cannot be written: %v", err)
	}
}

// TestThickFills: the snapshot grows while the group has room, is given up before it
// overflows, and is worthless once it has; the origin is written all the while.
func TestThickFills(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 256 << 20})
	sys := system(t)
	origin := find(t, sys, v.Path)
	ballast := filepath.Join(v.Path, "ballast")
	overwrite(t, ballast, 160<<20)
	before := guest.Look(t)
	fillGroup(t, v, origin, 72<<20)

	_, err := origin.Prepare(t.Context(), volume.Request{Server: "big", Bytes: 100 << 20})
	refused(t, err, respaldo.Refused, v.Group, "free")
	if !errors.Is(err, volume.ErrNoRoom) {
		t.Errorf("%v is not ErrNoRoom", err)
	}
	refused(t, origin.Refusal(t.Context(), volume.Request{Server: "big", Bytes: 100 << 20}), respaldo.Refused, v.Group, "free")
	if err := origin.Refusal(t.Context(), volume.Request{Server: "grow", Bytes: 32 << 20}); err != nil {
		t.Error(err)
	}

	snap := take(t, origin, volume.Request{Server: "grow", Bytes: 32 << 20})
	fills := make(chan respaldo.Fill, 10)
	tick := make(chan time.Time)
	ctx, stop := volume.Watch(t.Context(), snap, volume.WatchOptions{Tick: tick, OnFill: func(f respaldo.Fill) { fills <- f }})
	look := func() respaldo.Fill {
		select {
		case tick <- time.Now().Add(time.Hour): // nothing rises fast in an hour
		case <-ctx.Done():
		}
		select {
		case f := <-fills:
			return f
		case <-time.After(time.Minute):
			t.Fatal("no look within a minute")
		}
		panic("")
	}
	<-fills
	overwrite(t, ballast, 24<<20) // 24 of 32
	if f := look(); f.Data < 0.7 || !f.Valid {
		t.Errorf("after 24 of 32 MiB: %+v", f)
	}
	if f := look(); f.Data > 0.5 || !f.Valid { // 24 of 64 or 68
		t.Errorf("after it should have grown: %+v", f)
	}
	overwrite(t, ballast, 44<<20) // grows by what the group still has
	if f := look(); f.Data < 0.57 || !f.Valid {
		t.Errorf("after 44 MiB: %+v", f)
	}
	if f := look(); f.Data > 0.7 || !f.Valid {
		t.Errorf("after it should have grown once more: %+v", f)
	}
	overwrite(t, ballast, 65<<20)
	if f := look(); f.Data < 0.9 || !f.Valid {
		t.Errorf("after 65 MiB of 72: %+v", f)
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("not given up though full and without room to grow")
	}
	err = stop()
	refused(t, err, respaldo.SnapshotLost, "cannot grow")
	if !errors.Is(context.Cause(ctx), err) {
		t.Errorf("the context ended by %v, stop says %v", context.Cause(ctx), err)
	}
	if f, err := snap.Fill(t.Context()); err != nil || !f.Valid {
		t.Errorf("given up only after it had overflowed: %+v, %v", f, err)
	}
	if err := snap.Extend(t.Context()); !errors.Is(err, volume.ErrNoRoom) {
		t.Errorf("extending in a full group: %v", err)
	}

	// Nobody looks while it overflows: the check at the end knows.
	_, stop = volume.Watch(t.Context(), snap, volume.WatchOptions{Tick: make(chan time.Time), GiveUpAt: 2, ExtendAt: 2})
	overwrite(t, ballast, 120<<20)
	refused(t, stop(), respaldo.SnapshotLost, "overflowed")
	if f, err := snap.Fill(t.Context()); err != nil || f.Valid {
		t.Errorf("an overflowed snapshot: %+v, %v", f, err)
	}
	refused(t, snap.Mount(t.Context(), filepath.Join(t.TempDir(), "x"), false), respaldo.SnapshotLost)
	if err := snap.Remove(t.Context()); err != nil {
		t.Error(err)
	}

	guest.Run(t, "lvextend", "-qq", "-l", "+100%FREE", v.Group+"/filler")
	sp, err := origin.Space(t.Context())
	if err != nil || sp.Free != 0 || sp.Suggested != 0 {
		t.Errorf("space in a full group: %+v, %v", sp, err)
	}
	_, err = origin.Prepare(t.Context(), volume.Request{Server: "none"})
	refused(t, err, respaldo.Refused, v.Group, "0 B free")
	guest.Run(t, "lvremove", "-qq", "-y", v.Group+"/filler")

	// With room for all of the origin there is nothing to extend.
	whole := take(t, origin, volume.Request{Server: "whole", Bytes: 1 << 30})
	refused(t, whole.Extend(t.Context()), respaldo.SnapshotLost, "as large as it can ever need")
	if err := whole.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	before.NothingLeft(t)
}

// TestOverflowedWhileMounted: a dead snapshot can be taken down all the same.
func TestOverflowedWhileMounted(t *testing.T) {
	for _, kind := range []string{"thick-ext4", "thick-xfs"} {
		t.Run(kind, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 320 << 20})
			ballast := filepath.Join(v.Path, "ballast")
			overwrite(t, ballast, 48<<20)
			before := guest.Look(t)
			snap := take(t, find(t, system(t), v.Path), volume.Request{Server: "dead", Bytes: 8 << 20})
			dir := filepath.Join(t.TempDir(), "image")
			mount(t, snap, dir, true)
			write(t, filepath.Join(dir, "dirty"), []byte("x"))
			_, stop := volume.Watch(t.Context(), snap, volume.WatchOptions{Tick: make(chan time.Time)})
			overwrite(t, ballast, 48<<20)
			os.WriteFile(filepath.Join(dir, "more"), make([]byte, 1<<20), 0o600) // whose error does not matter
			os.ReadFile(filepath.Join(dir, "ballast"))
			refused(t, stop(), respaldo.SnapshotLost, "overflowed")
			unmount(t, snap, dir)
			if err := snap.Remove(t.Context()); err != nil {
				t.Error(err)
			}
			before.NothingLeft(t)
		})
	}
}

// pacedWriter overwrites a file from its start again and again, and appends to another,
// at ten MiB a second, and remembers the first error.
type pacedWriter struct {
	written atomic.Int64
	err     error
	stop    context.CancelFunc
	done    chan struct{}
}

func startPaced(dir string, over, limit int64) *pacedWriter {
	ctx, stop := context.WithCancel(context.Background())
	w := &pacedWriter{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = func() error {
			old, err := os.OpenFile(filepath.Join(dir, "old"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer old.Close()
			fresh, err := os.Create(filepath.Join(dir, "fresh"))
			if err != nil {
				return err
			}
			defer fresh.Close()
			pace := time.NewTicker(100 * time.Millisecond)
			defer pace.Stop()
			block := make([]byte, 1<<20)
			for ctx.Err() == nil {
				rand.Read(block[:1<<16])
				n := w.written.Load()
				f, at := old, n%over
				if n >= over && n < limit {
					f, at = fresh, n-over
				}
				if _, err := f.WriteAt(block, at); err != nil {
					return err
				}
				if err := f.Sync(); err != nil {
					return err
				}
				w.written.Add(int64(len(block)))
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
			return nil
		}()
	}()
	return w
}

// TestThinPoolFills: writers would fill the pool because our snapshot holds what they
// overwrite. At the threshold it goes, and they never see an error.
func TestThinPoolFills(t *testing.T) {
	const MiB = 1 << 20
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thin-ext4", Bytes: 192 * MiB, PoolBytes: 224 * MiB})
	overwrite(t, filepath.Join(v.Path, "old"), 96*MiB)
	before := guest.Look(t)
	origin := find(t, system(t), v.Path)
	snap := take(t, origin, volume.Request{Server: "pool"})
	dir := filepath.Join(t.TempDir(), "image")
	mount(t, snap, dir, false)
	open, err := os.Open(filepath.Join(dir, "old"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := volume.Watch(t.Context(), snap, volume.WatchOptions{Every: 300 * time.Millisecond, GiveUpAt: 0.6})
	// 96 old, 96 overwritten and 60 fresh are more than the pool has.
	w := startPaced(v.Path, 96*MiB, 156*MiB)
	select {
	case <-ctx.Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("the snapshot was not given up")
	}
	at := w.written.Load()
	open.Close()
	refused(t, stop(), respaldo.SnapshotLost, "thin pool")
	if f, err := snap.Fill(t.Context()); err == nil && f.Valid {
		t.Error("the snapshot is there still")
	}
	guest.Eventually(t, 2*time.Minute, func() error {
		if n := w.written.Load(); n < 170*MiB {
			return fmt.Errorf("the writer stands at %d MiB; the snapshot was given up at %d MiB", n/MiB, at/MiB)
		}
		return nil
	})
	w.stop()
	<-w.done
	if w.err != nil {
		t.Errorf("the origin's writer failed: %v", w.err)
	}
	// A pool without room lets its writers wait for a minute: it never came to that.
	if log := guest.Run(t, "dmesg"); strings.Contains(log, "out-of-data-space") {
		t.Error("the pool was full: its writers stalled")
	}
	before.NothingLeft(t)
	if err := snap.Remove(t.Context()); err != nil {
		t.Errorf("removing it once more: %v", err)
	}

	// Now the pool is rather full of the origin's own data: nothing is begun.
	guest.Run(t, "lvcreate", "-qq", "-y", "-Wn", "-V", "64m", "--thinpool", "pool", "-n", "other", v.Group)
	overwrite(t, "/dev/"+v.Group+"/other", 48*MiB)
	_, err = origin.Prepare(t.Context(), volume.Request{Server: "pool"})
	refused(t, err, respaldo.Refused, v.Pool)
	refused(t, origin.Refusal(t.Context(), volume.Request{Server: "pool"}), respaldo.Refused, v.Pool)
	if !errors.Is(err, volume.ErrNoRoom) {
		t.Errorf("%v is not ErrNoRoom", err)
	}
}

// TestSacrifice: at the threshold of data or of metadata, a snapshot that shares the
// origin's storage goes as soon as its readers have let go.
func TestSacrifice(t *testing.T) {
	for name, c := range map[string]struct {
		kind    string
		options volume.WatchOptions
	}{
		"thin metadata":  {"thin-ext4", volume.WatchOptions{GiveUpMetadataAt: 0.01}},
		"btrfs data":     {"btrfs", volume.WatchOptions{GiveUpAt: 0.001}},
		"btrfs metadata": {"btrfs-on-lv", volume.WatchOptions{GiveUpMetadataAt: 0.001}},
	} {
		t.Run(name, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: c.kind, Bytes: 256 << 20})
			data := filepath.Join(v.Path, "mysql")
			if err := os.Mkdir(data, 0o755); err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(data, "old"), 8<<20)
			before := guest.Look(t)
			snap := take(t, find(t, system(t), data), volume.Request{Server: "s"})
			dir := filepath.Join(t.TempDir(), "image")
			mount(t, snap, dir, false)
			open, err := os.Open(filepath.Join(dir, "mysql", "old"))
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := volume.Watch(t.Context(), snap, c.options)
			<-ctx.Done()
			open.Close()
			refused(t, stop(), respaldo.SnapshotLost)
			before.NothingLeft(t)
		})
	}
}

// TestInactive: after a reboot a thin snapshot is not active, so that nobody mounts it in
// its origin's place. It can be mounted and removed all the same.
func TestInactive(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thin-xfs", Bytes: 320 << 20})
	write(t, filepath.Join(v.Path, "f"), []byte("then"))
	before := guest.Look(t)
	snap := take(t, find(t, system(t), v.Path), volume.Request{Name: "kept", Server: "s", Kept: true})
	write(t, filepath.Join(v.Path, "f"), []byte("now"))
	guest.Run(t, "lvchange", "-qq", "-an", v.Group+"/kept")
	guest.Run(t, "vgchange", "-qq", "-ay", v.Group) // as at boot
	if _, err := os.Stat(snap.Describe().Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("active after the boot: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "image")
	mount(t, snap, dir, false)
	same(t, filepath.Join(dir, "f"), []byte("then"))
	unmount(t, snap, dir)
	guest.Run(t, "lvchange", "-qq", "-an", v.Group+"/kept")
	if err := snap.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	before.NothingLeft(t)
}
