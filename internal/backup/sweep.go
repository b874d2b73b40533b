package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// What a run can hold. The names appear in the ledger and in crash points.
const (
	kindSnapshot ledger.Kind = "snapshot"
	kindMount    ledger.Kind = "mount"
	kindScratch  ledger.Kind = "scratch"
	kindInstance ledger.Kind = "instance"
	kindTarget   ledger.Kind = "target"  // a directory that a restore writes into
	kindUse      ledger.Kind = "use"     // of a kept snapshot, which must stay meanwhile
	kindServed   ledger.Kind = "served"  // a private server that people use
	kindLink     ledger.Kind = "link"    // to its socket, where the user wanted it
	kindPartial  ledger.Kind = "partial" // a dump's file, or mydumper's directory, that is not whole
)

// Leftover is one thing of ours that outlived its operation.
type Leftover struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Why is why a snapshot went that was to stay; empty for what an operation left that
	// ended abruptly.
	Why string `json:"why,omitempty"`
}

// Swept is what a cleanup did.
type Swept struct {
	Removed []Leftover `json:"removed"`
	// Incomplete are directories that an interrupted restore left half-written. They are
	// the user's to keep or delete: a cleanup deletes no data directory.
	Incomplete []string `json:"incomplete,omitempty"`
	// Rollbacks says of each that had ended midway whether it was finished or undone.
	Rollbacks []string `json:"rollbacks,omitempty"`
	// Harmless tells that no device is suspended: what could not be removed is in the way
	// of nobody but the disk's space.
	Harmless bool `json:"-"`
}

func (s *Swept) removed(kind, name string) {
	s.Removed = append(s.Removed, Leftover{Kind: kind, Name: name})
}

// summary names what an operation that ended abruptly had left.
func (s Swept) summary() string {
	var words []string
	for _, l := range s.Removed {
		if l.Why == "" {
			words = append(words, l.Kind+" "+l.Name)
		}
	}
	return strings.Join(words, ", ")
}

// Cleanup removes everything of this server's operations that outlived them: the ledger
// says what a dead run held, and tags, names and mount paths say it again, so that a lost
// ledger loses nothing. What is not tagged as ours is never touched.
func (s *Site) Cleanup(ctx context.Context) (swept Swept, err error) {
	op, err := s.open("cleanup")
	if err != nil {
		return swept, err
	}
	defer op.close(ctx, &err)
	swept, err = op.sweepAll(ctx)
	site := *s
	site.Server = Receivers // of clones that others sent here
	receivers := &operation{Site: &site, scope: op.scope, volumes: op.volumes, ledger: op.ledger}
	err = joinErrors(err, receivers.sweepSides(ctx, &swept))
	return swept, joinErrors(err, op.retireKept(ctx, &swept))
}

// sweep goes from what holds to what is held: devices left suspended first, since writers
// hang on them; then programs, their mounts, the volumes under those, and files last.
// It runs under the server's exclusion, so nothing it finds belongs to a living operation.
func (op *operation) sweep(ctx context.Context) (swept Swept, err error) {
	swept.Removed = []Leftover{} // [] in JSON, never null
	leftovers := op.ledger.Leftovers()
	err = op.resumeVolumes(ctx, leftovers)
	swept.Harmless = err == nil
	if failed := op.settleRollbacks(ctx, leftovers, &swept); failed != nil {
		swept.Harmless = false
		return swept, joinErrors(err, failed) // what would be swept may be the server's own volume
	}
	for _, step := range []func(context.Context, []ledger.Entry, *Swept) error{
		op.resumeAppliers, op.killInstances, op.unmountAll, op.removeSnapshots, op.removeScratch, op.removeLinks, op.removePartials,
	} {
		err = joinErrors(err, step(ctx, leftovers, &swept))
	}
	if err != nil {
		again := "respaldo cleanup"
		if op.Server != Receivers { // which every cleanup does
			again += " --server " + op.Server
		}
		return swept, &respaldo.Error{Kind: respaldo.Leftovers, What: "could not clean up everything",
			Hint: "end what holds it, then run: " + again, Err: err}
	}
	for _, e := range leftovers {
		if e.Kind == kindTarget && repo.Incomplete(e.Attrs["path"]) {
			swept.Incomplete = append(swept.Incomplete, e.Attrs["path"])
			continue // said again until it is complete or gone
		}
		if err := op.ledger.Cleaned(e); err != nil {
			return swept, err
		}
	}
	return swept, nil
}

// resumeVolumes waits for a volume command that outlived its run, since ending it midway
// is what leaves an origin suspended; and resumes devices that somebody else's kill left so.
func (op *operation) resumeVolumes(ctx context.Context, entries []ledger.Entry) error {
	var failed error
	for _, e := range entries {
		if e.Kind != kindSnapshot && e.Kind != kindMaking {
			continue
		}
		if err := waitForExit(ctx, e); err != nil {
			return err
		}
		if e.Kind == kindMaking {
			continue // it suspends nothing that anybody uses
		}
		failed = joinErrors(failed, op.volumes.ResumeSuspended(ctx, volumeOf(e)))
	}
	return joinErrors(failed, op.volumes.ResumeLeftovers(ctx))
}

