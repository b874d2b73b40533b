package mysql

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// quiet is a request with time enough for any machine.
func quiet(f *Facts, mode respaldo.LockMode) QuiesceRequest {
	return QuiesceRequest{Mode: mode, Reason: "test", Budget: patience, Facts: f}
}

// nothing is a snapshot that needs no time.
func nothing(context.Context, respaldo.Coordinates) error { return nil }

// never is a snapshot that must not be taken.
func never(t *testing.T) func(context.Context, respaldo.Coordinates) error {
	return func(context.Context, respaldo.Coordinates) error {
		t.Error("a snapshot is taken")
		return nil
	}
}

// writes says that a commit goes through, soon.
func (b *box) writes(t *testing.T) {
	t.Helper()
	b.writesTo(t, "d.other")
}

func (b *box) writesTo(t *testing.T, table string) {
	t.Helper()
	if err := within(t, "a commit to "+table, func() error {
		_, err := b.root.Exec("INSERT INTO " + table + " (v) VALUES (1)")
		return err
	}); err != nil {
		t.Errorf("a commit to %s: %v", table, err)
	}
}

func testQuiesce(t *testing.T, b *box) {
	s := b.server(t)
	f := mustFacts(t, s)
	modes := []respaldo.LockMode{respaldo.LockGlobal}
	if f.Version.Flavor == respaldo.MariaDB {
		modes = append(modes, respaldo.LockBackup)
	}
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Run("exact under writes", func(t *testing.T) { testExact(t, b, s, quiet(f, mode)) })
			t.Run("fn fails", func(t *testing.T) { testFnFails(t, b, s, quiet(f, mode)) })
			t.Run("budget", func(t *testing.T) { testBudget(t, b, s, quiet(f, mode)) })
			t.Run("killed", func(t *testing.T) { testKilled(t, b, s, quiet(f, mode)) })
			t.Run("interrupted", func(t *testing.T) { testInterrupted(t, b, s, quiet(f, mode)) })
			t.Run("long select", func(t *testing.T) { testLongSelect(t, b, s, quiet(f, mode)) })
			t.Run("lock tables", func(t *testing.T) { testLockTables(t, b, s, quiet(f, mode)) })
		})
	}
	t.Run("half done", func(t *testing.T) { testHalfDone(t, b, s, f) })
	t.Run("lock tables among others", func(t *testing.T) { testLockTablesAmongOthers(t, b, s, quiet(f, respaldo.LockGlobal)) })
	t.Run("frozen", func(t *testing.T) { testFrozen(t, b, s, quiet(f, modes[len(modes)-1])) })
	t.Run("ddl", func(t *testing.T) { testDDL(t, b, s, quiet(f, respaldo.LockGlobal)) })
	if f.Version.Flavor == respaldo.MySQL {
		t.Run("no such lock", func(t *testing.T) {
			_, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockBackup), nil)
			mustBe(t, err, respaldo.Refused, `no lock "backup"`)
		})
	}
	waitFor(t, "every connection that locked to be gone", func() bool {
		list, err := queryRows(context.Background(), b.root, "SHOW PROCESSLIST")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if strings.Contains(p["state"], "lock") || strings.Contains(p["info"], "LOCK") || strings.Contains(p["info"], "BACKUP") {
				return false
			}
		}
		return true
	})
	b.writes(t)
}

