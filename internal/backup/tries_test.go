package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// warned remembers what a person is told.
type warned struct {
	quiet
	said []string
}

func (w *warned) Warn(message string) { w.said = append(w.said, message) }

func TestWhatIsTriedAgain(t *testing.T) {
	timeout := &respaldo.Error{Kind: respaldo.LockTimeout, What: "no lock", Hint: "wait"}
	crossed := fmt.Errorf("an ALTER: %w", mysql.ErrCrossed)
	asked := respaldo.Quiesced{WaitedSeconds: 0.001}
	held := respaldo.Quiesced{WaitedSeconds: 0.001, HeldSeconds: 0.001}
	type failure struct {
		q   respaldo.Quiesced
		err error
	}
	for name, c := range map[string]struct {
		lock    respaldo.LockMode // that was asked for
		failed  []failure
		tries   int               // after which it is over; 0: it goes on
		becomes respaldo.LockMode // that the next try takes
		says    string
	}{
		"not granted":                      {"", []failure{{asked, timeout}, {asked, timeout}, {asked, timeout}}, 0, respaldo.LockNone, "try 3: no lock; trying again in"},
		"had, and too short":               {"", []failure{{held, timeout}, {held, timeout}}, 2, respaldo.LockNone, "try 1: no lock; trying again in"},
		"no calm moment":                   {"", []failure{{respaldo.Quiesced{}, timeout}}, 1, respaldo.LockNone, ""},
		"another error":                    {"", []failure{{held, &respaldo.Error{Kind: respaldo.SnapshotLost, What: "no room"}}}, 1, respaldo.LockNone, ""},
		"a session is left":                {"", []failure{{asked, errors.Join(timeout, &respaldo.Error{Kind: respaldo.Leftovers, What: "not confirmed"})}}, 1, respaldo.LockNone, ""},
		"suspended again":                  {"", []failure{{held, fmt.Errorf("lost: %w", volume.ErrSuspendedAgain)}}, 0, respaldo.LockNone, "taken again"},
		"crossed":                          {"", []failure{{held, crossed}, {held, crossed}}, 0, respaldo.LockNone, "try 2: an ALTER"},
		"crossed too often":                {"", []failure{{held, crossed}, {held, crossed}, {held, crossed}}, 0, respaldo.LockBackup, "the next one is under the lock backup"},
		"crossed, and no lock is to be":    {respaldo.LockNone, []failure{{held, crossed}, {held, crossed}, {held, crossed}}, 3, respaldo.LockNone, "taken again"},
		"crossed, and the lock was chosen": {respaldo.LockBackup, []failure{{held, crossed}, {held, crossed}, {held, crossed}}, 3, respaldo.LockNone, "taken again"},
	} {
		report := &warned{}
		op := &operation{Site: &Site{Report: report, Lock: c.lock}}
		o := &Outlook{Lock: respaldo.LockNone, facts: &mysql.Facts{Version: respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11}}}
		again := tries{deadline: time.Now().Add(time.Hour), pause: time.Microsecond}
		over := 0
		for _, f := range c.failed {
			again.made++
			if err := again.again(t.Context(), op, o, f.q, f.err); err != nil {
				over = again.made
				if respaldo.KindOf(err) != respaldo.KindOf(f.err) || !strings.Contains(err.Error(), f.err.Error()) {
					t.Errorf("%s: %v became %v", name, f.err, err)
				}
				break
			}
		}
		if over != c.tries || o.Lock != c.becomes || !strings.Contains(strings.Join(report.said, "\n"), c.says) {
			t.Errorf("%s: over after %d tries, next with %s (%s), said %q", name, over, o.Lock, o.LockReason, report.said)
		}
	}
}

func TestTryingAgainEnds(t *testing.T) {
	timeout := &respaldo.Error{Kind: respaldo.LockTimeout, What: "no lock", Hint: "wait"}
	op := &operation{Site: &Site{Report: quiet{}}}
	asked := respaldo.Quiesced{WaitedSeconds: 0.001}

	impatient := tries{deadline: time.Now().Add(time.Minute), pause: time.Hour, made: 2}
	err := impatient.again(t.Context(), op, &Outlook{}, asked, timeout)
	if respaldo.KindOf(err) != respaldo.LockTimeout || !strings.Contains(err.Error(), "2 tries") {
		t.Errorf("out of patience: %v", err)
	}
	moving := tries{deadline: time.Now().Add(time.Hour), made: changedTries, changed: changedTries}
	changed := &respaldo.Error{Kind: respaldo.LockTimeout, What: "a table is elsewhere", Hint: "run again", Err: mysql.ErrChanged}
	if err := moving.again(t.Context(), op, &Outlook{}, asked, changed); !errors.Is(err, mysql.ErrChanged) || !strings.Contains(err.Error(), "3 tries") {
		t.Errorf("looked at anew without an end: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	patient := tries{deadline: time.Now().Add(24 * time.Hour), pause: time.Hour}
	if err := patient.again(ctx, op, &Outlook{}, asked, timeout); respaldo.KindOf(err) != respaldo.Interrupted {
		t.Errorf("interrupted: %v", err)
	}
}

// An image whose binlogs cannot be read makes way for one under a lock.
func TestUnreadImageIsTakenAgainUnderALock(t *testing.T) {
	damaged := &respaldo.Error{Kind: respaldo.Failed, What: "cannot read the coordinates in the image's binlogs", Hint: "a lock", Err: errors.New("the event at 4 is damaged")}
	lost := &respaldo.Error{Kind: respaldo.SnapshotLost, What: "it overflowed"}
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		lock    respaldo.LockMode
		ctx     context.Context
		err     error
		becomes respaldo.LockMode // "" is none, it is over
	}{
		"auto":           {"", t.Context(), unread{damaged}, respaldo.LockBackup},
		"none asked for": {respaldo.LockNone, t.Context(), unread{damaged}, ""},
		"lost as well":   {"", t.Context(), errors.Join(lost, unread{damaged}), ""},
		"another error":  {"", t.Context(), damaged, ""},
		"interrupted":    {"", ended, unread{damaged}, ""},
	} {
		l, err := ledger.Open(t.TempDir(), "shop", "backup")
		if err != nil {
			t.Fatal(err)
		}
		report, removed := &warned{}, false
		op := &operation{Site: &Site{Report: report, Lock: c.lock}, ledger: l}
		o := &Outlook{Lock: respaldo.LockNone, facts: &mysql.Facts{Version: respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11}}}
		held, err := l.Acquire(t.Context(), kindSnapshot, map[string]string{"name": "s"}, func(*ledger.Held) error { return nil },
			func(context.Context) error { removed = true; return nil })
		if err != nil {
			t.Fatal(err)
		}
		err = (&tries{made: 1}).afterUnread(c.ctx, op, o, held, c.err)
		switch said := strings.Join(report.said, "\n"); {
		case c.becomes == "" && (respaldo.KindOf(err) != respaldo.KindOf(c.err) || removed || o.Lock != respaldo.LockNone):
			t.Errorf("%s: %v, removed %t, next with %s", name, err, removed, o.Lock)
		case c.becomes != "" && (err != nil || !removed || op.holds("s") || o.Lock != c.becomes || !strings.Contains(o.LockReason, "could not be read") || !strings.Contains(said, "the event at 4 is damaged")):
			t.Errorf("%s: %v, removed %t, next with %s (%s), said %q", name, err, removed, o.Lock, o.LockReason, said)
		}
		if !removed {
			if err := held.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
