package ledger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// The test binary, started with this variable set, is another run of the program: it does
// what the words say, one after the other.
const asOtherRun = "LEDGER_TEST_OTHER_RUN"

func TestMain(m *testing.M) {
	if script := os.Getenv(asOtherRun); script != "" {
		otherRun(strings.Fields(script))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func otherRun(words []string) {
	must := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	l, err := Open(words[0], "main", "backup")
	must(err)
	var held []*Held
	for _, word := range words[1:] {
		verb, arg, _ := strings.Cut(word, "=")
		switch verb {
		case "intend":
			h, err := l.Intend(Kind(arg), map[string]string{"path": "/of/" + arg})
			must(err)
			held = append(held, h)
		case "acquire":
			h, err := l.Acquire(context.Background(), Kind(arg), nil,
				func(*Held) error { fmt.Println("acquire", arg); return nil },
				func(context.Context) error { fmt.Println("release", arg); return nil })
			must(err)
			held = append(held, h)
		case "note":
			must(held[len(held)-1].Note("note", arg))
		case "note-self":
			must(held[len(held)-1].NoteProcess(os.Getpid()))
		case "released":
			must(held[0].Released())
			held = held[1:]
		case "release-all":
			must(l.ReleaseAll(context.Background()))
		case "die":
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case "wait": // until our stdin is closed
			fmt.Println("waiting")
			bufio.NewReader(os.Stdin).ReadString('\n')
		case "close":
			must(l.Close())
		}
	}
}

func startOther(t *testing.T, words ...string) (*exec.Cmd, *bufio.Reader, func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asOtherRun+"="+strings.Join(words, " "))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out), func() { in.Close(); cmd.Wait() }
}

// killed runs another run that ends by kill -9.
func killed(t *testing.T, words ...string) {
	t.Helper()
	_, out, wait := startOther(t, append(words, "die")...)
	for {
		line, err := out.ReadString('\n')
		if strings.HasPrefix(line, "error:") {
			t.Error(line)
		}
		if err != nil {
			break
		}
	}
	wait()
}