// testExact has writers that commit all the time, to transactional and other tables: as
// long as fn runs the server must stay where its coordinates are.
func testExact(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ctx, cancel := context.WithCancel(context.Background())
	var commits atomic.Int64
	done := make(chan struct{})
	for _, table := range []string{"d.t", "d.my"} {
		column := map[string]string{"d.t": "v", "d.my": "id"}[table]
		go func() {
			defer func() { done <- struct{}{} }()
			for ctx.Err() == nil {
				if _, err := b.root.Exec(fmt.Sprintf("INSERT INTO %s (%s) VALUES (1)", table, column)); err != nil {
					t.Error(err)
					return
				}
				commits.Add(1)
			}
		}()
	}
	waitFor(t, "writers to write", func() bool { return commits.Load() > 10 })
	q, err := s.Quiesce(context.Background(), req, func(_ context.Context, at respaldo.Coordinates) error {
		waitFor(t, "both writers to wait", func() bool { return b.stalled(t) == 2 })
		for range 3 {
			now, err := s.Coordinates(context.Background())
			if err != nil {
				return err
			}
			if now.String() != at.String() || now.GTIDSet != at.GTIDSet {
				t.Errorf("%s went on under the lock to %s", at, now)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(explained(err))
	}
	after := commits.Load()
	waitFor(t, "writers to go on", func() bool { return commits.Load() > after+10 })
	cancel()
	<-done
	<-done
	if q.Coordinates.File == "" || q.Coordinates.Position == 0 || q.Coordinates.GTIDSet == "" || q.HeldSeconds <= 0 || q.Reason != "test" || q.Mode != req.Mode {
		t.Errorf("quiesced: %+v", q)
	}
}

// stalled counts the inserts that wait for a lock of ours.
func (b *box) stalled(t *testing.T) (n int) {
	list, err := queryRows(context.Background(), b.root, "SHOW FULL PROCESSLIST")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if strings.HasPrefix(p["info"], "INSERT") && (strings.Contains(p["state"], "lock") || strings.Contains(p["state"], "flush")) {
			n++
		}
	}
	return n
}

func testFnFails(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	failed := &respaldo.Error{Kind: respaldo.SnapshotLost, What: "no room", Hint: "make some"}
	_, err := s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error { return failed })
	mustBe(t, err, respaldo.SnapshotLost, "no room")
	b.writes(t)

	before := req
	before.BeforeLock = func() error {
		b.writes(t) // nobody waits yet
		return failed
	}
	_, err = s.Quiesce(context.Background(), before, never(t))
	mustBe(t, err, respaldo.SnapshotLost, "no room")

	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("fn's panic became %v", r)
			}
		}()
		s.Quiesce(context.Background(), req, func(context.Context, respaldo.Coordinates) error { panic("oops") })
	}()
	b.writes(t)
}

// testBudget has a volume command that hangs: writers must not.
func testBudget(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	req.Budget = 300 * time.Millisecond
	q, err := s.Quiesce(context.Background(), req, func(ctx context.Context, _ respaldo.Coordinates) error {
		b.writes(t) // while we are still here
		return within(t, "fn's context", func() error {
			<-ctx.Done()
			mustBe(t, context.Cause(ctx), respaldo.LockTimeout, "300ms")
			return nil // what it did looks fine to it
		})
	})
	mustBe(t, err, respaldo.LockTimeout, "300ms", "--max-lock")
	if q.HeldSeconds == 0 {
		t.Errorf("quiesced: %+v", q)
	}
	b.writes(t)
}

// testFrozen has us hang altogether, watchdog included: the server ends the lock.
func testFrozen(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	req.Budget = time.Second
	l, err := s.prepareLock(context.Background(), req)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer l.close()
	if err := l.settings(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.acquire(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.writes(t)
	if err := l.release(context.Background()); !isConnectionLost(err) {
		t.Errorf("released a lock that the server had ended: %v", err)
	}
}

// testKilled has a zealous script that ends what sleeps.
func testKilled(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	req.Budget = patience / 3 // see settings: 5.6 may take as long to let go of the lock
	_, err := s.Quiesce(context.Background(), req, func(ctx context.Context, _ respaldo.Coordinates) error {
		c := b.conn(t)
		waitFor(t, "fn's context to end", func() bool {
			list, err := queryRows(context.Background(), c, "SHOW PROCESSLIST")
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				if p["command"] == "Sleep" {
					c.ExecContext(context.Background(), "KILL "+p["id"])
				}
			}
			return ctx.Err() != nil
		})
		return context.Cause(ctx)
	})
	mustBe(t, err, respaldo.LockTimeout, "lost", "killed")
	b.writes(t)
}

// testInterrupted is Ctrl-C while the lock is held.
func testInterrupted(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := s.Quiesce(ctx, req, func(ctx context.Context, _ respaldo.Coordinates) error {
		cancel()
		<-ctx.Done()
		return context.Cause(ctx)
	})
	mustBe(t, err, respaldo.Interrupted)
	b.writes(t)
}
