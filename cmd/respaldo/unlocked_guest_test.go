//go:build guest

package main

import (
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Images that are taken without a lock while others commit have coordinates, which the
// servers that are started on them confirm.
func TestUnlocked(t *testing.T) {
	type stands []struct{ volume, server string }
	list := stands{{"thin-ext4", "mariadb-11.8"}}
	if soak {
		list = nil
		for _, server := range servers.Names {
			for _, volume := range []string{"thick-ext4", "thin-xfs", "btrfs"} {
				list = append(list, stands{{volume, server}}...)
			}
		}
	}
	for _, c := range list {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			s := newStand(t, c.volume, c.server, standOptions{})
			s.server.Exec(t, "ALTER TABLE shop.notes ENGINE=InnoDB")
			load := guest.StartLoadEvery(t, s.server, writers, pace)
			load.Moves(t, testLimit)

			made := s.backup().Backup.Manifest
			s.fromImage(made.Quiesced)
			if p := made.Proof; !p.OK || p.Coordinates.String() != made.Quiesced.Coordinates.String() || p.Coordinates.GTIDSet != made.Quiesced.Coordinates.GTIDSet {
				t.Errorf("read in the image: %+v, proved: %+v", made.Quiesced.Coordinates, p)
			}
			if text := s.ok("show", "latest").stdout; strings.Contains(text, "not confirmed") {
				t.Errorf("a backup that is proved has coordinates that are not confirmed:\n%s", text)
			}

			dumped := s.dump("now", "--to", s.dir+"/dump.sql.zst") // without coordinates if its server denied them
			load.Moves(t, testLimit)
			if text := s.ok("snapshot", "create").stdout; !strings.Contains(text, "read in the image, not confirmed") {
				t.Errorf("a snapshot does not say that nobody has confirmed its coordinates:\n%s", text)
			}
			kept := s.snapshots()[0]
			s.fromImage(kept.Manifest.Quiesced)
			if at := kept.Manifest.Quiesced.Coordinates; dumped.Coordinates.File == "" || !ordered(made.Quiesced.Coordinates, dumped.Coordinates, at) {
				t.Errorf("one after the other there were images at %s, %s and %s", made.Quiesced.Coordinates, dumped.Coordinates, at)
			}
			s.ok("snapshot", "remove", kept.Snapshot.Name)

			if err := load.Stop(); err != nil {
				t.Error(err)
			}
			s.before.NothingLeft(t)
		})
	}
}

func (s *stand) fromImage(q respaldo.Quiesced) {
	s.t.Helper()
	if q.Mode != respaldo.LockNone || !q.FromImage || q.Coordinates.File == "" || q.Coordinates.Position == 0 || q.Coordinates.GTIDSet == "" {
		s.t.Errorf("not an image with coordinates of its own: %+v", q)
	}
}

// ordered tells that of coordinates on one server each is later than the one before.
func ordered(all ...respaldo.Coordinates) bool {
	for i, at := range all[1:] {
		before := all[i]
		if at.File < before.File || at.File == before.File && at.Position <= before.Position {
			return false
		}
	}
	return true
}
