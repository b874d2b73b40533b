//go:build guest

package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestSystemd runs where systemd is the first process and udevd opens every device that
// appears, as on a real host.
func TestSystemd(t *testing.T) {
	if os.Getenv("LAB_BOOT") != "0" {
		guest.OpenUnit(t)
		return
	}
	t.Run("unit", func(t *testing.T) {
		start := time.Now()
		guest.InstallUnit(t)
		t.Log(time.Since(start))
	})
	for _, kind := range []string{"thick-ext4", "thin-ext4", "btrfs-on-lv"} {
		t.Run(kind, func(t *testing.T) {
			s := newStand(t, kind, "mariadb-10.11", standOptions{})
			for range 5 {
				s.ok("snapshot", "remove", s.take("--ttl", "1h").Snapshot.Name)
			}
			s.backup()
			guest.Run(t, "udevadm", "settle")
			s.before.NothingLeft(t)
			t.Log(guest.Run(t, "lvs", "-a"), guest.Run(t, "dmsetup", "ls"))
			journal := guest.Run(t, "journalctl", "--boot", "--no-pager", "-p", "warning", "-o", "cat")
			if strings.Contains(journal, "dm-") {
				t.Log(journal)
			}
		})
	}
}
