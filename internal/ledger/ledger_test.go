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

func TestTornEnd(t *testing.T) {
	whole := `{"format":1,"server":"main"}
{"intent":{"id":"a","kind":"snapshot","run":"r","operation":"backup"}}
`
	for name, tail := range map[string]string{
		"half a line":           `{"intent":{"id":"b","kind":"mo`,
		"half a release":        `{"released":"a`,
		"zeros":                 "\x00\x00\x00\x00\x00\x00",
		"half a line and zeros": `{"intent":{"id":"b` + "\x00\x00\x00\x00",
		"half a line, ended":    `{"intent":{"id":"b` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "main.ledger")
			if err := os.WriteFile(path, []byte(whole+tail), 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, dir)
			if got := kinds(l.Leftovers()); got != "snapshot" {
				t.Errorf("leftovers %q", got)
			}
			if _, err := l.Intend("mount", nil); err != nil {
				t.Fatal(err)
			}
			l.Close()
			if got := kinds(open(t, dir).Leftovers()); got != "snapshot mount" {
				t.Errorf("leftovers after another run %q", got)
			}
		})
	}
}

func TestEveryTornLengthIsReadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	killed(t, dir, "intend=lock", "intend=snapshot", "note=x", "released", "intend=mount")
	path := filepath.Join(dir, "main.ledger")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	headerLength := strings.IndexByte(string(content), '\n') + 1
	for cut := headerLength; cut <= len(content); cut++ {
		if err := os.WriteFile(path, content[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Peek(dir, "main"); err != nil {
			t.Fatalf("cut after %d of %d bytes: %v", cut, len(content), err)
		}
	}
}

func TestRefusedLedgers(t *testing.T) {
	for name, c := range map[string]struct{ content, says string }{
		"of a newer program":    {`{"format":2,"server":"main"}` + "\n", "has format 2"},
		"of another server":     {`{"format":1,"server":"other"}` + "\n", `of server "other"`},
		"damaged in the middle": {"{\"format\":1,\"server\":\"main\"}\ngarbage\n{\"released\":\"a\"}\n", "damaged in line 2"},
		"something else":        {"[mysqld]\nport=1\n", "damaged in line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "main.ledger")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, "main", "backup")
			if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), c.says) || len(respaldo.HintsOf(err)) == 0 {
				t.Errorf("error %v, hints %q", err, respaldo.HintsOf(err))
			}
			if after, _ := os.ReadFile(path); string(after) != c.content {
				t.Error("the file was touched")
			}
			_, err = Open(dir, "main", "backup")
			if respaldo.KindOf(err) == respaldo.Busy {
				t.Error("the lock was not given back")
			}
		})
	}
}

func TestStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "lib", "respaldo")
	l := open(t, dir)
	if _, err := l.Intend("mount", nil); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, dir + "/main.ledger": 0o600, dir + "/main.lock": 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode().Perm(), err, want)
		}
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(open, "main", "backup"); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a directory that everybody may write to: %v", err)
	}
	file := filepath.Join(dir, "main.lock")
	if _, err := Open(file, "main", "backup"); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a file in the directory's place: %v", err)
	}
	for _, name := range []string{"", "a/b", "../x"} {
		if l, err := Open(dir, name, "backup"); err == nil {
			l.Close()
			t.Errorf("server name %q was taken", name)
		}
	}
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

// A disk that fills up while the ledger is written must stop the acquisition, and must
// not spoil the lines that are there.
func TestFullDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	l := open(t, dir)
	h, err := l.Intend("snapshot", nil)
	if err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	small := limit
	small.Cur = uint64(l.file.size) + 20 // half a line fits
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	_, err = l.Acquire(t.Context(), "mount", nil,
		func(*Held) error { t.Error("acquired without a note"); return nil },
		func(context.Context) error { return nil })
	if restoreErr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); restoreErr != nil {
		t.Fatal(restoreErr)
	}
	if respaldo.KindOf(err) != respaldo.Refused || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("error: %v", err)
	}
	if err := h.Note("key", "value"); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	if entries, err := Peek(dir, "main"); err != nil || kinds(entries) != "snapshot" || entries[0].Attrs["key"] != "value" {
		t.Errorf("on the disk: %v, %v", entries, err)
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
