package mysql

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// A redo log is used up only if its server shut down in order.
func TestStopTellsWhetherTheServerEndedInOrder(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mysql-5.6")
	start := func() *Instance {
		t.Helper()
		i, err := StartInstance(t.Context(), o.clean.request(t))
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	stop := func(i *Instance) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return i.Stop(ctx)
	}
	inOrder := start()
	for range 2 {
		if err := stop(inOrder); err != nil {
			t.Errorf("in order: %v", err)
		}
	}
	crashed := start()
	unix.Kill(crashed.PID(), unix.SIGKILL)
	<-crashed.Exited()
	for range 2 {
		if err := stop(crashed); respaldo.KindOf(err) != respaldo.NotProved {
			t.Errorf("crashed: %v", err)
		}
	}
	killed := start()
	unix.Kill(killed.PID(), unix.SIGSTOP) // it never gets to its shutdown
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := killed.Stop(now); !errors.Is(err, context.Canceled) {
		t.Errorf("killed: %v", err)
	}
}

// Whoever killed it, memory's shortage for one, says nothing of the image.
func TestKilledBeforeItIsReady(t *testing.T) {
	t.Parallel()
	r := theOrigin(t, "mysql-5.6").clean.request(t)
	r.Started = func(pid int) { unix.Kill(pid, unix.SIGKILL) }
	i, err := StartInstance(t.Context(), r)
	if err == nil {
		i.Stop(t.Context())
	}
	if respaldo.KindOf(err) != respaldo.Failed || !strings.Contains(err.Error(), "was killed before it was ready") {
		t.Errorf("killed: %v", err)
	}
}

// What crashes when it shuts down has not proved its image.
func TestCrashAtShutdownIsAProblem(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mysql-5.6")
	r := o.clean.request(t)
	const crashing = `"$@" & trap "kill $!" TERM; wait; wait; exit 134`
	r.Binary = r.Manifest.Binary
	r.Binary.Argv = append([]string{"/bin/sh", "-c", crashing, "sh"}, r.Binary.Argv...)
	if problems := notProved(t, r, respaldo.ProveQuick); !strings.Contains(problems, "crashed when it was stopped") {
		t.Errorf("problems: %s", problems)
	}
}
