// Package config reads respaldo's one configuration file, strictly: an unknown key is an
// error that names its line and the key that was probably meant. docs/configuration.md
// explains every key; docs/samples are read by this package's tests.
package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// Format is the number of the file format that this program knows.
const Format = 1

// DefaultPath is read when neither --config nor RESPALDO_CONFIG names another file, and
// may be missing.
const DefaultPath = "/etc/respaldo/respaldo.toml"

// Config is what the file says, defaults filled in.
type Config struct {
	Path string // of the file that was read; empty when there is none

	StateDir string // ledgers and server IDs: must survive a reboot
	RunDir   string // private mounts, sockets of instances
	CacheDir string // what the repository keeps at hand; may be deleted at any time
	// LVMConfig is passed to every LVM command as --config; empty where lvm.conf will do.
	LVMConfig  string
	Repository Repository
	Thresholds Thresholds
	// PrometheusFile is written after every backup and status; empty is none.
	PrometheusFile string

	servers map[string]Server
}

// Repository is where backups go and how to get in. The password itself is never in the
// configuration: see Password.
type Repository struct {
	URL          string
	PasswordFile string
}

// Server is one server and how it is backed up.
type Server struct {
	Name string

	// How to reach it; what is empty is left to MySQL's own option files.
	DefaultsFile string
	Socket       string
	Host         string
	Port         int
	User         string

	Lock    respaldo.LockMode
	MaxLock time.Duration // waiting for the lock and holding it, together; of each try
	// Patience is how long a lock is waited and tried for; nobody is held meanwhile.
	Patience time.Duration
	// KillBlockers ends long reads that stand in the way of the lock.
	KillBlockers bool
	// SnapshotSize is the room for changes of a thick LVM snapshot, in bytes; 0 chooses
	// from the free space of the volume group.
	SnapshotSize int64
	Prove        respaldo.ProveLevel
	// Mysqld is the argv, without server options, that runs a private instance; empty
	// means the program that runs the server itself.
	Mysqld []string
	// Stop and Start are argvs that stop and start the server, where it is no systemd unit.
	// Both or none.
	Stop, Start []string

	// MaxAge is how old the last proved backup may be before status calls it overdue.
	MaxAge time.Duration

	Repository Repository // the server's own, or the common one
	Keep       Keep       // the server's own, or the common one
	// KeepSnapshots is the same for snapshots that stay on this machine.
	KeepSnapshots Keep
	Hooks         Hooks // the server's own, or the common ones
}

// Hooks are programs, argv each, that are run before a backup, after one that succeeded and
// after one that failed. Empty ones are not.
type Hooks struct {
	Before    []string
	After     []string
	OnFailure []string
	Timeout   time.Duration // of each
}

// Keep says how many backups prune keeps, or how many snapshots stay, as "the last of each of the last n days" and so
// on; a backup that any of them keeps stays. All zero keeps everything.
type Keep struct {
	Last    int `toml:"last"`
	Hourly  int `toml:"hourly"`
	Daily   int `toml:"daily"`
	Weekly  int `toml:"weekly"`
	Monthly int `toml:"monthly"`
}

// Thresholds are how full a thin pool may become, as fractions of one, before a snapshot
// of ours goes rather than endanger its origin.
type Thresholds struct {
	PoolData     float64
	PoolMetadata float64
	// Warn is the fill of a pool, a Btrfs filesystem or a kept snapshot that status warns of.
	Warn float64
}

// Load reads the file at path, or where path is empty the one that RESPALDO_CONFIG names,
// or DefaultPath. Only the last of these may be missing: then everything has its default,
// and there is one server, "main". Errors are of kind Usage and name the line.
func Load(path string) (*Config, error) {
	named := true
	if path == "" {
		path = os.Getenv("RESPALDO_CONFIG")
	}
	if path == "" {
		path, named = DefaultPath, false
	}
	text, err := readTrusted(path)
	switch {
	case os.IsNotExist(err) && !named:
		return parse("", nil)
	case os.IsNotExist(err):
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: "there is no configuration file " + path,
			Hint: "write one (docs/samples has some), or leave out --config and RESPALDO_CONFIG"}
	case err != nil:
		return nil, err
	}
	return parse(path, text)
}

// Server returns the settings of one server. The name may be empty where only one is
// configured.
func (c *Config) Server(name string) (Server, error) {
	names := c.Names()
	if name == "" {
		if len(names) == 1 {
			return c.servers[names[0]], nil
		}
		return Server{}, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%s configures %d servers", c.Path, len(names)),
			Hint: "say which one: --server " + strings.Join(names, " or --server ")}
	}
	if s, ok := c.servers[name]; ok {
		return s, nil
	}
	what := fmt.Sprintf("no server %q is configured", name)
	hint := fmt.Sprintf("configured in %s: %s", c.Path, strings.Join(names, ", "))
	if c.Path == "" {
		hint = fmt.Sprintf("without a configuration file there is only %q; write one with [server.%s]", DefaultServer, name)
	}
	return Server{}, &respaldo.Error{Kind: respaldo.NotFound, What: what, Hint: hint}
}

// Names are the configured servers, sorted.
func (c *Config) Names() []string {
	var names []string
	for name := range c.servers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// DefaultServer is the name of the server where none is configured.
const DefaultServer = "main"

func defaults() Config {
	c := Config{
		StateDir:   "/var/lib/respaldo", // /run does not survive a power cut, whose leftovers would be forgotten
		RunDir:     "/run/respaldo",
		CacheDir:   "/var/cache/respaldo",
		Thresholds: Thresholds{PoolData: 0.85, PoolMetadata: 0.80, Warn: 0.75},
	}
	if os.Geteuid() != 0 { // restoring and listing need no root; those folders do
		home, _ := os.UserHomeDir()
		c.StateDir = filepath.Join(fromEnv("XDG_STATE_HOME", filepath.Join(home, ".local/state")), "respaldo")
		c.CacheDir = filepath.Join(fromEnv("XDG_CACHE_HOME", filepath.Join(home, ".cache")), "respaldo")
		c.RunDir = filepath.Join(fromEnv("XDG_RUNTIME_DIR", c.StateDir), "respaldo")
	}
	return c
}

func fromEnv(name, otherwise string) string {
	if value := os.Getenv(name); filepath.IsAbs(value) {
		return value
	}
	return otherwise
}
