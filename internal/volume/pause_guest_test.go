//go:build guest

package volume_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestPause takes snapshots of a volume that is written to, with lvcreate as a script calls
// it and as we do, in turns. LVM suspends the origin once, which Take relies on; the log says
// for how long (0: not seen), and for how long a lock would have been held around it.
func TestPause(t *testing.T) {
	for _, kind := range []string{"thick-ext4", "thin-ext4"} {
		t.Run(kind, func(t *testing.T) {
			v := guest.NewVolume(t, guest.VolumeSpec{Kind: kind, Bytes: 256 << 20})
			sys := system(t)
			origin := find(t, sys, v.Path)
			stock := []string{"lvcreate", "--snapshot", "--name", "stock", v.LV}
			if strings.HasPrefix(kind, "thick") {
				stock = append(stock, "--size", "64m")
			}
			// Not from a cold start; and the first one starts dmeventd, where there is one.
			guest.Run(t, stock[0], stock[1:]...)
			guest.Run(t, "lvremove", "-qq", "--yes", v.Group+"/stock")
			before := guest.Look(t)
			w := startTwins(v.Path)
			takes := 2
			if os.Getenv("RESPALDO_SOAK") != "" {
				takes = 6
			}
			seen := false
			for n := range takes {
				t.Run(fmt.Sprint(n), func(t *testing.T) {
					w.moves(t)
					if err := volume.Settle(v.Path); err != nil {
						t.Fatal(err)
					}
					var held time.Duration
					suspended := volume.Suspensions(sys, v.Device, func() {
						start := time.Now()
						guest.Run(t, stock[0], stock[1:]...)
						held = time.Since(start)
					})
					if len(suspended) > 1 {
						t.Errorf("lvcreate suspended the origin for %v", suspended)
					}
					t.Logf("suspended %8.1f ms, lock %8.1f ms by lvcreate", ms(suspended...), ms(held))
					guest.Run(t, "lvremove", "-qq", "--yes", v.Group+"/stock")

					snap, p, _, _ := w.taken(t, origin, volume.Request{Server: "pause", Bytes: 64 << 20})
					seen = seen || p.Pause() > 0
					if err := snap.Remove(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			if !seen {
				t.Error("no suspension was seen")
			}
			if err := w.end(); err != nil {
				t.Error(err)
			}
			before.NothingLeft(t)
		})
	}
}
