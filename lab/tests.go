package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// SoakEnv is set by make soak: tests go through their large products then, and guests may
// take long.
const SoakEnv = "RESPALDO_SOAK"

const soakDeadline = 8 * time.Hour

// guestMemory is what the largest guest of the tests has, TestMemory what the tests need, in
// MiB: RunTestsBeside has two.
const (
	guestMemory = 2048
	TestMemory  = 2 * guestMemory
)

// sideBySide has a place for each guest that tests run at the same time.
var sideBySide = make(chan struct{}, places())

// places is one more than there are processors, since a guest has one and does not use it
// all the time; or as many as there is memory for.
func places() int {
	var st unix.Statfs_t
	if unix.Statfs(memoryFolder(), &st) != nil {
		return 2
	}
	room := int(int64(st.Bavail)*st.Bsize>>20) / (guestMemory + 64)
	return max(2, min(runtime.NumCPU()+1, room))
}

// RunTests runs the tests of a package that carry the build tag guest as root inside a
// guest, and shows each as a subtest of t. pkg is "./internal/volume"; pattern is as for
// go test -run, and everything if empty; what our own -run says below t's name beats it.
// The spec's Argv and Dir are chosen here; its Name, if empty, is the package's. A run in
// which no test ran is a failure, and so is a skipped test. The console is kept when
// something failed.
func RunTests(t *testing.T, spec Spec, pkg, pattern string) {
	t.Helper()
	sideBySide <- struct{}{}
	defer func() { <-sideBySide }()
	runTests(t, spec, pkg, pattern)
}

// RunTestsBeside is RunTests with a second guest beside the one of the tests, which ends with
// them. Theirs is the place of two.
func RunTestsBeside(t *testing.T, spec, other Spec, pkg, pattern string) {
	t.Helper()
	bothPlaces.Lock() // two who had one each would wait for ever
	sideBySide <- struct{}{}
	sideBySide <- struct{}{}
	bothPlaces.Unlock()
	defer func() { <-sideBySide; <-sideBySide }()
	g, err := Boot(context.Background(), other)
	if err != nil {
		t.Fatal(err)
	}
	runTests(t, spec, pkg, pattern)
	g.Kill()
	if _, err := g.Wait(); !errors.Is(err, ErrKilled) {
		t.Errorf("the guest %s did not last: %v", other.Name, err)
	}
	if t.Failed() {
		t.Logf("the console of the guest %s is in %s", other.Name, g.Console())
		err = g.RemoveDisks()
	} else {
		err = g.Remove()
	}
	if err != nil {
		t.Error(err)
	}
}

var bothPlaces sync.Mutex

func runTests(t *testing.T, spec Spec, pkg, pattern string) {
	t.Helper()
	spec = testSpec(t, spec, pkg, pattern)
	events, feed, err := converter()
	if err != nil {
		t.Fatal(err)
	}
	watch := spec.OnLine
	spec.OnLine = func(line string) {
		io.WriteString(feed, line+"\n")
		if watch != nil {
			watch(line)
		}
	}
	g, err := Boot(context.Background(), spec)
	if err != nil {
		feed.Close()
		t.Fatal(err)
	}
	go func() {
		<-g.Done()
		feed.Close()
	}()
	ran := replay(t, events)
	code, err := g.Wait()
	switch {
	case err != nil:
		t.Error(err)
	case ran == 0:
		t.Errorf("no test of %s ran in the guest; its console is in %s\n%s", pkg, g.Console(), g.tail())
	case code != 0 && !t.Failed():
		t.Errorf("the tests ended with exit code %d; the console is in %s\n%s", code, g.Console(), g.tail())
	}
	if t.Failed() {
		t.Logf("the guest's console is in %s", g.Console())
		err = g.RemoveDisks()
	} else {
		err = g.Remove()
	}
	if err != nil {
		t.Error(err)
	}
}

