package volume

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

func TestJudge(t *testing.T) {
	at := func(seconds float64, data, meta float64) sample {
		return sample{time.Unix(1000, 0).Add(time.Duration(seconds * 1e9)), respaldo.Fill{Data: data, Metadata: meta, Valid: true}}
	}
	thick, thin, btrfs := limitsFor(respaldo.LVMThick, WatchOptions{}), limitsFor(respaldo.LVMThin, WatchOptions{}), limitsFor(respaldo.Btrfs, WatchOptions{})
	for name, c := range map[string]struct {
		l           limits
		before, now sample
		refusedAt   float64
		want        verdict
	}{
		"quiet":                                  {thick, at(0, 0.1, 0), at(1, 0.1, 0), 0, carryOn},
		"first look":                             {thick, sample{}, at(1, 0.69, 0), 0, carryOn},
		"thick fills":                            {thick, at(0, 0.6, 0), at(1, 0.7, 0), 0, extend},
		"thick will be full in seconds":          {thick, at(0, 0.2, 0), at(1, 0.4, 0), 0, extend},
		"no room, not full yet":                  {thick, at(0, 0.7, 0), at(1, 0.71, 0), 0.7, carryOn},
		"no room, 5% later it is asked again":    {thick, at(0, 0.7, 0), at(1, 0.76, 0), 0.7, extend},
		"no room and full":                       {thick, at(0, 0.9, 0), at(1, 0.91, 0), 0.9, abandon},
		"overflowed":                             {thick, at(0, 0.9, 0), sample{at: time.Unix(1001, 0)}, 0, abandon},
		"thin is calm":                           {thin, at(0, 0.8, 0.1), at(1, 0.8, 0.1), 0, carryOn},
		"thin data at the threshold":             {thin, at(0, 0.9, 0.1), at(1, 0.9, 0.1), 0, abandon},
		"thin metadata at the threshold":         {thin, at(0, 0.1, 0.85), at(1, 0.1, 0.85), 0, abandon},
		"thin data full in seconds":              {thin, at(0, 0.5, 0.1), at(1, 0.6, 0.1), 0, abandon},
		"thin metadata full in seconds":          {thin, at(0, 0.1, 0.5), at(1, 0.1, 0.6), 0, abandon},
		"thin rises slowly":                      {thin, at(0, 0.80, 0.1), at(1, 0.81, 0.1), 0, carryOn},
		"thin falls":                             {thin, at(0, 0.89, 0.8), at(1, 0.5, 0.2), 0, carryOn},
		"a clock that stands still":              {thin, at(1, 0.5, 0.1), at(1, 0.6, 0.1), 0, carryOn},
		"Btrfs may be fuller":                    {btrfs, at(0, 0.94, 0.94), at(1, 0.94, 0.94), 0, carryOn},
		"Btrfs at the threshold":                 {btrfs, at(0, 0.95, 0.1), at(1, 0.95, 0.1), 0, abandon},
		"thick at its own threshold":             {limitsFor(respaldo.LVMThick, WatchOptions{ExtendAt: 0.3}), at(0, 0.3, 0), at(1, 0.3, 0), 0, extend},
		"thin at its own threshold for metadata": {limitsFor(respaldo.LVMThin, WatchOptions{GiveUpMetadataAt: 0.2}), at(0, 0.1, 0.2), at(1, 0.1, 0.2), 0, abandon},
	} {
		if got, why := c.l.judge(c.before, c.now, c.refusedAt); got != c.want {
			t.Errorf("%s: %v (%s), not %v", name, got, why, c.want)
		}
	}
}

// scripted is a snapshot whose fills are given; room is how often it can be extended.
type scripted struct {
	Snapshot
	mu       sync.Mutex
	kind     respaldo.VolumeKind
	fill     respaldo.Fill
	err      error
	room     int
	extended int
	whole    bool
}

func (s *scripted) Describe() respaldo.Snapshot {
	return respaldo.Snapshot{Name: "s", Volume: "vg/lv", Kind: s.kind}
}

