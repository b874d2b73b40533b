package guest

import (
	"fmt"
	"os"
	"sync"
)

// T is what the functions here want of a testing.T; Main has one for programs.
type T interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Main runs a program that is not a test, such as a demonstration, with what tests have:
// a failure prints why and ends it, and the clean-ups run in reverse on every way out.
// It exits with 1 if anything failed.
func Main(program func(t T)) {
	p := &process{}
	p.protect(func() { program(p) })
	for len(p.cleanups) > 0 {
		last := p.cleanups[len(p.cleanups)-1]
		p.cleanups = p.cleanups[:len(p.cleanups)-1]
		p.protect(last)
	}
	if p.failed {
		os.Exit(1)
	}
	os.Exit(0)
}

type process struct {
	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

type fatal struct{}

// protect stops Fatal, and nothing else, on its way up.
func (p *process) protect(f func()) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(fatal); !ok {
				panic(r)
			}
		}
	}()
	f()
}

func (p *process) Helper() {}

func (p *process) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

func (p *process) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (p *process) Fatal(args ...any) {
	p.Errorf("%s", fmt.Sprint(args...))
	panic(fatal{})
}

func (p *process) Fatalf(format string, args ...any) { p.Fatal(fmt.Sprintf(format, args...)) }
