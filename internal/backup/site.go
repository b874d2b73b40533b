// Package backup tells the stories: how a backup is made, proved and brought back, in
// the words of the root package. It knows the order of things and what must be undone;
// how each thing is done is the business of mysql, volume and repo.
package backup

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// Reporter is told how a story goes. Its methods must return at once: some are called
// between quiesce and release, where every millisecond is a writer's.
type Reporter interface {
	Step(name, detail string) // something is done
	Progress(respaldo.Progress)
	Warn(message string)
}

// Site is one server on this machine and what its stories need. It holds no resource;
// one Site may tell several stories, one after the other.
type Site struct {
	Server   string // name in the configuration
	ServerID string // ours, kept in StateDir
	Host     string
	Program  string // respaldo's version, for the manifest

	MySQL  mysql.Options
	Binary []string // how to start the server program; empty: as the running one was
	// Service is how the server itself is stopped and started; empty: by its systemd unit.
	Service host.Commands
	// Several tells that the configuration has other servers, too: a unit of a usual name may
	// be any one's.
	Several bool

	StateDir string // survives a reboot: ledger, kept snapshots' manifests, working copies
	RunDir   string // does not: mounts, sockets

	// Repository opens the repository. It is called when a story first needs it, before
	// anything is acquired, so that a wrong password costs no snapshot.
	Repository func(ctx context.Context) (*repo.Repo, error)
	// Folder is the repository's directory where it is on this machine, and CacheDir where
	// all repositories keep something at hand: no restore replaces either.
	Folder, CacheDir string

	Lock          respaldo.LockMode
	MaxLock       time.Duration // waiting and holding together, of each try
	Patience      time.Duration // of all tries to have the lock; 0: defaultPatience
	KillBlockers  bool          // end long reads that stand in the way of the lock
	SnapshotBytes int64         // thick LVM; 0: chosen from the free space
	Prove         respaldo.ProveLevel
	Keep          repo.Policy
	KeepSnapshots repo.Policy // of snapshots that stay without a time of their own; zero keeps all
	// PoolData and PoolMetadata are the fills of a thin pool, as fractions of one, at which
	// a snapshot is given up. 0: the defaults.
	PoolData, PoolMetadata float64
	LVMConfig              string

	Hooks Hooks

	Run    run.Runner
	Log    *slog.Logger
	Report Reporter
	// Redact replaces secrets in what is written down or handed to others; nil: nothing does.
	Redact func(string) string
}

func (s *Site) volumes() *volume.System {
	return &volume.System{Run: s.Run, Log: s.Log, StateDir: filepath.Join(s.RunDir, "volumes"), LVMConfig: s.LVMConfig}
}

// operation is one story under way: the ledger it has open, and the helpers that acquire
// things through it. Whatever an operation acquires is released by close, in reverse.
type operation struct {
	*Site
	// scope is the name under which the operation holds things: the server's, or that of a
	// side of it (side.go).
	scope   string
	volumes *volume.System
	ledger  *ledger.Ledger
	seen    []volume.Snapshot // all of ours on this machine, when the operation swept
}

// begin excludes other operations on this server, then sweeps what a dead run left. What
// cannot be removed stops it only if it stands in the way.
func (s *Site) begin(ctx context.Context, name string) (*operation, error) {
	op, err := s.open(name)
	if err != nil {
		return nil, err
	}
	swept, err := op.sweepAll(ctx)
	s.reportSwept(swept)
	if name != "prepare" {
		s.warnOfPreparation()
	}
	if err != nil && !swept.Harmless {
		op.ledger.Close()
		return nil, err
	}
	if err != nil { // a shell in an old mount is no reason to have no backup tonight
		s.Report.Warn(err.Error() + "; see respaldo cleanup")
	}
	return op, nil
}

func (s *Site) reportSwept(swept Swept) {
	if left := swept.summary(); left != "" {
		s.Report.Warn("an earlier operation had ended abruptly; cleaned up " + left)
	}
	for _, line := range swept.Rollbacks {
		s.Report.Warn(line)
	}
	for _, dir := range swept.Incomplete {
		s.Report.Warn(dir + " holds an incomplete restore: run that again, or delete the directory")
	}
}

