package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// interruptions are the signals that asked the program to end.
type interruptions struct {
	arrived  chan os.Signal
	brokenTo chan os.Signal
	sig      atomic.Int32
	once     sync.Once
}

// catchSignals returns a context that the first SIGINT, SIGTERM or SIGHUP cancels; its
// cause is an error of kind Interrupted. Whatever is held is then released in order. A
// second one ends the program at once: the ledger tells the next run what to clean up.
func catchSignals(parent context.Context, a *app) (context.Context, *interruptions) {
	ctx, cancel := context.WithCancelCause(parent)
	i := &interruptions{arrived: make(chan os.Signal, 4), brokenTo: make(chan os.Signal, 1)}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) { // nohup, or a background job of a script
			signal.Notify(i.arrived, sig)
		}
	}
	// Ctrl-Z would stop us with writers locked, the watchdog included. And `respaldo backup
	// | head` would kill us midway: as it is, the write fails, and only the write.
	// Notify, not Ignore: what is ignored stays ignored in the programs that we start.
	signal.Notify(i.brokenTo, syscall.SIGTSTP, syscall.SIGPIPE)
	go func() {
		for received := range i.arrived {
			sig := received.(syscall.Signal)
			if i.sig.CompareAndSwap(0, int32(sig)) {
				a.console.printf("respaldo: interrupted: cleaning up; once more to leave at once\n")
				cancel(&respaldo.Error{Kind: respaldo.Interrupted, What: "interrupted by " + unix.SignalName(sig)})
				continue
			}
			a.console.printf("respaldo: ended at once; the next operation on this server cleans up what is left, or run: respaldo cleanup\n")
			a.console.hurry()
			os.Exit(128 + int(sig))
		}
	}()
	return ctx, i
}

// first is the first signal that arrived, 0 if none did.
func (i *interruptions) first() syscall.Signal { return syscall.Signal(i.sig.Load()) }

func (i *interruptions) stop() {
	i.once.Do(func() {
		signal.Stop(i.arrived)
		signal.Stop(i.brokenTo)
		close(i.arrived)
	})
}
