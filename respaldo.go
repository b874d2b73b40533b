package respaldo

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Flavor is the family of a server: which dialect of SQL and which file formats.
type Flavor string

const (
	MySQL   Flavor = "mysql"
	MariaDB Flavor = "mariadb"
)

// Version is a server's flavor and release. Text is what @@version says, suffixes
// included ("10.11.14-MariaDB-0+deb12u2-log").
type Version struct {
	Flavor Flavor `json:"flavor"`
	Major  int    `json:"major"`
	Minor  int    `json:"minor"`
	Patch  int    `json:"patch"`
	Text   string `json:"text"`
}

// ParseVersion reads @@version and @@version_comment. MariaDB names itself in
// @@version; some builds prefix it with "5.5.5-" for old replication clients.
func ParseVersion(version, comment string) (Version, error) {
	v := Version{Flavor: MySQL, Text: version}
	if strings.Contains(strings.ToLower(version+" "+comment), "mariadb") {
		v.Flavor = MariaDB
	}
	numbers := strings.TrimPrefix(version, "5.5.5-")
	numbers, _, _ = strings.Cut(numbers, "-")
	parts := strings.SplitN(numbers, ".", 3)
	if len(parts) < 2 {
		return v, fmt.Errorf("cannot read server version %q", version)
	}
	var err error
	if v.Major, err = strconv.Atoi(parts[0]); err != nil {
		return v, fmt.Errorf("cannot read server version %q", version)
	}
	if v.Minor, err = strconv.Atoi(parts[1]); err != nil {
		return v, fmt.Errorf("cannot read server version %q", version)
	}
	if len(parts) == 3 {
		patch := parts[2]
		if i := strings.IndexFunc(patch, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			patch = patch[:i]
		}
		v.Patch, _ = strconv.Atoi(patch)
	}
	return v, nil
}

// AtLeast reports whether the server is of this flavor and of this release or a later one.
func (v Version) AtLeast(flavor Flavor, major, minor, patch int) bool {
	if v.Flavor != flavor {
		return false
	}
	if v.Major != major {
		return v.Major > major
	}
	if v.Minor != minor {
		return v.Minor > minor
	}
	return v.Patch >= patch
}

// String is short and for people: "MariaDB 10.11.14".
func (v Version) String() string {
	name := "MySQL"
	if v.Flavor == MariaDB {
		name = "MariaDB"
	}
	return fmt.Sprintf("%s %d.%d.%d", name, v.Major, v.Minor, v.Patch)
}

// Role says what a place holds.
type Role string

const (
	DataRole        Role = "data"
	RedoRole        Role = "redo"
	UndoRole        Role = "undo"
	DoublewriteRole Role = "doublewrite"
	SystemRole      Role = "system-tablespace" // innodb_data_home_dir and innodb_data_file_path
	BinlogRole      Role = "binlog"
	RelayLogRole    Role = "relay-log"
	AriaLogRole     Role = "aria-log"
	KeyringRole     Role = "keyring"
	TablespaceRole  Role = "tablespace"    // general tablespaces and DATA DIRECTORY
	DatabaseRole    Role = "database-link" // a database directory that is a symlink
	SecureFileRole  Role = "secure-file-priv"
	OptionFileRole  Role = "option-file"
)

// Place is one file or directory that belongs to a server. Path is absolute and as
// the server names it, links not resolved; Real is where it ends after resolving.
// Inside tells that Real lies below the data directory's Real, so that whoever
// copies the data directory has it already.
type Place struct {
	Role   Role   `json:"role"`
	Path   string `json:"path"`
	Real   string `json:"real"`
	Inside bool   `json:"inside,omitempty"`
	// Stored is where the place lies inside a backup, relative to its root; empty
	// while the place is part of another (Inside) or not saved.
	Stored string `json:"stored,omitempty"`
}

// Layout is where a server's files lie. The first place is the data directory.
type Layout struct {
	DataDir string  `json:"data_dir"`
	Places  []Place `json:"places"`
}

// Of returns the places of one role, in the layout's order.
func (l Layout) Of(role Role) []Place {
	var found []Place
	for _, p := range l.Places {
		if p.Role == role {
			found = append(found, p)
		}
	}
	return found
}