func open(t *testing.T, dir string) *Ledger {
	t.Helper()
	l, err := Open(dir, "main", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func kinds(entries []Entry) string {
	var words []string
	for _, e := range entries {
		words = append(words, string(e.Kind))
	}
	return strings.Join(words, " ")
}

func TestLeftoversOfAKilledRun(t *testing.T) {
	for _, c := range []struct{ script, left string }{
		{"", ""},
		{"intend=snapshot", "snapshot"},
		{"intend=snapshot intend=mount", "snapshot mount"},
		{"intend=lock intend=snapshot released intend=mount", "snapshot mount"},
		{"intend=lock released", ""},
		{"acquire=snapshot acquire=mount release-all", ""},
		{"intend=snapshot close", "snapshot"},
	} {
		t.Run(c.script, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			killed(t, append([]string{dir}, strings.Fields(c.script)...)...)
			peeked, err := Peek(dir, "main")
			if err != nil || kinds(peeked) != c.left {
				t.Errorf("Peek: %q, %v; want %q", kinds(peeked), err, c.left)
			}
			l := open(t, dir)
			if got := kinds(l.Leftovers()); got != c.left {
				t.Errorf("leftovers %q, want %q", got, c.left)
			}
		})
	}
}

func TestLeftoversSayWhoseTheyAre(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	killed(t, dir, "intend=instance", "note=hello", "note-self")
	l := open(t, dir)
	left := l.Leftovers()
	if len(left) != 1 {
		t.Fatalf("leftovers: %v", left)
	}
	e := left[0]
	if e.Run == "" || e.Run == l.Run() || e.Operation != "backup" || e.Attrs["path"] != "/of/instance" || e.Attrs["note"] != "hello" || !e.ThisBoot() {
		t.Errorf("entry: %+v", e)
	}
	if pid, alive := e.Process(); pid != e.PID || alive {
		t.Errorf("the killed process %d: pid %d, alive %v", e.PID, pid, alive)
	}
}

func TestProcessIsNotMistakenForAnother(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "state"))
	h, err := l.Intend("instance", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.NoteProcess(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	e := l.Holding()[0]
	if pid, alive := e.Process(); pid != os.Getpid() || !alive {
		t.Errorf("ourselves: pid %d, alive %v", pid, alive)
	}
	earlier := e
	earlier.Attrs = map[string]string{attrPID: e.Attrs[attrPID], attrStart: "1"}
	if _, alive := earlier.Process(); alive {
		t.Error("a process that started at another time passes for the same")
	}
	before := e
	before.Boot = "another"
	if _, alive := before.Process(); alive {
		t.Error("a process of another boot passes for alive")
	}
}

func TestCleanedLeftoversAreForgotten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	killed(t, dir, "intend=snapshot", "intend=mount", "intend=instance")
	l := open(t, dir)
	left := l.Leftovers()
	if err := l.Cleaned(left[1]); err != nil {
		t.Fatal(err)
	}
	if got := kinds(l.Leftovers()); got != "snapshot instance" {
		t.Errorf("after cleaning the mount: %q", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	for _, e := range l.Leftovers() {
		if err := l.Cleaned(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "main.ledger"))
	if err != nil || string(content) != `{"format":1,"server":"main"}`+"\n" {
		t.Errorf("a ledger of nothing: %q, %v", content, err)
	}
}

func TestOneOperationAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	other, out, end := startOther(t, dir, "wait")
	defer end()
	if line, err := out.ReadString('\n'); line != "waiting\n" {
		t.Fatal(line, err)
	}
	_, err := Open(dir, "main", "restore")
	if respaldo.KindOf(err) != respaldo.Busy {
		t.Fatalf("a second operation: %v", err)
	}
	for _, word := range []string{"backup", fmt.Sprint("process ", other.Process.Pid), "since 20"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
	neighbour, err := Open(dir, "second", "backup")
	if err != nil {
		t.Fatalf("another server: %v", err)
	}
	neighbour.Close()
	end()
	open(t, dir)
}

// Two configurations of one server, each with a state_dir of its own.
func TestOneOperationAtATimeOnAMachine(t *testing.T) {
	dir := t.TempDir()
	mine, theirs, running := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs"), filepath.Join(dir, "run")
	one, err := Open(mine, "main", "backup", running)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(theirs, "main", "cleanup", running); respaldo.KindOf(err) != respaldo.Busy || !strings.Contains(err.Error(), "backup") {
		t.Errorf("by another configuration: %v", err)
	}
	neighbour, err := Open(theirs, "second", "backup", running)
	if err != nil {
		t.Fatalf("another server: %v", err)
	}
	neighbour.Close()
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	two, err := Open(theirs, "main", "cleanup", running)
	if err != nil {
		t.Fatalf("after its end: %v", err)
	}
	two.Close()
}

func TestChildrenDoNotInheritTheLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	l := open(t, dir)
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { child.Process.Kill(); child.Wait() }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestReleaseAllIsInReverseAndAttemptsEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	l := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	var released []string
	stuck := map[Kind]error{"mount": errors.New("mount is busy"), "snapshot": errors.New("snapshot is open")}
	for _, kind := range []Kind{"lock", "snapshot", "mount", "instance"} {
		_, err := l.Acquire(ctx, kind, nil,
			func(h *Held) error { return h.Note("seen", "yes") },
			func(ctx context.Context) error {
				if ctx.Err() != nil {
					t.Error("the release of", kind, "got a cancelled context")
				}
				released = append(released, string(kind))
				return stuck[kind]
			})
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	err := l.ReleaseAll(ctx)
	if want := []string{"instance", "mount", "snapshot", "lock"}; !slices.Equal(released, want) {
		t.Errorf("released %v, want %v", released, want)
	}
	if !errors.Is(err, stuck["mount"]) || !errors.Is(err, stuck["snapshot"]) {
		t.Errorf("error: %v", err)
	}
	if got := kinds(l.Holding()); got != "snapshot mount" {
		t.Errorf("still held: %q", got)
	}
	released, stuck = nil, nil
	if err := l.ReleaseAll(ctx); err != nil || !slices.Equal(released, []string{"mount", "snapshot"}) {
		t.Errorf("second attempt: %v, %v", released, err)
	}
}

func TestAcquireThatFailsIsUndone(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "state"))
	failed, undone := errors.New("no room"), 0
	_, err := l.Acquire(t.Context(), "snapshot", nil,
		func(*Held) error {
			if kinds(l.Holding()) != "snapshot" {
				t.Error("the intent was not noted before the acquisition")
			}
			return failed
		},
		func(context.Context) error { undone++; return nil })
	if !errors.Is(err, failed) || undone != 1 || len(l.Holding()) != 0 {
		t.Errorf("error %v, undone %d times, held %v", err, undone, l.Holding())
	}
	_, err = l.Acquire(t.Context(), "snapshot", nil,
		func(*Held) error { return failed },
		func(context.Context) error { return errors.New("cannot remove") })
	if !errors.Is(err, failed) || !strings.Contains(err.Error(), "cannot remove") || kinds(l.Holding()) != "snapshot" {
		t.Errorf("error %v, held %v", err, l.Holding())
	}
}

func TestNothingIsAcquiredAfterAnInterruption(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "state"))
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := l.Acquire(ctx, "snapshot", nil,
		func(*Held) error { t.Error("acquired"); return nil },
		func(context.Context) error { return nil })
	if !errors.Is(err, why) || len(l.Holding()) != 0 {
		t.Errorf("error %v, held %v", err, l.Holding())
	}
}

func TestReleaseOnceOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	l := open(t, dir)
	times := 0
	acquire := func() *Held {
		h, err := l.Acquire(t.Context(), "snapshot", nil, func(*Held) error { return nil },
			func(context.Context) error { times++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := acquire()
	if err := errors.Join(h.Release(t.Context()), h.Release(t.Context()), h.Released(), l.ReleaseAll(t.Context())); err != nil || times != 1 {
		t.Errorf("released %d times: %v", times, err)
	}
	kept := acquire()
	if err := errors.Join(kept.Released(), l.ReleaseAll(t.Context())); err != nil || times != 1 {
		t.Errorf("what was meant to stay was released: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left := open(t, dir).Leftovers(); len(left) != 0 {
		t.Errorf("leftovers: %v", left)
	}
	if _, err := l.Intend("mount", nil); err == nil {
		t.Error("a closed ledger takes notes")
	}
}

func TestConcurrentUse(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "state"))
	var runs sync.WaitGroup
	for range 8 {
		runs.Go(func() {
			h, err := l.Acquire(t.Context(), "mount", nil,
				func(h *Held) error { return h.Note("a", "b") },
				func(context.Context) error { return nil })
			if err != nil {
				t.Error(err)
				return
			}
			l.Holding()
			if err := h.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	if held := l.Holding(); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
}
