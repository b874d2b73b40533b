package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

// ours begins every file that WriteOwn writes: what lacks it is somebody else's.
const ours = "# Written by respaldo prepare; respaldo prepare --undo removes it.\n"

// WriteOwn writes a file of ours among those of the administrator, and returns when it is
// on disk. A file of that name that is not ours is refused.
func (h *Host) WriteOwn(path, text string) error {
	at := h.path(path)
	was, err := os.ReadFile(at)
	switch {
	case err == nil && !strings.HasPrefix(string(was), ours):
		return &respaldo.Error{Kind: respaldo.Refused, What: path + " exists and is not respaldo's", Hint: "move it out of the way"}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	return disk.Rewrite(at, []byte(ours+text), 0o644)
}

// RemoveOwn removes a file that WriteOwn wrote; one that is gone, or has become somebody
// else's, stays as it is.
func (h *Host) RemoveOwn(path string) error {
	at := h.path(path)
	was, err := os.ReadFile(at)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.HasPrefix(string(was), ours) {
		return nil
	}
	if err == nil {
		err = os.Remove(at)
	}
	if err != nil {
		return err
	}
	if dir := filepath.Dir(at); strings.HasSuffix(dir, ".service.d") && os.Remove(dir) == nil { // it was made for it, if it is empty
		return disk.Sync(filepath.Dir(dir))
	}
	return disk.Sync(filepath.Dir(at))
}

// keepCopy copies a file beside itself before it is changed for the first time, so that the
// copy is what the administrator had.
func keepCopy(path string) error {
	copied := path + ".before-respaldo"
	if _, err := os.Lstat(copied); err == nil {
		return nil
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return disk.Rewrite(copied, content, info.Mode().Perm())
}

// block is text of ours inside a file of somebody else's.
func blockOf(name, text string) string {
	return fmt.Sprintf("# respaldo prepare: %s\n%s# respaldo prepare: end\n", name, text)
}

// addBlock appends a block of ours to a file; one of that name is replaced.
func addBlock(path, name, text string) error {
	was, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	rest, _ := withoutBlock(was, name)
	if len(rest) > 0 && !bytes.HasSuffix(rest, []byte("\n")) {
		rest = append(rest, '\n')
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return disk.Rewrite(path, append(rest, blockOf(name, text)...), 0o644)
}

// removeBlock takes it out again; the rest of the file stays as it is.
func removeBlock(path, name string) error {
	was, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	rest, found := withoutBlock(was, name)
	if !found {
		return nil
	}
	return disk.Rewrite(path, rest, 0o644)
}

func withoutBlock(text []byte, name string) (rest []byte, found bool) {
	inside := false
	for line := range bytes.Lines(text) {
		switch trimmed := strings.TrimSpace(string(line)); {
		case trimmed == "# respaldo prepare: "+name:
			inside, found = true, true
		case inside && trimmed == "# respaldo prepare: end":
			inside = false
		case !inside:
			rest = append(rest, line...)
		}
	}
	return rest, found
}
