package mysql

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// applies says that every applier of the replica runs, now or soon.
func (p *pair) applies(t *testing.T) {
	t.Helper()
	waitFor(t, "the replica to apply", func() bool {
		status, err := queryRows(context.Background(), p.replica.root, replicaStatusStatement(p.server.Version()))
		if err != nil {
			t.Fatal(err)
		}
		running := 0
		for _, a := range appliersOf(status) {
			if a.Running {
				running++
			}
		}
		return running == len(p.sources)
	})
}

// testPausePaths ends a pause in every way but the usual one: the replica must apply again.
func testPausePaths(t *testing.T, p *pair) {
	f := mustFacts(t, p.server)
	req := quiet(f, respaldo.LockGlobal)
	nothing := func(context.Context, respaldo.Coordinates) error { return nil }
	failed := &respaldo.Error{Kind: respaldo.SnapshotLost, What: "no room", Hint: "make some"}

	t.Run("fn fails", func(t *testing.T) {
		_, err := p.quiesced(t.Context(), req, func(context.Context, respaldo.Coordinates) error { return failed })
		mustBe(t, err, respaldo.SnapshotLost, "no room")
		p.applies(t)
	})
	t.Run("before the lock", func(t *testing.T) {
		req := req
		req.BeforeLock = func() error { return failed }
		_, err := p.quiesced(t.Context(), req, nothing)
		mustBe(t, err, respaldo.SnapshotLost, "no room")
		p.applies(t)
	})
	t.Run("panic", func(t *testing.T) {
		func() {
			defer func() {
				if r := recover(); r != "oops" {
					t.Errorf("fn's panic became %v", r)
				}
			}()
			p.quiesced(t.Context(), req, func(context.Context, respaldo.Coordinates) error { panic("oops") })
		}()
		p.applies(t)
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := p.quiesced(ctx, req, func(ctx context.Context, _ respaldo.Coordinates) error {
			cancel()
			<-ctx.Done()
			return context.Cause(ctx)
		})
		mustBe(t, err, respaldo.Interrupted)
		p.applies(t)
	})
	t.Run("our session killed", func(t *testing.T) {
		_, err := p.quiesced(t.Context(), req, func(context.Context, respaldo.Coordinates) error {
			p.killOurs(t, func(r row) bool {
				return r["command"] == "Sleep" && r["db"] == "" && !strings.Contains(r["info"], "GET_LOCK")
			})
			return nil
		})
		mustBe(t, err, respaldo.LockTimeout)
		p.applies(t)
	})
	t.Run("guards killed", func(t *testing.T) {
		q, err := p.quiesced(t.Context(), req, func(context.Context, respaldo.Coordinates) error {
			p.killOurs(t, func(r row) bool { return strings.HasPrefix(r["info"], "DO GET_LOCK") })
			return nil
		})
		if err != nil || len(q.Coordinates.Upstream) != len(p.sources) {
			t.Error(explained(err), q.Coordinates)
		}
		p.applies(t)
	})
	t.Run("somebody starts it", func(t *testing.T) {
		_, err := p.quiesced(t.Context(), req, func(context.Context, respaldo.Coordinates) error {
			_, err := p.server.ResumeAppliers(context.Background(), f.applying())
			return err
		})
		mustBe(t, err, respaldo.LockTimeout, "somebody started")
		p.applies(t)
	})
	t.Run("time is up", func(t *testing.T) {
		s := newStandstill(p.server)
		if err := s.begin(t.Context(), time.Second); err != nil {
			t.Fatal(explained(err))
		}
		p.applies(t)
		mustBe(t, s.unbroken(t.Context()), respaldo.LockTimeout, "somebody started")
		if err := s.resume(t.Context()); err != nil {
			t.Error(explained(err))
		}
	})
	t.Run("we are killed", func(t *testing.T) { testKilledWhilePaused(t, p) })
	t.Run("it does not stop", func(t *testing.T) { testApplierDoesNotStop(t, p) })
	t.Run("not permitted", func(t *testing.T) { testMayNotPause(t, p) })
}

