package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo"
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
	return replaceFile(at, []byte(ours+text), 0o644)
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
		return syncDir(filepath.Dir(dir))
	}
	return syncDir(filepath.Dir(at))
}

// replaceFile writes a file so that there is the old or the new one, whole, whenever the
// power goes. Owner and mode stay those of the old one.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	var owner *syscall.Stat_t
	if info, err := os.Stat(path); err == nil {
		mode, owner = info.Mode().Perm(), info.Sys().(*syscall.Stat_t)
	}
	temp := path + ".respaldo-new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask is
	}
	if err == nil && owner != nil && (int(owner.Uid) != os.Geteuid() || int(owner.Gid) != os.Getegid()) {
		err = f.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
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
	return replaceFile(copied, content, info.Mode().Perm())
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
	return replaceFile(path, append(rest, blockOf(name, text)...), 0o644)
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
	return replaceFile(path, rest, 0o644)
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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