// Coordinates name one moment in a server's binlog. A server without binlogs has
// none: File is empty then.
type Coordinates struct {
	File     string `json:"file,omitempty"`
	Position uint64 `json:"position,omitempty"`
	// GTIDSet is gtid_executed on MySQL, gtid_binlog_pos on MariaDB; newlines removed.
	GTIDSet string `json:"gtid_set,omitempty"`
	// Upstream is set when the server is itself a replica, one per channel.
	Upstream []Upstream `json:"upstream,omitempty"`
}

// Upstream is how far a replica had applied its source.
type Upstream struct {
	Channel  string `json:"channel,omitempty"`
	Host     string `json:"host"`
	Port     int    `json:"port"`
	File     string `json:"file"`
	Position uint64 `json:"position"` // of the last event applied, in the source's file
	GTIDSet  string `json:"gtid_set,omitempty"`
}

// String is "binlog.000007:4711", or "none" where the server keeps no binlog.
func (c Coordinates) String() string {
	if c.File == "" {
		return "none"
	}
	return c.File + ":" + strconv.FormatUint(c.Position, 10)
}

// VolumeKind is how a volume makes snapshots.
type VolumeKind string

const (
	LVMThick VolumeKind = "lvm-thick"
	LVMThin  VolumeKind = "lvm-thin"
	Btrfs    VolumeKind = "btrfs"
)

// Volume describes the storage under a layout.
type Volume struct {
	Kind       VolumeKind `json:"kind"`
	Name       string     `json:"name"`   // "vg/lv", or for Btrfs the subvolume's path from the top of its filesystem
	ID         string     `json:"id"`     // LV UUID, or filesystem UUID and subvolume UUID
	Device     string     `json:"device"` // block device that is mounted
	FSType     string     `json:"fs_type"`
	FSUUID     string     `json:"fs_uuid,omitempty"`
	MountPoint string     `json:"mount_point"`
	Bytes      int64      `json:"bytes"` // size of the volume (Btrfs: of the filesystem)
}

// Snapshot describes a copy-on-write volume taken at one instant and tagged as ours.
type Snapshot struct {
	Name    string     `json:"name"` // unique; what the user types
	Server  string     `json:"server"`
	Run     string     `json:"run"` // ID of the operation that took it
	Kind    VolumeKind `json:"kind"`
	Volume  string     `json:"volume"` // the origin's Volume.Name
	Path    string     `json:"path"`   // its device, or for Btrfs its directory
	Created time.Time  `json:"created"`
	// Kept snapshots survive their operation and are left alone by cleanup.
	Kept    bool      `json:"kept"`
	Expires time.Time `json:"expires,omitzero"`
}

// Fill is how full the storage behind a snapshot is, as fractions of one. An invalid
// snapshot holds garbage, however full it says it is.
type Fill struct {
	Data     float64 `json:"data"`
	Metadata float64 `json:"metadata,omitempty"` // thin pools and Btrfs only
	Valid    bool    `json:"valid"`
}

// LockMode is how a server is quiesced around a snapshot, from lightest to strictest.
type LockMode string

const (
	LockNone   LockMode = "none"   // nothing that blocks a commit
	LockBackup LockMode = "backup" // BACKUP STAGE BLOCK_COMMIT
	LockGlobal LockMode = "global" // FLUSH TABLES WITH READ LOCK
	LockAuto   LockMode = "auto"   // whichever of the others is the lightest that is safe
)

// Quiesced is what a lock cost and where the server stood under it.
type Quiesced struct {
	Mode   LockMode `json:"mode"`
	Reason string   `json:"reason"` // why this mode, for people
	// WaitedSeconds passed from asking for the lock to having it, HeldSeconds from
	// having it to its release, both by our clock.
	WaitedSeconds float64 `json:"waited_seconds"`
	HeldSeconds   float64 `json:"held_seconds"`
	// StalledSeconds is how long writers were really held: the longest time around the
	// snapshot in which nothing was committed, as seen from outside. UsualSeconds is the
	// longest such time right before it. Both are 0 when nobody wrote, and Stall says why
	// or how it was measured.
	StalledSeconds float64 `json:"stalled_seconds,omitempty"`
	UsualSeconds   float64 `json:"usual_seconds,omitempty"`
	Stall          string  `json:"stall,omitempty"`
	// PauseSeconds is the volume's own part: how long its snapshot suspended it. 0: not seen.
	PauseSeconds float64 `json:"pause_seconds,omitempty"`
	// Tries is how often it was tried; more than one when a lock was not to be had, or
	// a statement crossed a snapshot that was taken without one.
	Tries int       `json:"tries,omitempty"`
	At    time.Time `json:"at"` // the instant of the snapshot
	// Coordinates were read under the lock; or, FromImage, in the image, since without a
	// lock nothing stood still.
	Coordinates Coordinates `json:"coordinates"`
	FromImage   bool        `json:"coordinates_from_image,omitempty"`
}

