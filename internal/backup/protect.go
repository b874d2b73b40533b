package backup

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
)

// refuseOurs refuses a target that would take respaldo's own files with it: to replace what
// a directory holds is to remove it first, and in it may lie the very repository that the
// backup is read from.
func (s *Site) refuseOurs(target, folder, cache string) error {
	for _, ours := range []struct{ what, dir string }{
		{"the repository", folder},
		{"the repository's cache", cache},
		{"the state directory", s.StateDir},
		{"the runtime directory", s.RunDir},
	} {
		if ours.dir != "" && (within(target, ours.dir) || within(ours.dir, target)) {
			return &respaldo.Error{Kind: respaldo.Refused,
				What: fmt.Sprintf("%s and %s (%s) are one directory, or one lies in the other", target, ours.what, ours.dir),
				Hint: "restore into a directory that has nothing else in it"}
		}
	}
	return nil
}

// within tells whether a path is a directory or lies in it. Links are resolved as far as
// the path exists, and directories are compared as what they are: a bind mount gives one
// two names.
func within(path, dir string) bool {
	dir = resolved(dir)
	this, thisErr := os.Stat(dir)
	for at := resolved(path); ; at = filepath.Dir(at) {
		if at == dir {
			return true
		}
		if info, err := os.Stat(at); err == nil && thisErr == nil && os.SameFile(info, this) {
			return true
		}
		if at == filepath.Dir(at) {
			return false
		}
	}
}

// resolved is a path without symbolic links, as far as it exists.
func resolved(path string) string {
	path = filepath.Clean(path)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(resolved(parent), filepath.Base(path))
	}
	return path
}
