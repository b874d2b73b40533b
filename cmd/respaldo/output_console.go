package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// console is stderr, written by a goroutine of its own: a slow or stopped terminal
// (Ctrl-S) must never hold up a story that may be holding up writers. What is written is
// shown in order; close waits for it.
type console struct {
	out      io.Writer
	terminal bool
	colour   bool
	utf8     bool

	mu      sync.Mutex
	waiting []func()
	working bool
	idle    sync.Cond
	wake    chan struct{}
	ended   bool

	above io.Writer // of a bar that is being drawn, which lines must not garble; goroutine only
}

// maxWaiting bounds what a terminal that nobody reads can cost; later lines are dropped.
const maxWaiting = 100_000

func newConsole(out io.Writer) *console {
	c := &console{out: out, wake: make(chan struct{}, 1)}
	c.idle.L = &c.mu
	if f, ok := out.(*os.File); ok && os.Getenv("TERM") != "dumb" {
		c.terminal = term.IsTerminal(int(f.Fd()))
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := os.Getenv(name); locale != "" {
			upper := strings.ToUpper(locale)
			c.utf8 = strings.Contains(upper, "UTF-8") || strings.Contains(upper, "UTF8")
			break
		}
	}
	c.style(false)
	go c.serve()
	return c
}

// style is called before anything is drawn.
func (c *console) style(noColour bool) {
	c.colour = c.terminal && !noColour && os.Getenv("NO_COLOR") == ""
}

func (c *console) serve() {
	for range c.wake {
		c.mu.Lock()
		for len(c.waiting) > 0 {
			work := c.waiting
			c.waiting, c.working = nil, true
			c.mu.Unlock()
			for _, do := range work {
				do()
			}
			c.mu.Lock()
			c.working = false
		}
		c.idle.Broadcast()
		c.mu.Unlock()
	}
}

// do has the goroutine do something, in order, and returns at once.
func (c *console) do(what func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || len(c.waiting) >= maxWaiting {
		return
	}
	c.waiting = append(c.waiting, what)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Write takes whole lines and never fails.
func (c *console) Write(p []byte) (int, error) {
	text := string(p)
	c.do(func() {
		to := c.out
		if c.above != nil {
			to = c.above
		}
		io.WriteString(to, text)
	})
	return len(p), nil
}

func (c *console) printf(format string, args ...any) { fmt.Fprintf(c, format, args...) }

// flush waits until everything is written.
func (c *console) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) > 0 || c.working {
		c.idle.Wait()
	}
}

// hurry is flush for somebody who will not wait for a terminal that is stuck.
func (c *console) hurry() {
	done := make(chan struct{})
	go func() { c.flush(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

func (c *console) close() {
	c.flush()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.ended = true
		close(c.wake)
	}
}

// Colours, for terminals only.
const (
	green  = "32"
	yellow = "33"
	dim    = "2"
)

func (c *console) paint(colour, text string) string {
	if !c.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// mark is a sign in front of a line, or its plain form where the terminal lacks UTF-8.
func (c *console) mark(colour, sign, plain string) string {
	if !c.utf8 {
		sign = plain
	}
	return c.paint(colour, sign)
}
