package mysql

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// applies says that every applier of the replica runs, now or soon.
func (p *pair) applies(t *testing.T) {
	t.Helper()
	waitFor(t, "the replica to apply", func() bool { return p.running(t) == len(p.sources) })
}

// running counts the appliers that run.
func (p *pair) running(t *testing.T) (n int) {
	status, err := queryRows(context.Background(), p.replica.root, replicaStatusStatement(p.server.Version()))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range appliersOf(status) {
		if a.Running {
			n++
		}
	}
	return n
}

// testPausePaths ends a pause in every way but the usual one: the replica must apply again.
func testPausePaths(t *testing.T, p *pair, slow bool) {
	p.sources[0].exec(t, "INSERT INTO d1.t (v) VALUES (1)")
	waitFor(t, "a row", func() bool {
		var rows int
		err := p.replica.root.QueryRow("SELECT COUNT(*) FROM d1.t WHERE id = 1").Scan(&rows)
		return err == nil && rows == 1
	})
	f := mustFacts(t, p.server)
	req := quiet(f, respaldo.LockGlobal)
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
			waitFor(t, "the guards to be let go", func() bool { // a session may not sleep yet
				p.killOurs(t, func(r row) bool { return r["command"] == "Sleep" })
				return p.running(t) == len(p.sources)
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
			_, err := p.server.startAppliers(context.Background(), f.applying())
			return err
		})
		mustBe(t, err, respaldo.LockTimeout, "somebody started")
		p.applies(t)
	})
	t.Run("we are killed", func(t *testing.T) { testKilledWhilePaused(t, p) })
	t.Run("we are killed while it stops", func(t *testing.T) { testKilledWhileStopping(t, p) })
	if slow {
		t.Run("the calm does not last", func(t *testing.T) { testCalmDoesNotLast(t, p, req) })
		t.Run("time is up", func(t *testing.T) {
			s := newStandstill(p.server)
			if err := s.begin(t.Context(), time.Second, unnoted); err != nil { // the second is over already
				mustBe(t, err, respaldo.LockTimeout, "somebody started")
			}
			p.applies(t)
			mustBe(t, s.unbroken(t.Context()), respaldo.LockTimeout, "somebody started")
			if err := s.resume(t.Context()); err != nil {
				t.Error(explained(err))
			}
		})
	}
	t.Run("cleanup", func(t *testing.T) { testResumeAppliers(t, p) })
	t.Run("it does not stop", func(t *testing.T) { testApplierDoesNotStop(t, p) })
	t.Run("not permitted", func(t *testing.T) { testMayNotPause(t, p) })
	binlogs, err := filepath.Glob(filepath.Join(p.replica.data, "*bin*.0*"))
	if err != nil || len(binlogs) == 0 {
		t.Fatal("no binlogs", err)
	}
	for _, name := range binlogs {
		if content, err := os.ReadFile(name); err != nil || bytes.Contains(content, []byte("_LOCK(")) {
			t.Errorf("%s has what we did: %v", name, err)
		}
	}
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
		err = newStandstill(s).begin(context.Background(), time.Hour, unnoted)
	}
	fmt.Println("paused", err)
	select {}
}

// pausingChild is us in another process, which stops the appliers. Nobody else logs in as child.
func (p *pair) pausingChild(t *testing.T) (us *exec.Cmd, said *bufio.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.replica.exec(t, "CREATE USER 'child'@'localhost' IDENTIFIED BY 'pw'", "GRANT ALL ON *.* TO 'child'@'localhost'")
	t.Cleanup(func() { p.replica.exec(t, "DROP USER 'child'@'localhost'") })
	p.replica.serverAs(t, "child", "pw").Close()
	us = exec.Command(self)
	us.Env = append(os.Environ(), pauseVariable+"="+p.replica.path("child.cnf"))
	us.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := us.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := us.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { us.Wait() })
	return us, bufio.NewReader(out)
}

// testKilledWhilePaused has us die, without a chance to do anything.
func testKilledWhilePaused(t *testing.T, p *pair) {
	us, out := p.pausingChild(t)
	said, err := out.ReadString('\n')
	if applying := mustFacts(t, p.server).applying(); said != "paused <nil>\n" || err != nil || len(applying) > 0 {
		t.Errorf("not paused: %q, %v, %d applying", said, err, len(applying))
	}
	if err := us.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.applies(t)
}

// testKilledWhileStopping has us die while an applier cannot stop yet: it stops when nobody is
// there any more.
func testKilledWhileStopping(t *testing.T, p *pair) {
	release := p.holdApplier(t)
	us, _ := p.pausingChild(t)
	stopping := p.replica.runs(t, "STOP ", "")
	waitFor(t, "the STOP to wait", stopping)
	if err := us.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its session with the lock to be gone", func() bool {
		list, err := queryRows(context.Background(), p.replica.root, "SHOW PROCESSLIST")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(list, func(r row) bool { return r["user"] == "child" && r["command"] == "Sleep" })
	})
	if !stopping() {
		t.Error("the STOP has ended while the applier could not stop")
	}
	release()
	waitFor(t, "the STOP to end", func() bool { return !stopping() })
	p.applies(t)
}

