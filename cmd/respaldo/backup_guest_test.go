//go:build guest

package main

import (
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// The write load under the tests: enough to have something in flight at any moment, and
// little enough to leave the guest's one processor to the rest.
const (
	writers = 3
	pace    = 100 * time.Millisecond // of each writer
)

// Every kind of volume and every server once: a backup under a write load is proved, and
// restored it holds every transaction acknowledged before it and none begun after it.
func TestBackupAndRestore(t *testing.T) {
	for _, c := range []struct{ volume, server string }{
		{"thick-ext4", "mariadb-10.11"},
		{"thick-xfs", "mysql-5.6"},
		{"thin-ext4", "mariadb-10.5"},
		{"thin-xfs", "mysql-9.7"},
		{"btrfs", "mariadb-11.8"},
		{"btrfs-on-lv", "mariadb-10.11"},
	} {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			s := newStand(t, c.volume, c.server, standOptions{})
			load := guest.StartLoadEvery(t, s.server, writers, pace)
			load.Moves(t, testLimit)

			acked := load.Acked()
			made := s.backup()
			begun := load.Begun()
			load.Moves(t, testLimit)
			if err := load.Stop(); err != nil {
				t.Error(err)
			}

			m := made.Backup.Manifest
			if !m.Proof.OK || m.Proof.Level != respaldo.ProveQuick {
				t.Errorf("not proved: %+v", m.Proof)
			}
			if m.Proof.Tables == 0 || m.Proof.Coordinates.File == "" {
				t.Errorf("the proof looked at nothing: %+v", m.Proof)
			}
			if m.Quiesced.HeldSeconds <= 0 || m.Quiesced.Coordinates.File == "" {
				t.Errorf("nothing was measured: %+v", m.Quiesced)
			}
			s.before.NothingLeft(t)

			restored := s.restored(made.Backup.ID)
			s.sameShop(restored.DB)
			holds, err := guest.Contents(restored.DB, writers)
			if err != nil {
				t.Error(err)
			}
			holds.Within(t, acked, begun)
		})
	}
}
