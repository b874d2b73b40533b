package mysql

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// testTablesElsewhere has a table come to lie elsewhere after the server was looked at: before
// the lock is asked for, and in the very last moment. No snapshot may be used as if nothing
// had happened.
func testTablesElsewhere(t *testing.T, b *box, s *Server) {
	away := b.mkdir(t, "ext", "late")
	create := "CREATE TABLE d.away (id INT PRIMARY KEY) ENGINE=InnoDB DATA DIRECTORY='" + away + "'"
	modes := []respaldo.LockMode{respaldo.LockNone, respaldo.LockGlobal}
	if s.version.Flavor == respaldo.MariaDB {
		modes = append(modes, respaldo.LockBackup)
	}
	for _, mode := range modes {
		for when, run := range map[string]func(QuiesceRequest) error{
			"before": func(req QuiesceRequest) error {
				req.BeforeLock = func() error {
					b.exec(t, create)
					return nil
				}
				_, err := s.Quiesce(context.Background(), req, never(t))
				return err
			},
			"last": func(req QuiesceRequest) error {
				l, err := s.prepareLock(context.Background(), req)
				if err != nil {
					t.Fatal(explained(err))
				}
				defer l.close()
				if err := l.beforeLock(context.Background(), nil); err != nil {
					t.Fatal(explained(err))
				}
				b.exec(t, create)
				if err := l.hold(context.Background(), &respaldo.Quiesced{}, nothing); err != nil {
					return err
				}
				return l.tablesHold()
			},
		} {
			req := quiet(coveredFacts(t, s), mode)
			err := run(req)
			switch {
			case errors.Is(err, ErrChanged):
				mustBe(t, err, respaldo.LockTimeout, away)
			case when == "last" && errors.Is(err, ErrCrossed) && mode == respaldo.LockNone && req.Facts.wayWithoutLock() == byWatching: // and the next try finds it
				mustBe(t, s.refresh(context.Background(), s.db, req.Facts, mode), respaldo.LockTimeout, away)
			default:
				t.Errorf("%s, %s: %v", mode, when, err)
			}
			f := coveredFacts(t, s)
			if !slices.ContainsFunc(f.Layout.Of(respaldo.TablespaceRole), func(p respaldo.Place) bool { return isBelow(p.Path, away) }) {
				t.Errorf("looked at anew: %v", f.Layout.Places)
			}
			b.exec(t, "DROP TABLE d.away")
			if _, err := s.Quiesce(context.Background(), quiet(f, mode), nothing); !errors.Is(err, ErrChanged) {
				t.Errorf("%s: it is gone again: %v", mode, err)
			}
			f = coveredFacts(t, s)
			b.exec(t, "CREATE TABLE d.near (id INT PRIMARY KEY)", "DROP TABLE d.near") // no reason to look anew
			if _, err := s.Quiesce(context.Background(), quiet(f, mode), nothing); err != nil {
				t.Error(explained(err))
			}
		}
	}
}
