package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// terminal returns both sides of a pseudo-terminal of 80 columns.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	fd := int(ours.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100})
	}
	if err == nil {
		theirs, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// onTerminal runs respaldo with stderr on a terminal and returns what was drawn there.
func onTerminal(t *testing.T, env []string, args ...string) (drawn, stdout string) {
	t.Helper()
	ours, theirs := terminal(t)
	cmd := program(args...)
	cmd.Env = append(cmd.Env, env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, theirs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	deadline(t, cmd)
	screen, _ := io.ReadAll(ours) // ends with EIO when the last writer is gone
	cmd.Wait()
	return string(screen), out.String()
}

func TestStoryOnATerminal(t *testing.T) {
	screen, stdout := onTerminal(t, nil, "story")
	if stdout != "backup abc\n" {
		t.Errorf("stdout: %q", stdout)
	}
	for _, want := range []string{
		"\x1b[32m✓\x1b[0m snapshot   vg/data-1  \x1b[2m",
		"saving", "10.0 MiB of 10.0 MiB",
		"msg=\"a log line\"",
		"\x1b[33m!\x1b[0m the pool is nearly full",
		"\x1b[32m✓\x1b[0m saved      10.0 MiB",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("the screen never showed %q:\n%q", want, screen)
		}
	}
	if before, after, _ := strings.Cut(screen, "saved"); !strings.Contains(before, "saving") || strings.Contains(after, "saving") {
		t.Errorf("the bar is still there after its step: %q", screen)
	}
}

func TestPlainTerminals(t *testing.T) {
	for name, env := range map[string][]string{"NO_COLOR": {"NO_COLOR=1"}, "no UTF-8": {"NO_COLOR=1", "LANG=C"}} {
		screen, _ := onTerminal(t, env, "story")
		if regexp.MustCompile(`\x1b\[[0-9]*m`).MatchString(screen) {
			t.Errorf("%s: colours: %q", name, screen)
		}
		if name == "no UTF-8" && strings.ContainsAny(screen, "✓━") {
			t.Errorf("%s: %q", name, screen)
		}
	}
	screen, _ := onTerminal(t, nil, "story", "--no-color")
	if strings.Contains(screen, "\x1b[32m") {
		t.Errorf("--no-color: %q", screen)
	}
	if screen, _ = onTerminal(t, nil, "story", "--quiet"); strings.Contains(screen, "snapshot") || strings.Contains(screen, "saving") || !strings.Contains(screen, "nearly full") {
		t.Errorf("--quiet: %q", screen)
	}
}

func TestStoryInALogFile(t *testing.T) {
	r := respaldoRuns(t, "story")
	for _, want := range []string{`level=INFO msg=snapshot detail=vg/data-1 took=`, `level=WARN msg="the pool is nearly full"`, `msg=saved detail="10.0 MiB"`} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("the log does not say %q:\n%s", want, r.stderr)
		}
	}
	if strings.Contains(r.stderr, "\x1b") || strings.Contains(r.stderr, "\r") || strings.Contains(r.stderr, "saving") {
		t.Errorf("a bar in a log: %q", r.stderr)
	}
	if r := respaldoRuns(t, "story", "-q"); strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "nearly full") {
		t.Errorf("--quiet: %q", r.stderr)
	}
	r = respaldoRuns(t, "story", "--log-format", "json", "--json")
	if !strings.Contains(r.stderr, `"msg":"snapshot"`) || r.stdout != "{\n  \"id\": \"abc\"\n}\n" {
		t.Errorf("--log-format json --json: %+v", r)
	}
}

func TestLongStepInALogFile(t *testing.T) {
	var out bytes.Buffer
	c := newConsole(&out)
	p := newProgress(c, slog.New(slog.NewTextHandler(c, nil)), false)
	start := time.Now()
	at := start
	p.now = func() time.Time { return at }
	for second := range 101 {
		at = start.Add(time.Duration(second) * time.Second)
		p.Progress(respaldo.Progress{Phase: "saving", Done: int64(second) * 10 << 20, Total: 900 << 20, Files: second})
	}
	c.flush()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines for 100 seconds:\n%s", len(lines), out.String())
	}
	for _, want := range []string{"msg=saving", `done="300 MiB"`, `of="900 MiB"`, "percent=33.3", "files=30", `rate="10.0 MiB/s"`, "remaining=1m0s"} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("the first line does not say %s: %s", want, lines[0])
		}
	}
}

func TestMeter(t *testing.T) {
	var m meter
	start := time.Now()
	if m.rate() != 0 {
		t.Error("a rate of nothing")
	}
	// Fast at first, then slow: what counts is the last ten seconds.
	for tenth := range 301 {
		done := int64(tenth) * 10
		if tenth > 150 {
			done = 1500 + int64(tenth-150)
		}
		m.add(start.Add(time.Duration(tenth)*100*time.Millisecond), done)
	}
	if rate := m.rate(); rate < 9 || rate > 11 {
		t.Errorf("rate %v, want about 10", rate)
	}
	if left, known := m.remaining(1750); !known || left < 9*time.Second || left > 12*time.Second {
		t.Errorf("remaining %v, %v", left, known)
	}
	if _, known := m.remaining(0); known {
		t.Error("the remaining time of something without an end is known")
	}
	for i := range 100_000 { // a fast reporter
		m.add(start.Add(31*time.Second+time.Duration(i)*time.Millisecond), int64(2000+i))
	}
	if len(m.samples) > 150 {
		t.Errorf("%d samples kept", len(m.samples))
	}
}

// stuck is a terminal that has been stopped with Ctrl-S.
type stuck struct {
	released chan struct{}
	bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.released
	return s.Buffer.Write(p)
}

func TestStuckTerminalHoldsUpNobody(t *testing.T) {
	out := &stuck{released: make(chan struct{})}
	c := newConsole(out)
	c.terminal = true
	p := newProgress(c, slog.New(slog.NewTextHandler(c, nil)), false)
	var reporters sync.WaitGroup
	for reporter := range 4 {
		reporters.Go(func() {
			for i := range 500 {
				p.Step("step", fmt.Sprint(reporter, "-", i))
				p.Warn("warning")
				p.log.Info("line")
			}
		})
	}
	reporters.Wait() // would hang if anything waited for the terminal
	c.hurry()        // gives up
	close(out.released)
	c.close()
	if got := strings.Count(out.String(), "\n"); got != 4*500*3 {
		t.Errorf("%d lines", got)
	}
	last := -1
	for _, m := range regexp.MustCompile(`step +0-(\d+)`).FindAllStringSubmatch(out.String(), -1) {
		i, _ := strconv.Atoi(m[1])
		if i != last+1 {
			t.Fatalf("step %d after step %d", i, last)
		}
		last = i
	}
}

func TestConsoleAfterItsEnd(t *testing.T) {
	var out bytes.Buffer
	c := newConsole(&out)
	c.printf("said\n")
	c.close()
	c.printf("too late\n")
	c.flush()
	c.close()
	if out.String() != "said\n" {
		t.Errorf("%q", out.String())
	}
}
