// Package volume finds the volume that a path lies on and takes, mounts, watches and
// removes snapshots of it: LVM thick, LVM thin and Btrfs behind one small interface.
//
// What a snapshot is for and whose it is stands in the system itself: in LVM tags, or
// in a file beside a Btrfs snapshot. So leftovers are found when every file of ours is
// gone, and what does not say that it is ours is never removed.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// DefaultStateDir is where a System keeps its own short-lived mounts.
const DefaultStateDir = "/run/respaldo"

// ErrNoRoom is in the chain of every error that says that the storage behind a
// snapshot has no free space left.
var ErrNoRoom = errors.New("no room for the snapshot")

// ErrSuspendedAgain is in the chain when a snapshot was discarded because its volume was
// suspended more than once meanwhile; the next one of the same Volume will bear that.
var ErrSuspendedAgain = errors.New("the volume was suspended again")

// System is the machine's storage. Most of what it does needs root. Safe for
// concurrent use.
type System struct {
	Run run.Runner
	Log *slog.Logger // nil is silent
	// StateDir is for mounts that live for the length of one call. Empty is DefaultStateDir.
	StateDir string
	// LVMConfig, when set, is passed to every LVM command as --config.
	LVMConfig string
	// BusyFor is how long an unmount or a removal of something busy is tried again; 0 is
	// five seconds.
	BusyFor time.Duration

	sysfs string // "/sys" unless a test says otherwise
}

// Volume is one origin that can be snapshotted.
type Volume interface {
	Describe() respaldo.Volume
	// Space asks anew what room there is for snapshots.
	Space(ctx context.Context) (Space, error)
	// Prepare does all that can be done before a lock is taken. It refuses a name that
	// is taken or not legal, a group without room (ErrNoRoom) and a pool or filesystem
	// that is already fuller than a snapshot may make it.
	Prepare(ctx context.Context, r Request) (Pending, error)
	// Refusal is the error about room that Prepare would return now, nil if none. It
	// changes nothing.
	Refusal(ctx context.Context, r Request) error
	// Snapshots lists ours of this volume, clones included, oldest first.
	Snapshots(ctx context.Context) ([]Snapshot, error)
}

// Space is the room that a volume has for snapshots.
type Space struct {
	Origin int64 `json:"origin"` // bytes of the volume (Btrfs: of the filesystem)
	// Free is what snapshots can still grow into: free bytes of the volume group (thick),
	// of the pool's data (thin), unallocated or unused (Btrfs).
	Free int64 `json:"free"`
	// Fill is the pool's or the Btrfs filesystem's; zero for a thick volume.
	Fill respaldo.Fill `json:"fill"`
	// Suggested is the copy-on-write size that Prepare would choose; 0 unless thick.
	Suggested int64 `json:"suggested,omitempty"`
	// Pause is how long taking a snapshot is expected to stop writers: a guess from how
	// long this machine's volume commands take, until a measured value is at hand.
	Pause time.Duration `json:"-"`
}

// Request asks for a snapshot. An empty Name is chosen by NewName.
type Request struct {
	Name    string
	Server  string
	Run     string
	Bytes   int64 // thick: the copy-on-write size; 0 chooses one from the free space
	Kept    bool
	Expires time.Time // zero is never
	// PoolData and PoolMetadata are the fills of a thin pool, as fractions of one, at
	// which the snapshot will be given up: a pool that is there already is refused. 0 is
	// a little below Watch's own limits.
	PoolData, PoolMetadata float64
	// Started, if set, is called with the process ID of the command that takes the snapshot
	// as soon as it runs: whoever cleans up after us waits for it. Btrfs has no such process.
	Started func(pid int)
}

// Pending is a snapshot about to be taken: Ready (again, where the lock comes too late), Take
// and Finish, in this order. After an error, or when it is not taken at all, Cancel is due.
type Pending interface {
	// Describe is complete but for Created.
	Describe() respaldo.Snapshot
	// Bytes is the chosen copy-on-write size; 0 unless thick.
	Bytes() int64
	// Ready starts what takes the snapshot, as far as it can be held: it comes right before
	// the lock. Between it and Finish, for seconds at most, LVM commands that concern
	// the same volume group wait, our own as well. Take does it if it was not called.
	Ready(ctx context.Context) error
	// Take returns when the instant of the snapshot has passed: writers need be held no
	// longer. What makes the snapshot is one command (Btrfs: one system call) that nothing
	// interrupts; when the context ends, Take does not wait for it.
	Take(ctx context.Context) error
	// Finish waits for that command and returns the snapshot, which is none if it failed. It
	// must be called after Ready or Take, whatever became of them, and lets go of all that
	// they hold; without a successful Take it returns neither a snapshot nor an error.
	Finish() (Snapshot, error)
	// Pause is how long the volume itself was suspended by a snapshot that is finished; 0 if
	// that was not seen. For Btrfs it is how long the system call took: a transaction's
	// commit, during which most writers go on.
	Pause() time.Duration
	// Cancel removes what Prepare, or a Take that failed, has left. After a successful
	// Take and Finish it does nothing. Idempotent.
	Cancel(ctx context.Context) error
}

// Snapshot is a snapshot of ours that exists, or did when it was found.
type Snapshot interface {
	Describe() respaldo.Snapshot
	// Mount shows the snapshot's filesystem at dir, which is created. A journal left by
	// the origin is replayed into the snapshot, read-only mount or not, so what is
	// read is what the origin's filesystem said. A read-only Btrfs snapshot cannot be
	// mounted writable: take a Clone.
	Mount(ctx context.Context, dir string, writable bool) error
	// Unmount undoes Mount and removes the empty dir. When something keeps it busy for
	// some seconds, the error says what. Idempotent.
	Unmount(ctx context.Context, dir string) error
	// Fill asks the kernel, never the files: those of an overflowed snapshot may still
	// be answered from the cache. A snapshot that is gone is not Valid.
	Fill(ctx context.Context) (respaldo.Fill, error)
	// Extend grows a thick snapshot by half while the group has room, else ErrNoRoom.
	// The other kinds share their storage with the origin: always ErrNoRoom.
	Extend(ctx context.Context) error
	// Remove refuses what has not our tag, and what is still mounted, naming who holds
	// it. Idempotent: a snapshot that is gone is no error.
	Remove(ctx context.Context) error
}

// Cloner is what thin and Btrfs snapshots also are.
type Cloner interface {
	// Clone takes a writable snapshot of the snapshot, itself unchanged by whatever
	// happens to the clone. It may be removed before or after it.
	Clone(ctx context.Context, r Request) (Snapshot, error)
}

// Settle writes a filesystem's dirty pages out (syncfs), so that the flush inside the
// snapshot, under the lock, has little left to do. Blocks for as long as that takes.
func Settle(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", path, err)
	}
	return nil
}

func (s *System) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *System) stateDir() string {
	if s.StateDir == "" {
		return DefaultStateDir
	}
	return s.StateDir
}

func (s *System) sys() string {
	if s.sysfs == "" {
		return "/sys"
	}
	return s.sysfs
}
