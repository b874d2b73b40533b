// Package host knows the machine around a server: who starts and stops it, where its
// filesystem is mounted at boot, which option files it reads, what confines it.
package host

import (
	"log/slog"

	"github.com/respaldo-backup/respaldo/internal/run"
)

// Host is this machine. Most of what it does needs root. Safe for concurrent use.
type Host struct {
	Run run.Runner
	Log *slog.Logger // nil is silent
	// Root is "/" unless a test says otherwise: what is read and written lies below it.
	Root string
}