func (s *scripted) Fill(context.Context) (respaldo.Fill, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fill, s.err
}

func (s *scripted) Extend(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "whole", Err: errWhole}
	}
	if s.room == 0 {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "full", Err: ErrNoRoom}
	}
	s.room--
	s.extended++
	s.fill.Data *= 0.66
	return nil
}

func (s *scripted) set(data float64, valid bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fill, s.err = respaldo.Fill{Data: data, Valid: valid}, err
}

// watchScript drives Watch look by look.
func watchScript(t *testing.T, s *scripted) (ctx context.Context, look func(), stop func() error) {
	tick, looked := make(chan time.Time), make(chan respaldo.Fill, 100)
	ctx, stop = Watch(t.Context(), s, WatchOptions{Tick: tick, OnFill: func(f respaldo.Fill) { looked <- f }})
	now := time.Now()
	<-looked
	return ctx, func() {
		now = now.Add(time.Hour) // nothing rises fast in an hour
		select {
		case tick <- now:
		case <-ctx.Done():
		}
	}, stop
}

func TestWatchExtendsAndThenGivesUp(t *testing.T) {
	s := &scripted{kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.5, Valid: true}, room: 1}
	ctx, look, stop := watchScript(t, s)
	s.set(0.75, true, nil)
	look()
	look() // whose arrival means that the look before is done
	if ctx.Err() != nil || s.extended != 1 {
		t.Fatalf("extended %d times, %v", s.extended, context.Cause(ctx))
	}
	s.set(0.92, true, nil)
	look()
	<-ctx.Done()
	for range 2 {
		err := stop()
		if respaldo.KindOf(err) != respaldo.SnapshotLost || len(respaldo.HintsOf(err)) == 0 || context.Cause(ctx) != err {
			t.Errorf("stop says %v, the context %v", err, context.Cause(ctx))
		}
	}
}

// A snapshot with room for the whole origin may be as full as it likes.
func TestWatchLeavesAWholeSnapshotAlone(t *testing.T) {
	s := &scripted{kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.5, Valid: true}, whole: true}
	ctx, look, stop := watchScript(t, s)
	for _, fill := range []float64{0.75, 0.91, 0.99, 1} {
		s.set(fill, true, nil)
		look()
		look()
	}
	if err := stop(); err != nil || !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Errorf("given up: %v, %v", err, context.Cause(ctx))
	}
}

func TestWatchLastCheck(t *testing.T) {
	s := &scripted{kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.1, Valid: true}}
	ctx, look, stop := watchScript(t, s)
	look()
	if err := stop(); err != nil || !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("a good snapshot: %v, context %v", err, ctx.Err())
	}
	_, look, stop = watchScript(t, s)
	look()
	s.set(1, false, nil) // between the last look and the end
	if err := stop(); respaldo.KindOf(err) != respaldo.SnapshotLost || err == nil {
		t.Errorf("an overflow after the last look goes unnoticed: %v", err)
	}
	s.set(0.1, true, nil)
	_, _, stop = watchScript(t, s)
	s.set(0, false, errors.New("dmsetup: out of order"))
	if err := stop(); respaldo.KindOf(err) != respaldo.SnapshotLost || err == nil {
		t.Errorf("a snapshot that cannot be asked is taken for good: %v", err)
	}
}

func TestWatchBearsWithAHiccup(t *testing.T) {
	s := &scripted{kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.1, Valid: true}}
	ctx, look, stop := watchScript(t, s)
	hiccup := errors.New("dmsetup: no memory")
	s.set(0.1, true, hiccup)
	look()
	look()
	s.set(0.1, true, nil)
	look()
	look()
	if ctx.Err() != nil {
		t.Fatalf("given up after a hiccup: %v", context.Cause(ctx))
	}
	s.set(0.1, true, hiccup)
	for range 4 {
		look()
	}
	<-ctx.Done()
	if err := stop(); !errors.Is(err, hiccup) {
		t.Errorf("stop says %v", err)
	}
}

