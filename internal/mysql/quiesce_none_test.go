package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// testNoLock is about images without a lock, on a server that has InnoDB tables only.
func testNoLock(t *testing.T, b *box) {
	s := b.server(t)
	f := coveredFacts(t, s)
	mode, reason, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil || mode != respaldo.LockNone {
		t.Fatalf("auto is %s: %s, %v", mode, reason, err)
	}
	b.exec(t, "CREATE TABLE d.report (id INT PRIMARY KEY)", "INSERT INTO d.report VALUES (1)")
	report := b.conn(t)
	id, ended := b.id(t, report), make(chan struct{})
	go func() {
		report.ExecContext(context.Background(), "SELECT SLEEP(1000) FROM d.report")
		close(ended)
	}()
	t.Run("commits go on", func(t *testing.T) { testCommitsGoOn(t, b, s, quiet(f, mode)) })
	if strings.HasPrefix(b.name, "mysql") || b.name == "mariadb-10.5" { // those that watch DDL, or are near to it
		t.Run("crossed", func(t *testing.T) { testCrossed(t, b, s, f) })
	}
	t.Run("XA", func(t *testing.T) { testXA(t, b, s, f) })
	t.Run("DDL that runs", func(t *testing.T) { testRunningDDL(t, b, s, f) })
	t.Run("conditions", func(t *testing.T) { testConditions(t, b, s) })
	t.Run("account", func(t *testing.T) { testNoLockAccount(t, b) })
	for name, test := range map[string]func(*testing.T, *box, *Server, QuiesceRequest){"fn fails": testFnFails, "budget": testNoLockBudget, "killed": testKilled, "interrupted": testInterrupted} {
		t.Run(name, func(t *testing.T) { test(t, b, s, quiet(f, mode)) })
	}
	t.Run("changed since", func(t *testing.T) { testChangedSince(t, b, s, f) })
	t.Run("obstacles", func(t *testing.T) { testObstacles(t, b, s, quiet(coveredFacts(t, s), mode)) })
	b.exec(t, fmt.Sprintf("KILL %d", id))
	<-ended
	t.Run("tables elsewhere", func(t *testing.T) { testTablesElsewhere(t, b, s) })
	b.exec(t, "DROP TABLE d.report")
}

// testNoLockBudget has a slow snapshot. While DDL waits for it, it is given up like any other.
func testNoLockBudget(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	if !req.Facts.NobodyWaits(req.Mode) {
		testBudget(t, b, s, req)
		return
	}
	req.Budget = 300 * time.Millisecond
	q, err := s.Quiesce(context.Background(), req, func(ctx context.Context, _ respaldo.Coordinates) error {
		b.exec(t, "DO SLEEP(2.5)") // longer than whole seconds of the budget, too
		return context.Cause(ctx)
	})
	if err != nil || q.HeldSeconds < req.Budget.Seconds() {
		t.Errorf("nobody waited, but: %+v, %v", q, err)
	}
}

