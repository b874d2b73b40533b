//go:build guest

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// soak is set for the large products: every step × kind of volume × server.
var soak = os.Getenv("RESPALDO_SOAK") != ""

// The write load of the crash tests: a few transactions a second, since all that a guest
// has is one slow processor.
const (
	crashWriters = 2
	crashPace    = 200 * time.Millisecond
)

// step is a crash point of an operation, as RESPALDO_FAULT wants it: "mount.acquired#2".
type step struct {
	Operation string `json:"operation"` // "backup", "restore", "serve", "dump" or "copy"
	Point     string `json:"point"`
	// Recorded tells that a backup has become visible before this step.
	Recorded bool `json:"recorded,omitempty"`
}

func (s step) String() string { return s.Operation + " " + s.Point }

// crash is a stand on which operations end abruptly. Its exported fields are what a
// guest must know after a power cut.
type crash struct {
	*stand
	load *guest.Load

	Dir     string            `json:"dir"`
	Steps   []step            `json:"steps"`
	Next    int               `json:"next"`    // of Steps
	Backups []string          `json:"backups"` // that were made
	Unnamed int               `json:"unnamed"` // how many were recorded before their operation died
	Source  string            `json:"source"`  // the backup that restores restore
	Files   map[string]string `json:"files"`   // what it restores: path → owner, mode and hash
	Before  guest.State       `json:"before"`
}

// newCrash makes a stand with a write load, whose repository and state lie on disk 1, and
// learns from one traced backup and one traced restore what the steps are.
func newCrash(t *testing.T, kind, server string) *crash {
	t.Helper()
	c := &crash{stand: newStand(t, kind, server, standOptions{})}
	c.Dir = c.dir
	c.startLoad()
	c.Before = guest.Look(t)

	acked := c.load.Acked()
	made := c.traced("backup")
	begun := c.load.Begun()
	c.Source = c.list()[0].ID
	c.Backups = []string{c.Source}
	to := c.target(0)
	restored := c.traced("restore", c.Source, "--to", to)
	c.Files = fingerprints(t, to)
	c.holds(to, acked, begun)
	c.removeTarget(to)
	c.Steps = append(made, restored...)
	if soak {
		c.Steps = append(c.Steps, c.sides()...)
	}
	t.Logf("steps: %v", c.Steps)
	return c
}

// sides learns the steps of what lives beside the others: serve, and a restore of a snapshot.
func (c *crash) sides() []step {
	c.t.Helper()
	served := c.traced(serveArgs...)
	copied := c.traced("restore", "now", "--to", c.target(0))
	for i := range copied {
		copied[i].Operation = "copy"
	}
	c.removeTarget(c.target(0))
	return slices.Concat(served, copied, c.traced(c.dumpArgs()...))
}

// dumpArgs are of a dump that takes the place of the one before.
func (c *crash) dumpArgs() []string {
	return c.dumping("--databases", "shop", "--to", c.dumpFile(), "--force")
}

func (c *crash) dumpFile() string { return c.Dir + "/dump.sql" }

// serveArgs end by themselves as soon as the server can be used.
var serveArgs = []string{"serve", "now", "--ttl", "1ms"}

func (c *crash) startLoad() {
	c.load = guest.StartLoadEvery(c.whole, c.server, crashWriters, crashPace)
	c.load.Moves(c.t, testLimit)
}

// within runs f as a subtest.
func (c *crash) within(name string, f func()) bool {
	outer := c.t
	defer func() { c.t = outer }()
	return outer.Run(name, func(t *testing.T) {
		c.t = t
		f()
	})
}

