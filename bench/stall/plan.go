// Package stall measures how long a backup holds a server's writers: a steady load on a real
// server, whose every commit is timed, while one contender after another takes its snapshot
// on the same volume. It runs as root, in a guest of the lab or on a machine with Btrfs.
package stall

import (
	"path/filepath"
	"time"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Names of contenders.
const (
	None    = "no backup"
	Look    = "respaldo check" // takes nothing, but is a program that runs
	Auto    = "respaldo"
	Global  = "respaldo --lock=global"
	Mylvm   = "mylvmbackup"
	Classic = "classic script"
)

// Slice is how long one count of Trial.Counts goes on, a plot's bar; Lead how long before the
// contender's start the counts begin.
const (
	Slice = 10 * time.Millisecond
	Lead  = 500 * time.Millisecond
)

// Peers is where mylvmbackup and Btrfs's programs are, with all that they need of Release; a
// guest sees it, too.
func Peers() string { return filepath.Join(servers.Cache(), "bench", "mylvmbackup-"+Release) }

// Release is Debian's that the guest is made of, too: one machine has one Perl.
const Release = "bookworm"

// Plan says what to measure. It travels to whoever measures as JSON.
type Plan struct {
	Server string   // one of servers.Names
	Kinds  []string // of volume, as guest.Kinds; Btrfs alone outside a guest
	Rounds int
	// Connections commit a transaction each in every Pace.
	Connections int
	Pace        time.Duration
	Window      time.Duration // watched from a contender's start on; longer if it takes longer
	// Read, if set, is how long a SELECT goes on that starts right before each contender.
	Read time.Duration
	// Folder, if set, is one on this very machine: measured is Btrfs in a file there, not a guest.
	Folder   string
	Respaldo string // the program
	Results  string // file that Results is written to
}

// Results is what one machine measured.
type Results struct {
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
	Trials   []Trial           `json:"trials"`
}

// Trial is what one contender did to the load, once. Times are in seconds.
type Trial struct {
	Kind      string `json:"kind"`
	Contender string `json:"contender"`
	Round     int    `json:"round"`
	// Took is how long the contender ran. Gap is the longest time without any commit, Latency
	// the 99.9th percentile of all transactions, from when each was due, and Commits their
	// number, from the contender's start for Window.
	Took    float64 `json:"took_seconds"`
	Window  float64 `json:"window_seconds"`
	Gap     float64 `json:"gap_seconds"`
	GapAt   float64 `json:"gap_at_seconds"` // when it began, from the contender's start on
	Latency float64 `json:"p999_seconds"`
	Commits int     `json:"commits"`
	// Waited for the lock, and Held it: by the contender's own account, or the server's clock
	// before and after the statements.
	Waited float64 `json:"lock_waited_seconds"`
	Held   float64 `json:"lock_held_seconds"`
	Lock   string  `json:"lock,omitempty"` // which it was
	// Pause is the longest write of one byte to the volume, from the call to its return,
	// without any database: while LVM or Btrfs holds the filesystem, it does not return.
	Pause float64 `json:"pause_seconds"`
	// Suspended is for how long the volume was suspended by respaldo's own account, which sees
	// it where Pause is longer because the probe, too, had to wait for a processor; on Btrfs it
	// is the time of the system call. 0: not seen.
	Suspended float64 `json:"suspended_seconds,omitempty"`
	// Counts are the commits in each Slice, from Lead before the contender's start on.
	Counts []int  `json:"counts,omitempty"`
	Failed string `json:"failed,omitempty"` // why it took no snapshot
}