// testObstacles has a report that runs for long by now, and somebody's LOCK TABLES: only
// BACKUP STAGE cannot be had with the latter, and nobody waits for that.
func testObstacles(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	waitFor(t, "the report to run for long", func() bool {
		list, err := queryRows(context.Background(), b.root, lookStatement)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(p row) bool { return strings.HasPrefix(p["info"], "SELECT SLEEP") && p["time"] != "0" })
	})
	if _, err := s.Quiesce(context.Background(), req, nothing); err != nil {
		t.Error(explained(err))
	}
	c := b.conn(t)
	if _, err := c.ExecContext(context.Background(), "LOCK TABLES d.other WRITE"); err != nil {
		t.Fatal(err)
	}
	req.Budget = patience / 10
	if req.Facts.wayWithoutLock() == byStageBlockDDL {
		req.Budget = 300 * time.Millisecond
	}
	_, err := s.Quiesce(context.Background(), req, nothing)
	if req.Facts.wayWithoutLock() != byStageBlockDDL {
		if err != nil {
			t.Error(explained(err))
		}
	} else {
		mustBe(t, err, respaldo.LockTimeout, "300ms")
	}
	if _, err := c.ExecContext(context.Background(), "UNLOCK TABLES"); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, b *box, table string) (n int) {
	t.Helper()
	if err := b.root.QueryRow("SELECT COUNT(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// testCommitsGoOn has a writer that commits while fn waits, and DDL that must not get
// through where it can be kept out.
func testCommitsGoOn(t *testing.T, b *box, s *Server, req QuiesceRequest) {
	ddl := make(chan error, 1)
	keptOut := req.Facts.wayWithoutLock() != byWatching
	q, err := s.Quiesce(context.Background(), req, func(_ context.Context, at respaldo.Coordinates) error {
		if at.File != "" {
			t.Errorf("coordinates %s of a server that goes on", at)
		}
		before := count(t, b, "d.t")
		for range 3 {
			b.writesTo(t, "d.t")
		}
		if after := count(t, b, "d.t"); after != before+3 {
			t.Errorf("%d rows, then %d", before, after)
		}
		if keptOut {
			go func() {
				_, err := b.root.Exec("CREATE TABLE d.kept_out (id INT)")
				ddl <- err
			}()
			waitFor(t, "DDL to wait", b.runs(t, "CREATE TABLE d.kept_out", "Waiting"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(explained(err))
	}
	if !q.FromImage || q.Mode != respaldo.LockNone || q.Coordinates.File != "" || q.HeldSeconds <= 0 || q.At.IsZero() {
		t.Errorf("quiesced: %+v", q)
	}
	if keptOut {
		if err := within(t, "DDL", func() error { return <-ddl }); err != nil {
			t.Error(err)
		}
		b.exec(t, "DROP TABLE d.kept_out")
	}
}

// testChangedSince changes the server after it was looked at.
func testChangedSince(t *testing.T, b *box, s *Server, f *Facts) {
	b.exec(t, "CREATE TABLE d.late (id INT) ENGINE=MyISAM")
	_, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), never(t))
	mustBeCrossed(t, err, "MyISAM (d.late)")
	if mode, _, ok := Stricter(f, respaldo.LockNone); !ok || mode == respaldo.LockNone || engine(f, "MyISAM").Tables != 1 {
		t.Errorf("then %s, %t, knowing of %v", mode, ok, f.Engines)
	}
	b.exec(t, "DROP TABLE d.late")
	f = coveredFacts(t, s)
	_, err = s.Quiesce(context.Background(), quiet(f, respaldo.LockNone), func(context.Context, respaldo.Coordinates) error {
		b.exec(t, "SET GLOBAL sync_binlog = 0")
		return nil
	})
	b.exec(t, "SET GLOBAL sync_binlog = 1")
	mustBeCrossed(t, err, "sync_binlog is 0")
}

// Where no lock is held none is spoken of.
func TestWhatIsHeldIsCalledByItsName(t *testing.T) {
	for l, want := range map[*lock]string{
		{mode: respaldo.LockGlobal}: "the connection that held the lock was lost",
		{mode: respaldo.LockNone}:   "the connection that watched what crosses the snapshot was lost",
	} {
		mustBe(t, l.lostError(errors.New("EOF")), respaldo.LockTimeout, want)
	}
	for want, l := range map[string]*lock{
		"the lock":                              {mode: respaldo.LockBackup, take: []string{"BACKUP STAGE START"}},
		"the lock against DDL":                  {mode: respaldo.LockNone, take: []string{"LOCK INSTANCE FOR BACKUP"}},
		"the look at what crosses the snapshot": {mode: respaldo.LockNone},
	} {
		if l.String() != want {
			t.Errorf("%s with %q is %q", l.mode, l.take, l)
		}
	}
}
