//go:build guest

package volume_test

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestGroupShared: a snapshot waits for other LVM commands at work on the group, and they do
// not wait for one that is ready and never taken; that one can still be taken.
func TestGroupShared(t *testing.T) {
	for _, kind := range []string{"thick-ext4", "thin-ext4"} {
		t.Run(kind, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 128 << 20})
			before := guest.Look(t)
			p, err := find(t, system(t), v.Path).Prepare(t.Context(), volume.Request{Server: "shared", Bytes: 16 << 20})
			if err != nil {
				t.Fatal(err)
			}
			// As LVM's commands lock a group.
			other, err := os.OpenFile("/run/lock/lvm/V_"+v.Group, os.O_CREATE|os.O_RDWR, 0o700)
			if err == nil {
				err = unix.Flock(int(other.Fd()), unix.LOCK_EX)
			}
			if err != nil {
				t.Fatal(err)
			}
			ready := make(chan error, 1)
			go func() { ready <- p.Ready(t.Context()) }()
			guest.Run(t, "dmsetup", "info")
			select {
			case err := <-ready:
				t.Errorf("ready while another has the group: %v", err)
			default:
			}
			other.Close()
			if err := <-ready; err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			guest.Run(t, "lvs", v.Group)
			t.Logf("lvs took %s beside a snapshot that was ready", time.Since(start))
			snap, err := finish(t, p)
			if err != nil {
				t.Fatal(err)
			}
			if fill, err := snap.Fill(t.Context()); err != nil || !fill.Valid {
				t.Errorf("fill %+v, %v", fill, err)
			}
			if err := snap.Remove(t.Context()); err != nil {
				t.Error(err)
			}
			before.NothingLeft(t)
		})
	}
}
