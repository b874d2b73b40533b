//go:build faults

package ledger

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Point marks a step, and does there what the environment variable RESPALDO_FAULT asks
// for, a comma-separated list of
//
//	trace:FILE   append the name of every point to FILE
//	kill:NAME    kill -9 ourselves at that point
//	stop:NAME    say "LAB-AT NAME" on stderr and wait forever, for somebody to cut the power
//	hang:NAME    wait forever without a word
//	int:NAME     send ourselves SIGINT
//	term:NAME    send ourselves SIGTERM
//
// NAME#N means the N-th time, from one. A mistake in the variable panics: a fault that
// silently never fires would let a test pass that tested nothing.
func Point(name string) {
	for _, f := range faults() {
		if f.action == "trace" {
			trace(f.where, name)
		} else if f.where == name && f.reached() {
			f.fire()
		}
	}
}

type fault struct {
	action, where string
	nth           int
	mu            sync.Mutex
	seen          int
}

var faults = sync.OnceValue(func() []*fault {
	var list []*fault
	for _, word := range strings.Split(os.Getenv("RESPALDO_FAULT"), ",") {
		if word == "" {
			continue
		}
		action, where, ok := strings.Cut(word, ":")
		f := &fault{action: action, where: where, nth: 1}
		switch action {
		case "trace":
		case "kill", "stop", "hang", "int", "term":
			if point, nth, counted := strings.Cut(where, "#"); counted {
				n, err := strconv.Atoi(nth)
				ok = ok && err == nil && n > 0
				f.where, f.nth = point, n
			}
		default:
			ok = false
		}
		if !ok || f.where == "" {
			panic("RESPALDO_FAULT: cannot read " + strconv.Quote(word))
		}
		list = append(list, f)
	}
	return list
})

func (f *fault) reached() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	return f.seen == f.nth
}

func (f *fault) fire() {
	switch f.action {
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		forever()
	case "stop":
		fmt.Fprintf(os.Stderr, "LAB-AT %s\n", f.where)
		forever()
	case "hang":
		forever()
	case "int":
		deliver(syscall.SIGINT)
	case "term":
		deliver(syscall.SIGTERM)
	}
}

// deliver returns when the signal has reached the program's handlers, so that the
// interruption falls into this step and not into a later one.
func deliver(sig syscall.Signal) {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, sig)
	defer signal.Stop(arrived)
	syscall.Kill(os.Getpid(), sig)
	<-arrived
	time.Sleep(20 * time.Millisecond) // for the goroutine that cancels the context
}

func forever() {
	for { // an empty select would be reported as a deadlock
		time.Sleep(time.Hour)
	}
}

// trace writes each name in one call, so that lines of several processes do not mix.
func trace(path, name string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err == nil {
		_, err = f.WriteString(name + "\n")
		f.Close()
	}
	if err != nil {
		panic("RESPALDO_FAULT: " + err.Error())
	}
}