// Of the snapshots that nobody watches, those go that are worthless or would stop their
// origin; one that is merely not active says nothing of the kind.
func TestOverdue(t *testing.T) {
	gone := errors.New("no device-mapper")
	for name, c := range map[string]struct {
		kind    respaldo.VolumeKind
		fill    respaldo.Fill
		err     error
		options WatchOptions
		goes    bool
	}{
		"thick with room":             {kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.5, Valid: true}},
		"thick and nearly full":       {kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.99, Valid: true}},
		"thick and overflowed":        {kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 1}, goes: true},
		"thick and not active":        {kind: respaldo.LVMThick},
		"thin in a calm pool":         {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.5, Metadata: 0.5, Valid: true}},
		"thin, not active, calm":      {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.5, Metadata: 0.5}},
		"thin, not active, full":      {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.91, Metadata: 0.5}, goes: true},
		"thin, data":                  {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.9, Metadata: 0.5, Valid: true}, goes: true},
		"thin, metadata":              {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.5, Metadata: 0.85, Valid: true}, goes: true},
		"thin, at what was asked for": {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.6, Valid: true}, options: WatchOptions{GiveUpAt: 0.6}, goes: true},
		"thin, and nobody can tell":   {kind: respaldo.LVMThin, err: gone},
		"Btrfs":                       {kind: respaldo.Btrfs, fill: respaldo.Fill{Data: 0.99, Metadata: 0.99, Valid: true}},
	} {
		why, err := Overdue(t.Context(), &scripted{kind: c.kind, fill: c.fill, err: c.err}, c.options)
		if (why != "") != c.goes || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", name, why, err)
		}
	}
}

// People are told before anything goes, and what to do.
func TestCrowded(t *testing.T) {
	for name, c := range map[string]struct {
		kind    respaldo.VolumeKind
		fill    respaldo.Fill
		options WatchOptions
		words   string // "" is no warning
	}{
		"thick with room":           {kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.7}},
		"thick":                     {kind: respaldo.LVMThick, fill: respaldo.Fill{Data: 0.85}, words: "85% full"},
		"thin with room":            {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.7, Metadata: 0.7}},
		"thin, data":                {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.81, Metadata: 0.1}, words: "data 81% of at most 90%"},
		"thin, metadata":            {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.1, Metadata: 0.8}, words: "--poolmetadatasize"},
		"thin, as it was asked for": {kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.5}, options: WatchOptions{GiveUpAt: 0.55}, words: "lvextend"},
		"Btrfs with room":           {kind: respaldo.Btrfs, fill: respaldo.Fill{Data: 0.8, Metadata: 0.8}},
		"Btrfs":                     {kind: respaldo.Btrfs, fill: respaldo.Fill{Data: 0.9, Metadata: 0.2}, words: "Give it more space"},
	} {
		got := Crowded(c.kind, "vg/data", c.fill, c.options)
		if (got == "") != (c.words == "") || !strings.Contains(got, c.words) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A snapshot that was kept on purpose is given up, and left where it is.
func TestSpared(t *testing.T) {
	for _, spare := range []bool{false, true} {
		s := &offered{scripted: scripted{kind: respaldo.LVMThin, fill: respaldo.Fill{Data: 0.95, Valid: true}}}
		tick := make(chan time.Time)
		ctx, stop := Watch(t.Context(), s, WatchOptions{Tick: tick, Spare: spare})
		<-ctx.Done()
		if err := stop(); respaldo.KindOf(err) != respaldo.SnapshotLost {
			t.Errorf("given up: %v", err)
		}
		if s.sacrificed == spare {
			t.Errorf("spare %v: sacrificed %v", spare, s.sacrificed)
		}
	}
}

// offered can be sacrificed.
type offered struct {
	scripted
	sacrificed bool
}

func (o *offered) sacrifice(context.Context) error {
	o.sacrificed = true
	return nil
}