func (op *operation) killInstances(ctx context.Context, _ []ledger.Entry, swept *Swept) error {
	found, err := mysql.FindInstances(op.scope)
	if err != nil {
		return err
	}
	for _, instance := range found {
		if killErr := instance.Kill(); killErr != nil {
			err = joinErrors(err, killErr)
			continue
		}
		waiting, cancel := context.WithTimeout(ctx, sweepPatience)
		waitErr := waitUntil(waiting, func() bool { return !instance.Alive() })
		cancel()
		if waitErr != nil {
			err = joinErrors(err, &respaldo.Error{Kind: respaldo.Leftovers, What: fmt.Sprintf("the private server with process ID %d does not end", instance.PID), Err: waitErr})
			continue
		}
		swept.removed("instance", fmt.Sprintf("pid %d", instance.PID))
	}
	return err
}

func (op *operation) unmountAll(ctx context.Context, _ []ledger.Entry, swept *Swept) error {
	mounts, err := op.volumes.MountsUnder(op.mountDir())
	if err != nil {
		return err
	}
	for _, dir := range mounts { // the latest first: it may lie on an earlier one
		if unmountErr := op.unmount(ctx, dir); unmountErr != nil {
			err = joinErrors(err, unmountErr)
			continue
		}
		swept.removed("mount", dir)
	}
	return joinErrors(err, removeEmptyDirs(op.mountDir()))
}

// removeSnapshots removes our snapshots that were not meant to stay. One that was meant to
// stay, but whose run died before it was complete, has no manifest: nobody can say what it
// is, and it goes too, as long as the ledger shows that a run of ours began it.
func (op *operation) removeSnapshots(ctx context.Context, entries []ledger.Entry, swept *Swept) error {
	unfinished := map[string]bool{}
	for _, e := range entries {
		if e.Kind == kindSnapshot {
			unfinished[e.Attrs["name"]] = true
		}
	}
	snapshots, err := op.volumes.Leftovers(ctx, "")
	if err != nil {
		return err
	}
	op.seen = snapshots
	for _, snapshot := range snapshots {
		d := snapshot.Describe()
		if d.Server != op.scope || d.Kept && (!unfinished[d.Name] || op.hasManifest(d.Name)) {
			continue
		}
		err = joinErrors(err, op.removeFor(ctx, "", snapshot, swept))
	}
	return err
}

// removeFor removes a snapshot and notes that, with the reason if it was to stay.
func (op *operation) removeFor(ctx context.Context, why string, snapshot volume.Snapshot, swept *Swept) error {
	err := op.removeKept(ctx, snapshot)
	if err == nil {
		swept.Removed = append(swept.Removed, Leftover{Kind: "snapshot", Name: snapshot.Describe().Name, Why: why})
	}
	return err
}

func (op *operation) removeScratch(_ context.Context, _ []ledger.Entry, swept *Swept) error {
	var failed error
	for _, dir := range []string{op.workDir(), op.socketDir(), op.servedDir()} {
		runs, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = joinErrors(failed, err)
		}
		for _, run := range runs {
			path := filepath.Join(dir, run.Name())
			if err := os.RemoveAll(path); err != nil {
				failed = joinErrors(failed, err)
				continue
			}
			swept.removed("working files", path)
		}
	}
	return failed
}

func (op *operation) removeLinks(_ context.Context, entries []ledger.Entry, swept *Swept) error {
	var failed error
	for _, e := range entries {
		if e.Kind != kindLink || !exists(e.Attrs["path"]) {
			continue
		}
		if err := removeLink(e.Attrs["path"], e.Attrs["to"]); err != nil {
			failed = joinErrors(failed, err)
			continue
		}
		swept.removed("link", e.Attrs["path"])
	}
	return failed
}

// removePartials removes what of a dump there was. It lies where the user wanted the dump,
// so only what has our suffix goes.
func (op *operation) removePartials(_ context.Context, entries []ledger.Entry, swept *Swept) error {
	var failed error
	for _, e := range entries {
		path := e.Attrs["path"]
		if e.Kind != kindPartial || !strings.HasSuffix(path, partialSuffix) || !exists(path) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			failed = joinErrors(failed, err)
			continue
		}
		swept.removed("unfinished dump", path)
	}
	return failed
}

// sweepPatience is how long a sweep waits for one process to end. One that hangs on a dead
// disk for longer would keep every later operation waiting behind this one.
const sweepPatience = 2 * time.Minute

// waitForExit waits until the volume command noted with an entry has ended.
func waitForExit(ctx context.Context, e ledger.Entry) error {
	pid, _ := e.Process()
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	if err := waitUntil(ctx, func() bool { _, alive := e.Process(); return !alive }); err != nil {
		return &respaldo.Error{Kind: respaldo.Leftovers,
			What: fmt.Sprintf("the volume command with process ID %d is still running", pid),
			Hint: "do not kill it: it may have the volume suspended; run respaldo cleanup again when it has ended",
			Err:  err}
	}
	return nil
}

// waitUntil returns when the condition holds or the context ends.
func waitUntil(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

func removeEmptyDirs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if removeErr := os.Remove(filepath.Join(dir, e.Name())); removeErr != nil {
			err = joinErrors(err, removeErr)
		}
	}
	return err
}

// joinErrors is errors.Join that leaves a single error as it is, so that its kind decides.
func joinErrors(a, b error) error {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	return errors.Join(a, b)
}
