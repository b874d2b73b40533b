package main

import (
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/respaldo-backup/respaldo"
)

// bar is one long step on a terminal. Lines written to its container appear above it.
type bar struct {
	phase     string
	container *mpb.Progress
	bar       *mpb.Bar
	numbers   atomic.Value // string
}

func newBar(c *console, phase string) *bar {
	b := &bar{phase: phase}
	b.numbers.Store("")
	b.container = mpb.New(mpb.WithOutput(c.out), mpb.WithWidth(20), mpb.WithRefreshRate(100*time.Millisecond))
	style := mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]")
	if c.utf8 {
		style = mpb.BarStyle().Lbound("").Filler("━").Tip("╸").Padding("─").Rbound("")
	}
	b.bar = b.container.New(0, style,
		mpb.PrependDecorators(decor.Name("  "+phase+" ", decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + b.numbers.Load().(string) })),
	)
	return b
}

func (b *bar) set(at respaldo.Progress, numbers string) {
	b.numbers.Store(numbers)
	if at.Total > 0 {
		// One more than the total: at the total mpb would call the bar complete and ignore
		// what follows, while totals grow as a directory is walked.
		b.bar.SetTotal(at.Total+1, false)
	}
	b.bar.SetCurrent(at.Done)
}

// remove takes the bar off the screen; the line it stood on is free again.
func (b *bar) remove() {
	b.bar.Abort(true)
	b.container.Wait()
}