func (p *pair) killOurs(t *testing.T, which func(row) bool) {
	list, err := queryRows(context.Background(), p.replica.root, "SHOW PROCESSLIST")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if which(r) {
			p.replica.root.Exec("KILL " + r["id"])
		}
	}
}

const pauseVariable = "RESPALDO_TEST_PAUSE" // an option file

// pauseHere is us in a process of its own, which stops a replica and stays.
func pauseHere(optionFile string) {
	s, err := Connect(context.Background(), Options{DefaultsFile: optionFile}, nil)
	if err == nil {
		err = newStandstill(s).begin(context.Background(), time.Hour)
	}
	fmt.Println("paused", err)
	select {}
}

// testKilledWhilePaused has us die, without a chance to do anything.
func testKilledWhilePaused(t *testing.T, p *pair) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	us := exec.Command(self)
	us.Env = append(os.Environ(), pauseVariable+"="+p.replica.path("root.cnf"))
	us.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := us.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := us.Start(); err != nil {
		t.Fatal(err)
	}
	defer us.Wait()
	said, err := bufio.NewReader(out).ReadString('\n')
	if applying := mustFacts(t, p.server).applying(); said != "paused <nil>\n" || err != nil || len(applying) > 0 {
		t.Errorf("not paused: %q, %v, %d applying", said, err, len(applying))
	}
	if err := us.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.applies(t)
}

// testApplierDoesNotStop has an applier wait for a row that somebody on the replica has locked.
func testApplierDoesNotStop(t *testing.T, p *pair) {
	ctx := t.Context()
	user := p.replica.conn(t)
	for _, statement := range []string{"BEGIN", "UPDATE d1.t SET v = 2 WHERE id = 1"} {
		if _, err := user.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	p.sources[0].exec(t, "UPDATE d1.t SET v = 3 WHERE id = 1")
	waitFor(t, "the applier to wait", func() bool {
		waits, err := queryRows(ctx, p.replica.root, "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
		if err != nil {
			t.Fatal(err)
		}
		return waits[0]["value"] != "0"
	})
	s := newStandstill(p.server)
	s.patience = 100 * time.Millisecond
	mustBe(t, s.begin(ctx, time.Minute), respaldo.LockTimeout, "did not stop", "SHOW PROCESSLIST")
	if _, err := user.ExecContext(ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := s.resume(ctx); err != nil {
		t.Error(explained(err))
	}
	p.applies(t)
}

// testMayNotPause has an account with the documented privileges only, and then with the one
// that it takes.
func testMayNotPause(t *testing.T, p *pair) {
	v := p.server.Version()
	p.replica.exec(t, "CREATE USER 'backup'@'localhost' IDENTIFIED BY 'pw'")
	defer p.replica.exec(t, "DROP USER 'backup'@'localhost'")
	as := func(grants ...string) *Facts {
		for _, g := range grants {
			p.replica.exec(t, strings.ReplaceAll(g, grantee, "'backup'@'localhost'"))
		}
		return mustFacts(t, p.replica.serverAs(t, "backup", "pw"))
	}
	f := as(append(Grants(v), SelectGrant())...)
	_, helps := f.unsettled()
	if warned := strings.Contains(strings.Join(f.Warnings, "\n"), PauseGrant(v)); f.pausing(respaldo.LockGlobal) || warned == helps {
		t.Errorf("it would stop appliers: %t; warnings: %q", f.pausing(respaldo.LockGlobal), f.Warnings)
	}
	s := p.replica.serverAs(t, "backup", "pw")
	q, err := (&pair{server: s}).quiesced(t.Context(), quiet(f, respaldo.LockGlobal), func(context.Context, respaldo.Coordinates) error { return nil })
	if err != nil {
		t.Fatal(explained(err))
	}
	for _, u := range q.Coordinates.Upstream {
		if exact := u.Inexact == ""; exact != helps {
			t.Errorf("%+v is exact under a lock: %t", u, helps)
		}
	}
	mustBe(t, errors.Join(newStandstill(s).begin(t.Context(), time.Minute)), respaldo.Refused, "may not stop", pausePrivilege(v))
	p.applies(t)
	if f := as(PauseGrant(v)); !f.pausing(respaldo.LockGlobal) {
		t.Error("it would still not stop the appliers")
	}
}