// holdApplier has the first source's applier wait for a row that somebody on the replica has
// locked, until release.
func (p *pair) holdApplier(t *testing.T) (release func()) {
	t.Helper()
	user := p.replica.conn(t)
	for _, statement := range []string{"USE d1", "BEGIN", "UPDATE d1.t SET v = -v WHERE id = 1"} {
		if _, err := user.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	p.sources[0].exec(t, "UPDATE d1.t SET v = v + 1 WHERE id = 1")
	waitFor(t, "the applier to wait", func() bool {
		waits, err := queryRows(t.Context(), p.replica.root, "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
		if err != nil {
			t.Fatal(err)
		}
		return waits[0]["value"] != "0"
	})
	return func() {
		if _, err := user.ExecContext(context.Background(), "ROLLBACK"); err != nil {
			t.Fatal(err)
		}
	}
}

// testApplierDoesNotStop has us give up.
func testApplierDoesNotStop(t *testing.T, p *pair) {
	release := p.holdApplier(t)
	s := newStandstill(p.server)
	s.patience = 100 * time.Millisecond
	mustBe(t, s.begin(t.Context(), time.Minute, unnoted), respaldo.LockTimeout, "did not stop", "SHOW PROCESSLIST")
	release()
	if err := s.resume(t.Context()); err != nil {
		t.Error(explained(err))
	}
	p.applies(t)
}

// testCalmDoesNotLast has a long statement begin after the appliers were stopped: they run while
// that is waited for, and stand still again for the lock.
func testCalmDoesNotLast(t *testing.T, p *pair, req QuiesceRequest) {
	const long = "DELETE FROM d1.t WHERE SLEEP(60)"
	ended := make(chan struct{})
	times := 0
	req.BeforeLock = func() error {
		if len(mustFacts(t, p.server).applying()) > 0 {
			t.Error("the appliers run right before the lock")
		}
		if times++; times > 1 {
			return nil
		}
		go func() {
			defer close(ended)
			p.replica.root.Exec(long)
		}()
		waitFor(t, "a long statement", func() bool {
			list, err := queryRows(context.Background(), p.replica.root, "SHOW PROCESSLIST")
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(list, func(r row) bool { return r["info"] == long && r["time"] != "0" })
		})
		return nil
	}
	req.Waiting = func(string) {
		p.applies(t)
		p.killOurs(t, func(r row) bool { return r["info"] == long })
	}
	q, err := p.quiesced(t.Context(), req, nothing)
	if err != nil || times < 2 || len(q.Coordinates.Upstream) != len(p.sources) {
		t.Error(explained(err), times, q.Coordinates)
	}
	<-ended
	p.applies(t)
}

// testResumeAppliers is what a cleanup does where the guard could not, and only then.
func testResumeAppliers(t *testing.T, p *pair) {
	starts, err := p.server.countStarts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pause := Pause{Channels: mustFacts(t, p.server).applying(), Starts: starts}
	stop := func() {
		for _, channel := range pause.Channels {
			p.replica.exec(t, applierStatement(p.server.Version(), "STOP", channel))
		}
	}
	stop()
	resumed, left, err := p.server.ResumeAppliers(t.Context(), pause)
	if err != nil || !slices.Equal(resumed, pause.Channels) || len(left) > 0 {
		t.Errorf("resumed %q, left %q, %v", resumed, left, err)
	}
	p.applies(t)
	stop() // the user's own wish
	resumed, left, err = p.server.ResumeAppliers(t.Context(), pause)
	if err != nil || len(resumed) > 0 || !slices.Equal(left, pause.Channels) || len(mustFacts(t, p.server).applying()) > 0 {
		t.Errorf("a stop of somebody's own: resumed %q, left %q, %v", resumed, left, err)
	}
	if _, err := p.server.startAppliers(t.Context(), pause.Channels); err != nil {
		t.Error(err)
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
	q, err := (&pair{server: s}).quiesced(t.Context(), quiet(f, respaldo.LockGlobal), nothing)
	if err != nil {
		t.Fatal(explained(err))
	}
	for _, u := range q.Coordinates.Upstream {
		if exact := u.Inexact == ""; exact != helps {
			t.Errorf("%+v is exact under a lock: %t", u, helps)
		}
	}
	mustBe(t, newStandstill(s).begin(t.Context(), time.Minute, unnoted), respaldo.Refused, "may not stop", pausePrivilege(v))
	p.applies(t)
	if f := as(PauseGrant(v)); !f.pausing(respaldo.LockGlobal) {
		t.Error("it would still not stop the appliers")
	}
}
