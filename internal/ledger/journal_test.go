package ledger

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

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
		"only the end of it":    "\x00\x00\x00\x00" + `","attrs":{"pid":"1"}}` + "\n", // the next page was faster
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

// A process is noted while writers are held, so its note must not wait for the disk; every
// other note must. A pipe tells: it takes what is written, and cannot be synced.
func TestOnlyProcessesAreNotedWithoutTheDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	l := open(t, dir)
	h, err := l.Intend("snapshot", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	disk := l.file.file
	unsyncable := func(note func() error) error {
		l.file.file = w
		defer func() { l.file.file, l.file.broken = disk, nil }()
		return note()
	}
	process := func() error { return h.NoteProcess(os.Getpid()) }
	if err := unsyncable(process); err != nil {
		t.Errorf("a process: %v", err)
	}
	if err := unsyncable(process); err == nil {
		t.Error("two lines wait for the disk: a power cut may leave the second without the first")
	}
	if err := unsyncable(func() error { return h.Note("key", "value") }); err == nil {
		t.Error("a note did not wait for the disk")
	}
	if err := h.Note("key", "value"); err != nil {
		t.Fatal(err)
	}
	if err := unsyncable(process); err != nil {
		t.Errorf("a process after a line that is on the disk: %v", err)
	}
}

// What was noted without the disk keeps its place among the rest, also when we are killed.
func TestProcessesKeepTheirPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	killed(t, dir, "intend=snapshot", "note-self", "intend=instance", "note-self", "released", "note-self")
	content, err := os.ReadFile(filepath.Join(dir, "main.ledger"))
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for line := range strings.Lines(string(content)) {
		for _, word := range []string{"format", "intent", "pid_start", "released"} {
			if strings.Contains(line, `"`+word+`":`) {
				order = append(order, word)
			}
		}
	}
	if got := strings.Join(order, " "); got != "format intent pid_start intent pid_start released pid_start" {
		t.Errorf("lines: %s", got)
	}
	left := open(t, dir).Leftovers()
	if len(left) != 1 || left[0].Kind != "instance" || left[0].Attrs[attrPID] != strconv.Itoa(left[0].PID) {
		t.Errorf("leftovers: %+v", left)
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
