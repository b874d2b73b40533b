package ledger

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo"
)

// A scope is what a ledger is of: a server, for what one operation at a time may do, or a
// side of it, "SERVER.serve-3f9a", for an operation of hours that is in nobody's way. A
// server's name has no dot, so the two cannot be confused.
const scopeDot = "."

// OpenSide opens a ledger of its own for an operation beside the others on the server. It
// excludes nobody. Its files go with it, unless something is left.
func OpenSide(dir, server, operation string, also ...string) (*Ledger, error) {
	for {
		l, err := Open(dir, server+scopeDot+operation+"-"+randomHex(2), operation, also...)
		if respaldo.KindOf(err) != respaldo.Busy {
			return l, err
		}
		// The name is taken, or somebody has just looked whether anybody lives there.
	}
}

// serverOf is the server that a scope belongs to, and whether it is a side of it.
func serverOf(scope string) (server string, side bool) {
	server, _, side = strings.Cut(scope, scopeDot)
	return server, side
}

// SideOf tells that a scope is one of the server's sides.
func SideOf(scope, server string) bool {
	of, side := serverOf(scope)
	return side && of == server
}

// Sides lists the sides of a server that have files in the directories, of the living and
// of the dead.
func Sides(server string, dirs ...string) ([]string, error) {
	var scopes []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			suffix := filepath.Ext(e.Name())
			scope := strings.TrimSuffix(e.Name(), suffix)
			if (suffix == ".ledger" || suffix == ".lock" || suffix == ".running") && SideOf(scope, server) {
				scopes = append(scopes, scope)
			}
		}
	}
	slices.Sort(scopes)
	return slices.Compact(scopes), nil
}

// Living tells whether an operation has the scope's ledger in dir open now.
func Living(dir, scope string) bool {
	file, err := os.Open(filepath.Join(dir, scope+".lock"))
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}
