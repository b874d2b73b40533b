package main

import (
	"fmt"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"log/slog"
	"sync"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// progress tells a person how a story goes: on a terminal each finished step as a line
// with a check mark and a long one as a bar, elsewhere as log records, a long step every
// half a minute. It is the Reporter of internal/backup: its methods return at once and may
// be called from several goroutines.
type progress struct {
	console *console
	log     *slog.Logger
	quiet   bool
	every   time.Duration // between log records of a long step
	now     func() time.Time

	mu        sync.Mutex
	step      time.Time // when the last step was done
	current   respaldo.Progress
	meter     meter
	logged    time.Time
	scheduled bool // a drawing is waiting already; it will show the latest

	bar *bar // the console's goroutine only
}

func newProgress(c *console, log *slog.Logger, quiet bool) *progress {
	return &progress{console: c, log: log, quiet: quiet, every: 30 * time.Second, now: time.Now, step: time.Now()}
}

// Step says that something is done. The time shown is that since the step before.
func (p *progress) Step(name, detail string) {
	p.mu.Lock()
	now := p.now()
	took := now.Sub(p.step)
	p.step, p.current = now, respaldo.Progress{}
	p.mu.Unlock()
	p.endBar()
	switch {
	case p.quiet:
	case p.console.terminal:
		c := p.console
		c.printf("%s %-10s %s  %s\n", c.mark(green, "✓", "*"), name, detail, c.paint(dim, backup.FormatDuration(took)))
	default:
		p.log.Info(name, "detail", detail, "took", took.Round(100*time.Microsecond))
	}
}

// Warn says that something is not as it should be, though the story goes on.
func (p *progress) Warn(message string) {
	if !p.console.terminal {
		p.log.Warn(message)
		return
	}
	p.console.printf("%s %s\n", p.console.mark(yellow, "!", "!"), message)
}

// Progress says how far a long step is. It may be called as often as the caller likes.
func (p *progress) Progress(at respaldo.Progress) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if at.Phase != p.current.Phase {
		p.meter, p.logged = meter{}, now
	}
	p.current = at
	p.meter.add(now, at.Done)
	if p.console.terminal {
		if !p.scheduled {
			p.scheduled = true
			p.console.do(p.draw)
		}
		return
	}
	if now.Sub(p.logged) >= p.every {
		p.logged = now
		attrs := []any{"done", backup.FormatBytes(at.Done)}
		if at.Total > 0 {
			attrs = append(attrs, "of", backup.FormatBytes(at.Total), "percent", fmt.Sprintf("%.1f", 100*float64(at.Done)/float64(at.Total)))
		}
		if at.Files > 0 {
			attrs = append(attrs, "files", at.Files)
		}
		if at.Item != "" {
			attrs = append(attrs, "at", at.Item)
		}
		if rate := p.meter.rate(); rate > 0 {
			attrs = append(attrs, "rate", backup.FormatBytes(int64(rate))+"/s")
		}
		if left, known := p.meter.remaining(at.Total); known {
			attrs = append(attrs, "remaining", left.Round(time.Second))
		}
		p.log.Info(at.Phase, attrs...)
	}
}

// end takes a bar away and waits until everything is on the screen.
func (p *progress) end() {
	p.endBar()
	p.console.flush()
}

func (p *progress) endBar() {
	if !p.console.terminal {
		return
	}
	p.console.do(func() {
		if p.bar != nil {
			p.bar.remove()
			p.bar, p.console.above = nil, nil
		}
	})
}

// draw runs in the console's goroutine.
func (p *progress) draw() {
	p.mu.Lock()
	p.scheduled = false
	at, numbers := p.current, p.meter.text(p.current)
	p.mu.Unlock()
	if at.Phase == "" {
		return // the step has ended meanwhile
	}
	if p.bar != nil && p.bar.phase != at.Phase {
		p.bar.remove()
		p.bar, p.console.above = nil, nil
	}
	if p.bar == nil {
		p.bar = newBar(p.console, at.Phase)
		p.console.above = p.bar.container
	}
	p.bar.set(at, numbers)
}

// meter knows how fast a long step has been over the last ten seconds or so.
type meter struct {
	samples []sample
}

type sample struct {
	at   time.Time
	done int64
}

const (
	meterWindow = 10 * time.Second
	meterLeast  = 500 * time.Millisecond // before that a rate would be a guess
	meterGap    = 200 * time.Millisecond // closer samples replace each other
)

func (m *meter) add(at time.Time, done int64) {
	if n := len(m.samples); n > 1 && at.Sub(m.samples[n-2].at) < meterGap {
		m.samples[n-1] = sample{at, done}
	} else {
		m.samples = append(m.samples, sample{at, done})
	}
	for len(m.samples) > 2 && at.Sub(m.samples[1].at) >= meterWindow {
		m.samples = m.samples[1:]
	}
}

// rate is in bytes a second; 0 while there is too little to tell.
func (m *meter) rate() float64 {
	if len(m.samples) < 2 {
		return 0
	}
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	if took := last.at.Sub(first.at); took >= meterLeast && last.done > first.done {
		return float64(last.done-first.done) / took.Seconds()
	}
	return 0
}

func (m *meter) remaining(total int64) (time.Duration, bool) {
	rate := m.rate()
	if rate == 0 || total <= 0 {
		return 0, false
	}
	left := total - m.samples[len(m.samples)-1].done
	if left < 0 {
		return 0, false
	}
	return time.Duration(float64(left) / rate * float64(time.Second)), true
}

// text is what stands beside a bar: "1.20 GiB of 2.80 GiB, 210 MiB/s, 8 s left".
func (m *meter) text(at respaldo.Progress) string {
	text := backup.FormatBytes(at.Done)
	if at.Total > 0 {
		text += " of " + backup.FormatBytes(at.Total)
	}
	if rate := m.rate(); rate > 0 {
		text += ", " + backup.FormatBytes(int64(rate)) + "/s"
	}
	if left, known := m.remaining(at.Total); known {
		text += ", " + backup.FormatDuration(left.Round(time.Second)) + " left"
	}
	if at.Item != "" {
		text += ", " + at.Item
	}
	return text
}