// ProveLevel is how thoroughly an image is proved.
type ProveLevel string

const (
	ProveNone  ProveLevel = "none"
	ProveQuick ProveLevel = "quick" // starts, recovers, CHECK TABLE on system tables and a sample
	ProveFull  ProveLevel = "full"  // CHECK TABLE on every table
)

// Proof is what starting an image showed. A zero Proof is an unproved image.
type Proof struct {
	Level           ProveLevel  `json:"level"`
	OK              bool        `json:"ok"`
	At              time.Time   `json:"at,omitzero"`
	RecoverySeconds float64     `json:"recovery_seconds"` // from start to accepting connections
	Tables          int         `json:"tables"`           // checked
	TablesTotal     int         `json:"tables_total"`
	Coordinates     Coordinates `json:"coordinates"` // as the recovered instance states them
	Problems        []string    `json:"problems,omitempty"`
	// NotChecked are tables that a private server cannot open, and why: their engine or
	// parser plugin is not among those that it loads.
	NotChecked []string `json:"not_checked,omitempty"`
}

// ManifestFormat is the number of the respaldo.json that this program writes.
// A higher one is refused, a lower one is read.
const ManifestFormat = 1

// Manifest is respaldo.json: what an image is, complete enough to bring it back when
// the origin is gone.
type Manifest struct {
	Format   int    `json:"format"`
	Program  string `json:"program"` // respaldo's own version
	Server   string `json:"server"`
	ServerID string `json:"server_id"` // ours, made when the server was first seen; MariaDB has no UUID
	Timeline string `json:"timeline"`
	// ServerUUID is server_uuid on MySQL and server_uid on MariaDB, where it has one.
	ServerUUID string    `json:"server_uuid,omitempty"`
	Host       string    `json:"host"`
	Taken      time.Time `json:"taken"`
	Version    Version   `json:"version"`
	Layout     Layout    `json:"layout"`
	Volume     Volume    `json:"volume"`
	Quiesced   Quiesced  `json:"quiesced"`
	Proof      Proof     `json:"proof"`
	// Dump is set where this is no image but a logical dump of one. All else is the image's,
	// of whose places a dump has none.
	Dump      *Dump    `json:"dump,omitempty"`
	BinlogOn  bool     `json:"binlog_on"`
	Encrypted bool     `json:"encrypted"` // some of its tables are; the keyring is among the places
	Lost      []string `json:"lost,omitempty"`
	// Variables are all global variables, passwords among them as "***". On the day of the
	// restore there is nobody left to ask.
	Variables map[string]string `json:"variables"`
	// Program that ran the server: argv up to the first option, and the environment
	// that its loader needs (LD_PRELOAD, LD_LIBRARY_PATH).
	Binary Binary `json:"binary"`
}

// Unconfirmed tells that the coordinates were read in the image, no lock having been taken,
// and that no server was started on it which could have said otherwise.
func (m Manifest) Unconfirmed() bool {
	return m.Quiesced.FromImage && m.Quiesced.Coordinates.File != "" && !m.Proof.OK
}

// Dump describes a logical dump.
type Dump struct {
	Image     string   `json:"image"` // what it was dumped from, for people
	Tool      string   `json:"tool"`  // "mariadb-dump 10.11.14"
	Databases []string `json:"databases,omitempty"`
	Tables    []string `json:"tables,omitempty"` // neither: all, users and grants included
	Without   []string `json:"without,omitempty"`
}

// Binary is how to start a server program: Argv without any server options.
type Binary struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
}

// Backup is one image in the repository, as list shows it.
type Backup struct {
	ID       string    `json:"id"`
	Manifest Manifest  `json:"manifest"`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	Bytes    int64     `json:"bytes"` // of the files
	Files    int       `json:"files"`
	Stored   int64     `json:"stored"` // what this backup added to the repository, compressed
	Read     int64     `json:"read"`   // bytes that had to be read to make it
	Pinned   bool      `json:"pinned,omitempty"`
}

// Progress says how far a long operation is. Total is 0 while unknown.
type Progress struct {
	Phase string
	Done  int64 // bytes
	Total int64
	Files int
	Item  string // what it is at, if that tells anybody anything: a table
}