// CutPower runs guest tests as RunTests does, until the console shows a line that contains
// mark, and then cuts the guest's power and returns true. It returns false when the tests
// have passed without that. Give the spec's disks a path to boot another guest with what
// is on them.
func CutPower(t *testing.T, spec Spec, pkg, pattern, mark string) bool {
	t.Helper()
	sideBySide <- struct{}{}
	defer func() { <-sideBySide }()
	spec = testSpec(t, spec, pkg, pattern)
	marked := make(chan struct{})
	watch, once := spec.OnLine, sync.Once{}
	spec.OnLine = func(line string) {
		if watch != nil {
			watch(line)
		}
		if strings.Contains(line, mark) {
			once.Do(func() { close(marked) })
		}
	}
	g, err := Boot(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-marked:
		g.Kill()
	case <-g.Done():
	}
	code, err := g.Wait()
	cut := errors.Is(err, ErrKilled)
	if !cut && (err != nil || code != 0) {
		t.Fatalf("the guest ended with exit code %d before it printed %q: %v; its console is in %s\n%s", code, mark, err, g.Console(), g.tail())
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	return cut
}

// testSpec builds what a guest needs to run a package's tests.
func testSpec(t *testing.T, spec Spec, pkg, pattern string) Spec {
	t.Helper()
	tools, err := builtTools()
	if err != nil {
		t.Fatal(err)
	}
	if spec.Respaldo {
		if err := tools.respaldo(); err != nil {
			t.Fatal(err)
		}
	}
	binary, err := tools.tests(pkg)
	if err != nil {
		t.Fatal(err)
	}
	if asked := below(t.Name()); asked != "" {
		pattern, spec.Skip = asked, ""
	}
	if spec.Deadline == 0 {
		spec.Deadline = defaultDeadline
	}
	if soak := os.Getenv(SoakEnv); soak != "" {
		spec.Env = append(slices.Clone(spec.Env), SoakEnv+"="+soak)
		spec.Deadline = max(spec.Deadline, soakDeadline)
	}
	if spec.Name == "" {
		spec.Name = path.Base(pkg)
	}
	spec.Dir = path.Join("/src", pkg)
	// The guest's own timeout comes first: it shows where every goroutine stands.
	spec.Argv = []string{"/opt/lab/" + binary, "-test.v=test2json", "-test.run=" + pattern, "-test.timeout=" + (spec.Deadline - 10*time.Second).String(), "-test.skip=" + spec.Skip}
	return spec
}

// BuildProgram builds what RunProgram needs: the main package pkg, respaldo if the spec
// wants it, and what every guest boots from.
func BuildProgram(ctx context.Context, spec Spec, pkg string) error {
	tools, err := builtTools()
	if err != nil {
		return err
	}
	var g errgroup.Group // one waits for the network, the other for the compiler
	g.Go(func() error { return Prepare(ctx) })
	g.Go(func() error {
		err := tools.once(path.Base(pkg), "build", "-ldflags=-s -w", pkg)
		if spec.Respaldo {
			err = errors.Join(err, tools.respaldo())
		}
		return err
	})
	return g.Wait()
}

// RunProgram builds the main package pkg and runs it in a guest with the given arguments,
// on our terminal if the spec says so, else with its output copied to ours. It returns the
// program's exit code.
func RunProgram(ctx context.Context, spec Spec, pkg string, args ...string) (int, error) {
	if err := BuildProgram(ctx, spec, pkg); err != nil {
		return -1, err
	}
	name := path.Base(pkg)
	if spec.Name == "" {
		spec.Name = name
	}
	if spec.OnLine == nil {
		spec.OnLine = func(line string) {
			if !strings.HasPrefix(line, "reboot: ") { // the kernel's own farewell
				fmt.Println(line)
			}
		}
	}
	spec.Argv = append([]string{"/opt/lab/" + name}, args...)
	booted, err := Boot(ctx, spec)
	if err != nil {
		return -1, err
	}
	code, err := booted.Wait()
	if err != nil || (code != 0 && !spec.Terminal) {
		return code, errors.Join(err, booted.RemoveDisks())
	}
	return code, booted.Remove()
}

// below is the part of our own -run pattern that speaks of the subtests of a test.
func below(name string) string {
	if f := flag.Lookup("test.run"); f != nil {
		parts := strings.Split(f.Value.String(), "/")
		return strings.Join(parts[min(len(parts), 1+strings.Count(name, "/")):], "/")
	}
	return ""
}

var (
	buildMu sync.Mutex
	built   = map[string]error{}
)

// once builds an output of the tools folder the first time it is asked for.
func (t tools) once(name string, args ...string) error {
	buildMu.Lock()
	defer buildMu.Unlock()
	err, ok := built[name]
	if !ok {
		err = t.build(context.Background(), filepath.Join(t.dir, name), args...)
		built[name] = err
	}
	return err
}

func (t tools) respaldo() error {
	return t.once("respaldo", "build", "-tags=faults", "-ldflags=-s -w", "./cmd/respaldo")
}

// tests compiles a package's guest tests and returns the binary's name.
func (t tools) tests(pkg string) (string, error) {
	name := path.Base(pkg) + ".test"
	return name, t.once(name, "test", "-c", "-tags=guest,faults", "-ldflags=-s -w", pkg)
}

// event is a line of go tool test2json.
type event struct {
	Action, Test, Output string
}

// converter turns what is fed to it, a test binary's output mixed with whatever else the
// console shows, into events.
func converter() (<-chan event, io.WriteCloser, error) {
	cmd := exec.Command("go", "tool", "test2json")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("go tool test2json: %w", err)
	}
	events := make(chan event)
	go func() {
		defer close(events)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadBytes('\n')
			var e event
			if len(line) > 0 && json.Unmarshal(line, &e) == nil {
				events <- e
			}
			if err != nil {
				cmd.Wait()
				return
			}
		}
	}()
	return events, in, nil
}

