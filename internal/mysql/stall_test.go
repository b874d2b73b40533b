package mysql

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// committer commits in a loop on one connection and notes when each commit began and ended.
type committer struct {
	mu      sync.Mutex
	commits []gap
	stop    context.CancelFunc
	done    chan struct{}
}

func commitAllTheTime(t *testing.T, b *box) *committer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &committer{stop: cancel, done: make(chan struct{})}
	c := b.conn(t)
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			begun := time.Now()
			if _, err := c.ExecContext(context.Background(), "INSERT INTO d.t (v) VALUES (1)"); err != nil {
				t.Error(err)
				return
			}
			w.mu.Lock()
			w.commits = append(w.commits, gap{from: begun, to: time.Now()})
			w.mu.Unlock()
		}
	}()
	waitFor(t, "a writer to write", func() bool { return w.count() > 10 })
	return w
}

func (w *committer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.commits)
}

// held is for how long it could not commit: at the least, from the end of its last commit
// before a moment under the lock to that moment; at the most, the longest between the beginning
// of a commit and the end of the next, of those that lie between asked and returned in part.
func (w *committer) held(asked, under, returned time.Time) (least, most time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, c := range w.commits[:len(w.commits)-1] {
		next := w.commits[i+1]
		if c.to.Before(under) && !next.to.Before(under) {
			least = under.Sub(c.to)
		}
		if !next.to.Before(asked) && !c.from.After(returned) {
			most = max(most, next.to.Sub(c.from))
		}
	}
	return least, most
}

// testStall compares what the probe says with what a writer has noticed.
func testStall(t *testing.T, b *box) {
	ctx := context.Background()
	s := b.server(t)
	f := mustFacts(t, s)
	measured := func(t *testing.T, f *Facts, fn func() error) (respaldo.Quiesced, time.Time) {
		t.Helper()
		req := quiet(f, respaldo.LockGlobal)
		req.Probe = f.ProbeStall()
		defer req.Probe.Close()
		q, err := s.Quiesce(ctx, req, func(context.Context, respaldo.Coordinates) error { return fn() })
		if err != nil {
			t.Fatal(explained(err))
		}
		return q, req.Probe.asked
	}
	nothing := func() error { return nil }

	t.Run("idle", func(t *testing.T) {
		if q, _ := measured(t, f, nothing); q.Stall != "idle: nobody wrote" || q.StalledSeconds != 0 || q.UsualSeconds != 0 {
			t.Errorf("%+v", q)
		}
	})
	t.Run("without a binlog", func(t *testing.T) {
		off := *f
		off.BinlogOn = false
		if q, _ := measured(t, &off, nothing); !strings.Contains(q.Stall, "our own clock") || q.StalledSeconds != q.WaitedSeconds+q.HeldSeconds {
			t.Errorf("%+v", q)
		}
	})
	t.Run("under writes, and a rotation", func(t *testing.T) {
		w := commitAllTheTime(t, b)
		var end time.Time
		q, asked := measured(t, f, func() error {
			waitFor(t, "the writer to wait", func() bool { return b.stalled(t) == 1 })
			b.exec(t, "FLUSH LOCAL BINARY LOGS")
			end = time.Now()
			return nil
		})
		returned, after := time.Now(), w.count()
		waitFor(t, "the writer to go on", func() bool { return w.count() > after+10 })
		w.stop()
		<-w.done
		least, most := w.held(asked, end, returned)
		_, text, _ := strings.Cut(q.Stall, "at most ")
		text, _, _ = strings.Cut(text, " too long")
		slack, err := time.ParseDuration(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", q.Stall, err)
		}
		if stalled := time.Duration(q.StalledSeconds * float64(time.Second)); stalled < least || stalled > most+slack+time.Millisecond || least == 0 {
			t.Errorf("the writer was held for %s to %s: %+v", least, most, q)
		}
		if q.UsualSeconds <= 0 || !strings.Contains(q.Stall, "the binlog's growth") {
			t.Errorf("%+v", q)
		}
		t.Logf("%s to %s: %+v", least, most, q)
	})
}

// TestStallSum has what a short test cannot bring about when it wants to.
func TestStallSum(t *testing.T) {
	zero := time.Now()
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	for name, c := range map[string]struct {
		gaps              []gap
		since             int // the last growth
		looked            int
		stalled, usual    float64
		says, doesNotSays string
	}{
		"idle":                    {nil, 0, 1250, 0, 0, "idle", "growth"},
		"idle for long":           {[]gap{{from: at(-9000), to: at(-8000)}}, -8000, 1250, 0, 0, "idle", "growth"},
		"one came meanwhile":      {[]gap{{from: at(0), to: at(1110)}}, 1110, 1110, 0.110, 0, "nobody wrote in the 1000 ms before", "after"},
		"held":                    {[]gap{{from: at(0), to: at(970)}, {from: at(969), to: at(990)}, {from: at(989), to: at(1104), slack: 2e6}}, 1104, 1104, 0.115, 0.970, "at most 2.0 ms too long", "nobody"},
		"nobody came after":       {[]gap{{from: at(980), to: at(990)}}, 989, 1250, 0.261, 0.010, "nobody wrote in the 150 ms after", "before"},
		"without a lock, written": {[]gap{{from: at(980), to: at(990)}, {from: at(989), to: at(1030)}, {from: at(1029), to: at(1090)}, {from: at(1089), to: at(1101)}}, 1101, 1101, 0.061, 0.010, "growth", "nobody"},
	} {
		p := &StallProbe{started: at(0), asked: at(1000), gaps: c.gaps, looked: at(c.looked), since: gap{from: at(c.since)}}
		if len(c.gaps) > 0 {
			p.grown = c.gaps[len(c.gaps)-1].to
		}
		var q respaldo.Quiesced
		p.sum(&q, at(1100))
		near := func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 }
		if !near(q.StalledSeconds, c.stalled) || !near(q.UsualSeconds, c.usual) || !strings.Contains(q.Stall, c.says) || strings.Contains(q.Stall, c.doesNotSays) {
			t.Errorf("%s: %+v", name, q)
		}
	}
}