// open excludes other operations on this server, and leaves leftovers where they are.
func (s *Site) open(name string) (*operation, error) {
	l, err := ledger.Open(s.StateDir, s.Server, name, s.RunDir)
	if err != nil {
		return nil, err
	}
	return &operation{Site: s, scope: s.Server, volumes: s.volumes(), ledger: l}, nil
}

// close releases whatever the operation still holds and joins what went wrong with err.
// What cannot be released stays in the ledger for the next sweep, and is named.
func (op *operation) close(ctx context.Context, err *error) {
	if failed := op.ledger.ReleaseAll(ctx); failed != nil {
		// First, so that it decides the exit code: "interrupted" would mean that nothing is left.
		*err = joinErrors(&respaldo.Error{Kind: respaldo.Leftovers, What: "could not release everything",
			Hint: "see what holds it, then run: respaldo cleanup --server " + op.Server, Err: failed}, *err)
	}
	op.leave()
	if failed := op.ledger.Close(); failed != nil {
		*err = joinErrors(*err, failed)
	}
}

// workDir is where this server's private files lie for the length of a run. Working
// copies (binlog tails) can be large, so it is not in RunDir, which may be memory.
func (op *operation) workDir() string { return filepath.Join(op.StateDir, "work", op.scope) }

// socketDir is for private servers' sockets, whose paths have at most 107 bytes (unix(7)):
// RunDir is short, wherever StateDir may be.
func (op *operation) socketDir() string { return filepath.Join(op.RunDir, "work", op.scope) }

// mountDir holds this server's mounts.
func (op *operation) mountDir() string { return filepath.Join(op.RunDir, "mounts", op.scope) }

// scratch makes a private directory in workDir or socketDir that is removed when the
// operation ends.
func (op *operation) scratch(ctx context.Context, in, name string) (string, error) {
	dir, _, err := op.heldScratch(ctx, in, name)
	return dir, err
}

// inScratch makes one for the length of a call, so that the next of its name is empty.
func (op *operation) inScratch(ctx context.Context, in, name string, use func(dir string) error) error {
	dir, held, err := op.heldScratch(ctx, in, name)
	if err != nil {
		return err
	}
	return joinErrors(use(dir), held.Release(ctx))
}

func (op *operation) heldScratch(ctx context.Context, in, name string) (string, *ledger.Held, error) {
	dir := filepath.Join(in, op.ledger.Run(), name)
	held, err := op.ledger.Acquire(ctx, kindScratch, map[string]string{"path": dir},
		func(*ledger.Held) error { return os.MkdirAll(dir, 0o700) },
		func(context.Context) error { return removeScratch(dir) })
	return dir, held, err
}

// mount opens a snapshot at a directory of our own, until the operation ends or the
// returned mount is released.
func (op *operation) mount(ctx context.Context, s volume.Snapshot, name string, writable bool) (string, *ledger.Held, error) {
	dir := filepath.Join(op.mountDir(), op.ledger.Run()+"-"+name)
	held, err := op.ledger.Acquire(ctx, kindMount, map[string]string{"path": dir, "snapshot": s.Describe().Name},
		func(*ledger.Held) error { return s.Mount(ctx, dir, writable) },
		func(ctx context.Context) error { return op.unmount(ctx, dir) })
	return dir, held, err
}

// unmount takes our mount away if it is there, and its directory.
func (op *operation) unmount(ctx context.Context, dir string) error {
	if err := op.volumes.Unmount(ctx, dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// midway reports progress, and is a step of its own when the first bytes are on their way.
func (op *operation) midway(step string) func(respaldo.Progress) {
	var once sync.Once
	return func(p respaldo.Progress) {
		if p.Done > 0 {
			once.Do(func() { ledger.Point(step) })
		}
		op.Report.Progress(p)
	}
}

// removeScratch deletes a working directory and, when it was the last one of its run,
// the run's directory.
func removeScratch(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	os.Remove(filepath.Dir(dir)) // stays while another one is in it
	return nil
}

// binary is what starts a private server: what the configuration names, or what ran the
// origin.
func (s *Site) binary(m respaldo.Manifest) respaldo.Binary {
	if len(s.Binary) > 0 {
		return respaldo.Binary{Argv: s.Binary}
	}
	return m.Binary
}

// closeRepo closes the repository and joins a failure to err.
func closeRepo(ctx context.Context, r *repo.Repo, err *error) {
	if failed := r.Close(context.WithoutCancel(ctx)); failed != nil {
		*err = joinErrors(*err, failed)
	}
}
