package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Measurement is what one step of one contender cost, in seconds and bytes.
type Measurement struct {
	Wall   float64 `json:"wall_seconds"`
	User   float64 `json:"user_seconds"`
	System float64 `json:"system_seconds"`
	Peak   int64   `json:"peak_bytes"` // resident; summed over the processes of a pipeline
	Stored int64   `json:"stored_bytes,omitempty"`
	Read   int64   `json:"read_bytes,omitempty"` // where the contender tells
	// Others is the CPU time that everything else on the machine took meanwhile.
	Others float64 `json:"others_seconds"`
}

func (m Measurement) cpu() float64 { return m.User + m.System }

// step is one measured thing that a contender does.
type step struct {
	name   string
	before func(ctx context.Context) error // not measured
	warm   string                          // read once before, not measured
	pipe   [][]string                      // programs with their arguments, the output of one the input of the next
	env    []string
	in     string                          // a file for the first program
	out    string                          // a file that the last program's output makes
	writes string                          // what the step writes, brought to the disk within the measured time
	stores bool                            // writes is the backup: how much it grows is told
	after  func(ctx context.Context) error // not measured; called whenever before succeeded
}

// Names of steps.
const (
	backupStep      = "backup"
	againStep       = "second backup"
	againForcedStep = "second backup, --force"
	restoreStep     = "restore"
	prepareStep     = "prepare"
)

func (s step) measure(ctx context.Context) (m Measurement, err error) {
	if s.before != nil {
		if err := s.before(ctx); err != nil {
			return m, err
		}
	}
	if s.after != nil {
		defer func() { err = errors.Join(err, s.after(ctx)) }()
	}
	had, _, err := treeSize(s.writes)
	if err != nil {
		return m, err
	}
	if err := readTree(s.warm); err != nil {
		return m, err
	}
	// What earlier steps have written or removed must not be waited for in this one.
	unix.Sync()

	busy := machineCPU()
	p, err := start(ctx, s)
	if err != nil {
		return m, err
	}
	said, err := p.wait(&m)
	if err != nil {
		return m, err
	}
	if err := syncTree(s.writes); err != nil {
		return m, err
	}
	m.Wall = time.Since(p.began).Seconds()
	m.Others = max(0, machineCPU()-busy-m.cpu())

	if s.stores {
		has, _, err := treeSize(s.writes)
		if err != nil {
			return m, err
		}
		m.Stored = has - had
	}
	if s.pipe[0][len(s.pipe[0])-1] == tellsRead {
		var told struct{ Read int64 }
		if err := json.Unmarshal(said, &told); err != nil {
			return m, fmt.Errorf("%w: %s", err, said)
		}
		m.Read = told.Read
	}
	return m, nil
}

// pipeline is a row of programs at work.
type pipeline struct {
	began    time.Time
	programs []*exec.Cmd
	stderr   []*tail
	stdout   bytes.Buffer // of the last one, unless it goes into a file

	stop chan struct{}
	peak chan int64
}

func start(ctx context.Context, s step) (_ *pipeline, err error) {
	p := &pipeline{stop: make(chan struct{}), peak: make(chan int64, 1)}
	var opened []*os.File
	defer func() {
		// The programs have theirs: a pipe ends when its writer does.
		for _, f := range opened {
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			p.kill()
		}
	}()
	var input *os.File
	if s.in != "" {
		if input, err = os.Open(s.in); err != nil {
			return nil, err
		}
		opened = append(opened, input)
	}
	p.began = time.Now()
	for i, argv := range s.pipe {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(append(os.Environ(), "LC_ALL=C"), s.env...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		said := &tail{}
		cmd.Stderr = said
		if input != nil {
			cmd.Stdin = input
		}
		switch {
		case i < len(s.pipe)-1:
			r, w, err := os.Pipe()
			if err != nil {
				return nil, err
			}
			opened = append(opened, r, w)
			cmd.Stdout, input = w, r
		case s.out != "":
			f, err := os.OpenFile(s.out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, err
			}
			opened = append(opened, f)
			cmd.Stdout = f
		default:
			cmd.Stdout = &p.stdout
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		p.programs, p.stderr = append(p.programs, cmd), append(p.stderr, said)
	}
	go p.watch()
	return p, nil
}

func (p *pipeline) kill() {
	for _, cmd := range p.programs {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// wait waits for all programs and adds what they used to m.
func (p *pipeline) wait(m *Measurement) ([]byte, error) {
	var failed error
	for i, cmd := range p.programs {
		if err := cmd.Wait(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, p.stderr[i]))
		}
		m.User += cmd.ProcessState.UserTime().Seconds()
		m.System += cmd.ProcessState.SystemTime().Seconds()
	}
	close(p.stop)
	m.Peak = <-p.peak
	return p.stdout.Bytes(), failed
}

// watch notes each program's peak memory until stop. The kernel's own high-water mark is
// asked for, so that only what a program takes in its last milliseconds is missed. What
// getrusage says is of no use: a started program's begins with the peak of who started it.
func (p *pipeline) watch() {
	peaks := make([]int64, len(p.programs))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for i, cmd := range p.programs {
			peaks[i] = max(peaks[i], highWater(cmd.Process.Pid))
		}
		select {
		case <-p.stop:
			var sum int64
			for _, n := range peaks {
				sum += n
			}
			p.peak <- sum
			return
		case <-tick.C:
		}
	}
}

// highWater is a process's peak resident memory, 0 when it has ended.
func highWater(pid int) int64 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "\nVmHWM:")
	rest, _, _ = strings.Cut(rest, " kB")
	n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
	return n << 10
}

// machineCPU is how many seconds all processors together have been busy since boot, with
// what a virtual machine's host took from them.
func machineCPU() (seconds float64) {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(line) {
		const idle, iowait, guest = 4, 5, 9 // guests' time is in user's already
		if ticks, err := strconv.ParseFloat(field, 64); err == nil && i != idle && i != iowait && i < guest {
			seconds += ticks / 100
		}
	}
	return seconds
}

// tail keeps the end of what a program says.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	t.buf = t.buf[max(0, len(t.buf)-2000):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