// traced runs an operation to its end and returns the steps that it went through.
func (c *crash) traced(args ...string) []step {
	c.t.Helper()
	file := filepath.Join(c.dir, "trace")
	os.Remove(file)
	if o := c.run([]string{"RESPALDO_FAULT=trace:" + file}, args...); o.code != 0 {
		c.t.Fatalf("respaldo %v failed with exit code %d\n%s%s", args, o.code, o.stdout, o.stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	var steps []step
	seen := map[string]int{}
	for point := range strings.Lines(string(text)) {
		point = strings.TrimSpace(point)
		s := step{Operation: args[0], Point: point, Recorded: seen["backup.recorded"] > 0 || point == "backup.recorded"}
		if seen[point]++; seen[point] > 1 {
			s.Point = fmt.Sprintf("%s#%d", point, seen[point])
		}
		steps = append(steps, s)
	}
	if len(steps) == 0 {
		c.t.Fatalf("respaldo %v has no crash points: is it built with the tag faults?", args)
	}
	return steps
}

// target is where the restore of step n goes.
func (c *crash) target(n int) string { return filepath.Join(c.Dir, fmt.Sprintf("restored-%d", n)) }

func (c *crash) removeTarget(dir string) {
	c.t.Helper()
	for _, d := range []string{dir, dir + ".more"} { // where what is no data directory goes
		if err := os.RemoveAll(d); err != nil {
			c.t.Fatal(err)
		}
	}
}

// args is the command line of a step's operation.
func (c *crash) args(n int) []string {
	switch c.Steps[n].Operation {
	case "restore":
		return []string{"restore", c.Source, "--to", c.target(n)}
	case "copy":
		return []string{"restore", "now", "--to", c.target(n)}
	case "serve":
		return serveArgs
	case "dump":
		return c.dumpArgs()
	}
	return []string{"backup"}
}

// repaired runs cleanup after an operation died in step n, and asserts that nothing is
// left of it: a restore can be repeated unless it was complete, no backup is half visible.
func (c *crash) repaired(n int) {
	c.t.Helper()
	s := c.Steps[n]
	restores := s.Operation == "restore" || s.Operation == "copy"
	half := restores && repo.Incomplete(c.target(n))
	swept := c.cleaned()
	if s.Operation == "dump" {
		text := c.readDump(c.dumpFile())
		end, half := text[max(0, len(text)-100):], c.dumpFile()+".partial"
		if _, err := os.Stat(half); !bytes.Contains(end, []byte("-- Dump completed")) || !errors.Is(err, fs.ErrNotExist) {
			c.t.Errorf("the dump is not whole, or half of one is beside it (%v); it ends with %q", err, end)
		}
	}
	if s.Operation == "serve" || s.Operation == "dump" {
		return
	}
	if restores {
		if half && !slices.Equal(swept.Incomplete, []string{c.target(n)}) {
			c.t.Errorf("cleanup names the incomplete restores %q, not %s", swept.Incomplete, c.target(n))
		}
		if half || isEmpty(c.target(n)) {
			c.ok(c.args(n)...)
		}
		if s.Operation == "restore" {
			c.sameFiles(c.target(n))
		} else if repo.Incomplete(c.target(n)) || isEmpty(c.target(n)) {
			c.t.Errorf("%s is not complete after the second restore", c.target(n))
		}
		c.removeTarget(c.target(n))
		return
	}
	if s.Recorded {
		c.Unnamed++
	}
	// A whole backup after every step would take half of the time. Otherwise the operation
	// that dies next is also the next backup: it must get beyond the step of this one. All
	// that was recorded meanwhile is read back in finish, after a whole and proved backup.
	if soak || n%5 == 0 {
		c.nextBackup("--prove", "none")
	}
	if soak || s.Recorded || s.Point == "backup.record" {
		c.listed()
	}
}

// cleaned runs cleanup and asserts that nothing is left behind and that writes flow.
func (c *crash) cleaned() backup.Swept {
	c.t.Helper()
	var swept backup.Swept
	c.into(&swept, "cleanup")
	c.nothingLeft()
	c.load.Moves(c.t, testLimit)
	return swept
}

// nothingLeft looks at the system, at our working files, and at what the ledger says.
func (c *crash) nothingLeft() {
	c.t.Helper()
	c.Before.NothingLeft(c.t)
	for _, dir := range []string{c.Dir + "/state/work/", "/run/respaldo/work/", "/run/respaldo/mounts/", "/run/respaldo/served/"} {
		found, _ := filepath.Glob(dir + "main*/*")
		sides, _ := filepath.Glob(dir + "main.*")
		if found = append(found, sides...); len(found) > 0 {
			c.t.Errorf("left behind: %s", found[0])
		}
	}
	noted, err := ledger.Peek(c.Dir+"/state", "main")
	sides, sidesErr := ledger.Sides("main", c.Dir+"/state", "/run/respaldo")
	for _, side := range sides {
		more, peekErr := ledger.Peek(c.Dir+"/state", side)
		if noted, sidesErr = append(noted, more...), errors.Join(sidesErr, peekErr); len(more) == 0 {
			c.t.Errorf("left behind: a file of %s", side)
		}
	}
	err = errors.Join(err, sidesErr)
	// A half-written target is the user's to finish or delete; until then it is noted, so
	// that every run says so.
	noted = slices.DeleteFunc(noted, func(e ledger.Entry) bool { return e.Kind == "target" && repo.Incomplete(e.Attrs["path"]) })
	if err != nil || len(noted) > 0 {
		c.t.Errorf("the ledger still notes %v, %v", noted, err)
	}
}

// nextBackup makes a backup, to the end.
func (c *crash) nextBackup(args ...string) respaldo.Backup {
	c.t.Helper()
	made := c.backup(args...).Backup
	c.Backups = append(c.Backups, made.ID)
	return made
}

// listed asserts that list shows each backup that was made or had been recorded when its
// operation died, all of them complete, and no other.
func (c *crash) listed() {
	c.t.Helper()
	var listed []string
	unnamed := 0
	for _, b := range c.list() {
		listed = append(listed, b.ID)
		if !slices.Contains(c.Backups, b.ID) {
			unnamed++
			if !b.Manifest.Proof.OK {
				c.t.Errorf("a backup whose operation died is listed and not proved: %+v", b.Manifest.Proof)
			}
		}
		if b.Files == 0 || b.Manifest.Quiesced.Coordinates.File == "" {
			c.t.Errorf("a half backup is listed: %+v", b)
		}
	}
	for _, id := range c.Backups {
		if !slices.Contains(listed, id) {
			c.t.Errorf("backup %s is not listed any more", id)
		}
	}
	if unnamed != c.Unnamed {
		c.t.Errorf("%d backups of operations that died are listed, of which %d had come that far", unnamed, c.Unnamed)
	}
}

func (c *crash) list() []respaldo.Backup {
	c.t.Helper()
	var listed []respaldo.Backup
	c.into(&listed, "list")
	return listed
}

// finish asserts that after all of it the origin and the repository are as good as ever:
// a backup is proved and restored, and holds what it must; the data of every backup that
// is listed can be read back.
func (c *crash) finish() {
	c.t.Helper()
	acked := c.load.Acked()
	made := c.nextBackup()
	c.listed()
	begun := c.load.Begun()
	if !made.Manifest.Proof.OK {
		c.t.Errorf("not proved: %+v", made.Manifest.Proof)
	}
	to := c.target(len(c.Steps))
	c.ok("restore", made.ID, "--to", to)
	c.holds(to, acked, begun)
	c.removeTarget(to)
	c.ok("verify")
	if err := c.load.Stop(); err != nil {
		c.t.Errorf("a writer of the origin got an error: %v", err)
	}
	c.nothingLeft()
}

// holds starts a server on a restored directory and asserts that it has the rows.
func (c *crash) holds(dir string, from, to guest.Progress) {
	c.t.Helper()
	server := guest.StartServer(c.t, guest.ServerSpec{Name: c.server.Name, DataDir: dir})
	c.sameShop(server.DB)
	rows, err := guest.Contents(server.DB, crashWriters)
	if err != nil {
		c.t.Error(err)
	} else {
		rows.Within(c.t, from, to)
	}
	if err := server.Kill(); err != nil { // its files go
		c.t.Error(err)
	}
}

// sameFiles asserts that a directory is what the restore of Source gives, of which a
// server has been started once.
func (c *crash) sameFiles(dir string) {
	c.t.Helper()
	if repo.Incomplete(dir) {
		c.t.Errorf("%s is marked as incomplete", dir)
	}
	got := fingerprints(c.t, dir)
	for path, want := range c.Files {
		if got[path] != want {
			c.t.Errorf("%s is %q, should be %q", filepath.Join(dir, path), got[path], want)
		}
	}
	for path := range got {
		if c.Files[path] == "" {
			c.t.Errorf("%s should not be there", filepath.Join(dir, path))
		}
	}
}

// fingerprints are mode, owner and hash of everything below a directory.
func fingerprints(t *testing.T, dir string) map[string]string {
	t.Helper()
	prints := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		print := fmt.Sprintf("%s %v", info.Mode(), ownerOf(info))
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(content)
			print += " " + hex.EncodeToString(sum[:8])
		}
		prints[strings.TrimPrefix(path, dir)] = print
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return prints
}

func isEmpty(dir string) bool {
	entries, _ := os.ReadDir(dir)
	return len(entries) == 0
}