// branch is one test's events, in order and without bound: subtests may overlap in the
// guest, but are shown here one after another.
type branch struct {
	mu     sync.Mutex
	more   *sync.Cond
	queue  []event
	closed bool
	child  map[string]*branch // by full name; filled before the child's run event is queued
}

func newBranch() *branch {
	b := &branch{child: map[string]*branch{}}
	b.more = sync.NewCond(&b.mu)
	return b
}

func (b *branch) push(e event, child *branch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if child != nil {
		b.child[e.Test] = child
	}
	b.queue = append(b.queue, e)
	b.more.Signal()
}

func (b *branch) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.more.Signal()
}

func (b *branch) next() (event, *branch, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) == 0 {
		if b.closed {
			return event{}, nil, false
		}
		b.more.Wait()
	}
	e := b.queue[0]
	b.queue = b.queue[1:]
	return e, b.child[e.Test], true
}

// replay shows the events as subtests of t while they arrive, and returns how many tests
// ran at the top.
func replay(t *testing.T, events <-chan event) int {
	root := newBranch()
	go func() {
		known := map[string]*branch{"": root}
		for e := range events {
			b, ok := known[e.Test]
			if e.Action == "run" && !ok {
				b = newBranch()
				parent := e.Test
				for known[parent] == nil {
					parent = parent[:max(0, strings.LastIndex(parent, "/"))]
				}
				known[e.Test] = b
				known[parent].push(e, b)
			} else if ok && (e.Test != "" || e.Action == "output") {
				b.push(e, nil)
			}
		}
		for _, b := range known {
			b.close()
		}
	}()
	ran := 0
	for {
		e, child, ok := root.next()
		if !ok {
			return ran
		}
		if e.Action == "run" {
			ran++
			t.Run(e.Test, func(t *testing.T) { child.show(t, e.Test) })
		}
	}
}

func (b *branch) show(t *testing.T, name string) {
	for {
		e, child, ok := b.next()
		if !ok {
			t.Error("the guest ended before this test did")
			return
		}
		switch e.Action {
		case "run":
			t.Run(strings.TrimPrefix(e.Test, name+"/"), func(t *testing.T) { child.show(t, e.Test) })
		case "output":
			if !framing(e.Output) {
				io.WriteString(t.Output(), e.Output)
			}
		case "pass":
			return
		case "fail":
			t.Fail()
			return
		case "skip":
			t.Error("skipped in the guest: a lab that runs has everything a test may need")
			return
		}
	}
}

// framing lines are printed by our own test process too.
func framing(line string) bool {
	line = strings.TrimSpace(line)
	return strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ")
}
