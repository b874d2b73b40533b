// Package ledger knows what a run holds: locks, snapshots, mounts, processes. Each
// intent is on disk before the acquisition begins and struck off after the release, so
// whatever a crash or a power cut leaves behind is written down somewhere.
//
// There is one ledger per server, and one operation at a time may have it open: that is
// how two operations on a server exclude each other. What is in nobody's way has one of
// its own (OpenSide). The ledger only remembers; undoing
// is up to those who know how (internal/backup), and tags in the volumes themselves find
// what even a lost ledger cannot.
package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// Kind is what is held: "snapshot", "mount", "instance"… A lower-case word; crash points
// are named after it.
type Kind string

// Entry is one thing that a run intended to acquire and has not released.
type Entry struct {
	ID        string            `json:"id"`
	Kind      Kind              `json:"kind"`
	Attrs     map[string]string `json:"attrs,omitempty"`
	Run       string            `json:"run"`       // ID of the operation
	Operation string            `json:"operation"` // "backup", "restore"…
	At        time.Time         `json:"at"`
	// Boot, PID and Start name the process that intended it beyond doubt: a process ID
	// alone means another program after a reboot or a wrap-around.
	Boot  string `json:"boot"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks after boot, from /proc/PID/stat
}

// Ledger is the open ledger of one server. Safe for concurrent use.
type Ledger struct {
	dir, server, operation string
	run                    string
	self                   process
	lock                   *os.File   // nil once closed
	others                 []*os.File // locks in other directories

	mu        sync.Mutex
	file      *journal
	leftovers []Entry
	held      []*Held // of this run, in the order of acquisition
}

// Held is something this run holds, or is about to.
type Held struct {
	ledger  *Ledger
	release func(context.Context) error // nil: the holder releases it and says so
	mu      sync.Mutex                  // one release at a time
	done    bool
	entry   Entry
}

// Open opens the server's ledger for one operation, and makes dir (0700) and the ledger
// if need be. It does not wait: while another process has the ledger open, it returns a
// *respaldo.Error of kind Busy that names the holder. Close gives it back; so does the
// end of the process, however it ends.
//
// The server is locked in the directories of also as well: another configuration with a
// dir of its own would take this operation's things for leftovers.
func Open(dir, server, operation string, also ...string) (*Ledger, error) {
	if server == "" || filepath.Base(server) != server {
		return nil, fmt.Errorf("ledger: %q is no server name", server)
	}
	self, err := currentProcess()
	if err != nil {
		return nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	l := &Ledger{dir: dir, server: server, operation: operation, run: newRun(), self: self}
	holder := holder{PID: self.PID, Operation: operation, Run: l.run, Started: time.Now()}
	l.lock, err = takeLock(l.path(".lock"), server, holder)
	for _, dir := range also {
		if err == nil {
			err = l.lockToo(dir, holder)
		}
	}
	if err == nil {
		l.file, l.leftovers, err = openJournal(l.path(".ledger"), server)
	}
	if err != nil {
		l.dropLocks()
		return nil, err
	}
	return l, nil
}

func (l *Ledger) lockToo(dir string, h holder) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	lock, err := takeLock(filepath.Join(dir, l.server+".running"), l.server, h)
	if err == nil {
		l.others = append(l.others, lock)
	}
	return err
}

func (l *Ledger) dropLocks() {
	_, side := serverOf(l.server)
	for _, lock := range append(l.others, l.lock) {
		if lock != nil {
			dropLock(lock, side)
		}
	}
	l.lock, l.others = nil, nil
}

// Peek reads what is noted for a server without opening its ledger: what a dead run left,
// or what a running one holds. No ledger is no entries.
func Peek(dir, server string) ([]Entry, error) {
	content, err := readJournal(filepath.Join(dir, server+".ledger"), server)
	return content.held, err
}

// Close gives the ledger back. Whatever has not been released stays noted, as the next
// run's leftovers. Closing twice is harmless.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return nil
	}
	remaining := append([]Entry(nil), l.leftovers...)
	for _, h := range l.held {
		remaining = append(remaining, h.entry)
	}
	err := l.file.close()
	if _, side := serverOf(l.server); side && len(remaining) == 0 {
		err = join(err, os.Remove(l.path(".ledger")))
		l.dropLocks()
		return err
	}
	if compactErr := writeJournal(l.path(".ledger"), l.server, remaining); err == nil {
		err = compactErr
	}
	l.dropLocks()
	return err
}

// Run is the ID of this operation: unique, sorting by time, safe in names and LVM tags.
func (l *Ledger) Run() string { return l.run }

// Operation is what the ledger was opened for.
func (l *Ledger) Operation() string { return l.operation }

// Server is whose ledger this is.
func (l *Ledger) Server() string { return l.server }

// Leftovers are what dead runs intended and never released, in the order of acquisition:
// clean them up from the last to the first, and say Cleaned for each.
func (l *Ledger) Leftovers() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Entry(nil), l.leftovers...)
}

// Cleaned strikes off a leftover, once it is gone.
func (l *Ledger) Cleaned(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, left := range l.leftovers {
		if left.ID == e.ID {
			if err := l.append(record{Released: e.ID}); err != nil {
				return err
			}
			l.leftovers = append(l.leftovers[:i:i], l.leftovers[i+1:]...)
			return nil
		}
	}
	return nil
}

// Intend notes that the caller is about to acquire something, with all that a later run
// needs in order to find it (its names, paths). When it returns without an error the note
// is on the disk. Most callers want Acquire, which also remembers how to undo it.
func (l *Ledger) Intend(kind Kind, attrs map[string]string) (*Held, error) {
	return l.intend(kind, attrs, nil)
}

func (l *Ledger) intend(kind Kind, attrs map[string]string, release func(context.Context) error) (*Held, error) {
	h := &Held{ledger: l, release: release, entry: Entry{
		ID: randomHex(8), Kind: kind, Attrs: maps.Clone(attrs),
		Run: l.run, Operation: l.operation, At: time.Now().UTC(),
		Boot: l.self.Boot, PID: l.self.PID, Start: l.self.Start,
	}}
	l.mu.Lock()
	err := l.append(record{Intent: &h.entry})
	if err == nil {
		l.held = append(l.held, h)
	}
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	Point(string(kind) + ".intended")
	return h, nil
}

// Acquire notes the intent, calls acquire, and remembers release for ReleaseAll.
//
// release must be idempotent, and succeed on what was never acquired or is gone already:
// when acquire fails, release is called at once, since a command that failed may have
// done half of its work. The context it gets is never cancelled.
func (l *Ledger) Acquire(ctx context.Context, kind Kind, attrs map[string]string,
	acquire func(*Held) error, release func(context.Context) error) (*Held, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	h, err := l.intend(kind, attrs, release)
	if err != nil {
		return nil, err
	}
	if err := acquire(h); err != nil {
		return nil, join(err, h.Release(ctx))
	}
	Point(string(kind) + ".acquired")
	return h, nil
}

// ReleaseAll releases what this run acquired and still holds, the last first. Each
// release is attempted whatever becomes of the others, and none is stopped by ctx's
// cancellation. What could not be released stays noted.
func (l *Ledger) ReleaseAll(ctx context.Context) error {
	l.mu.Lock()
	held := append([]*Held(nil), l.held...)
	l.mu.Unlock()
	var failed error
	for i := len(held) - 1; i >= 0; i-- {
		if held[i].release != nil {
			failed = join(failed, held[i].Release(ctx))
		}
	}
	return failed
}

// Holding are the entries of this run that have not been released, in order.
func (l *Ledger) Holding() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := make([]Entry, len(l.held))
	for i, h := range l.held {
		entries[i] = h.entry
		entries[i].Attrs = maps.Clone(h.entry.Attrs)
	}
	return entries
}

// Note adds something that was not known at the time of the intent, and returns when it
// is on the disk.
func (h *Held) Note(key, value string) error {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	if err := h.ledger.append(record{Note: h.entry.ID, Attrs: map[string]string{key: value}}); err != nil {
		return err
	}
	h.entry.set(map[string]string{key: value})
	return nil
}

// NoteProcess notes a process that belongs to what is held, so that Entry.Process can
// later tell it from another one with the same ID. It does not wait for the disk: a process
// counts within this boot only, for which the kernel's memory is as good, and the command
// that takes a snapshot is noted while writers are held.
func (h *Held) NoteProcess(pid int) error {
	attrs := map[string]string{attrPID: strconv.Itoa(pid)}
	if start, err := startOf(pid); err == nil { // it may have ended already
		attrs[attrStart] = strconv.FormatUint(start, 10)
	}
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	if err := h.ledger.write((*journal).appendLazily, record{Note: h.entry.ID, Attrs: attrs}); err != nil {
		return err
	}
	h.entry.set(attrs)
	return nil
}

// Release calls the release function that Acquire was given and strikes the entry off
// when it succeeded. A second call, or one after Released, does nothing.
func (h *Held) Release(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil
	}
	if h.release != nil {
		if err := h.release(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return h.released()
}

// Released strikes the entry off without releasing anything: it is gone already, or is
// meant to stay (a snapshot that the user asked to keep).
func (h *Held) Released() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil
	}
	return h.released()
}

func (h *Held) released() error {
	Point(string(h.entry.Kind) + ".released")
	l := h.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.append(record{Released: h.entry.ID}); err != nil {
		return err
	}
	h.done = true
	for i, other := range l.held {
		if other == h {
			l.held = append(l.held[:i:i], l.held[i+1:]...)
			break
		}
	}
	return nil
}

func (l *Ledger) append(r record) error { return l.write((*journal).append, r) }

func (l *Ledger) write(how func(*journal, record) error, r record) error {
	if l.lock == nil {
		return errors.New("ledger: closed")
	}
	if err := how(l.file, r); err != nil {
		return &respaldo.Error{Kind: respaldo.Refused, What: "cannot note what is being done in " + l.path(".ledger"),
			Hint: "make room on that filesystem, or give another state_dir", Err: err}
	}
	return nil
}

func (l *Ledger) path(suffix string) string { return filepath.Join(l.dir, l.server+suffix) }

func (e *Entry) set(attrs map[string]string) {
	if e.Attrs == nil {
		e.Attrs = map[string]string{}
	}
	maps.Copy(e.Attrs, attrs)
}

// join is errors.Join that leaves a single error as it is.
func join(a, b error) error {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	return errors.Join(a, b)
}

func newRun() string { return time.Now().UTC().Format("20060102-150405-") + randomHex(3) }

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
