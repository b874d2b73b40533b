package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holds checks a file's content and mode, and that nothing else is in its directory but
// what the test has put there.
func holds(t *testing.T, path, content string, mode fs.FileMode, others int) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	info, err := os.Lstat(path)
	must(t, err)
	if string(text) != content || info.Mode() != mode {
		t.Errorf("%s is %q, %v; want %q, %v", path, text, info.Mode(), content, mode)
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1+others {
		t.Errorf("in its directory: %v, %v", list, err)
	}
}

// Somebody else may own the directory, and lay a name there that leads elsewhere.
func TestReplaceFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "file")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	must(t, os.Symlink(victim, path))
	must(t, Replace(path, []byte("new"), 0o644))
	holds(t, victim, "precious", 0o600, 1)
	holds(t, path, "new", 0o644, 1)
}

// An administrator's file stays the administrator's: where it lies, whose it is, who may
// read it.
func TestRewriteKeepsWhatTheFileIs(t *testing.T) {
	dir, links := t.TempDir(), t.TempDir()
	path, link := filepath.Join(dir, "file"), filepath.Join(links, "link")
	must(t, os.WriteFile(path, []byte("old"), 0o640))
	owner := uint32(os.Geteuid())
	if owner == 0 {
		owner = 1234
		must(t, os.Chown(path, int(owner), -1))
	}
	must(t, os.Symlink(path, link))
	must(t, Rewrite(link, []byte("new"), 0o600))
	holds(t, path, "new", 0o640, 0)
	if info, err := os.Stat(path); err != nil || info.Sys().(*syscall.Stat_t).Uid != owner {
		t.Errorf("%v, %v", info, err)
	}
	if leads, err := os.Readlink(link); err != nil || leads != path {
		t.Errorf("the link leads to %q, %v", leads, err)
	}
	fresh := filepath.Join(t.TempDir(), "fresh")
	must(t, Rewrite(fresh, []byte("first"), 0o604))
	holds(t, fresh, "first", 0o604, 0)
}

// What cannot be replaced stays as it was, and nothing is left beside it.
func TestReplaceLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	must(t, os.MkdirAll(filepath.Join(taken, "by"), 0o700))
	if err := Replace(taken, []byte("new"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func TestCreateReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, Create(path, []byte("first"), 0o666))
	if err := Create(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the second: %v", err)
	}
	holds(t, path, "first", 0o666, 0)
}

func TestExchange(t *testing.T) {
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	must(t, os.WriteFile(a, []byte("of a"), 0o600))
	must(t, os.Mkdir(b, 0o700))
	must(t, Exchange(a, b))
	holds(t, b, "of a", 0o600, 0)
	if info, err := os.Stat(a); err != nil || !info.IsDir() {
		t.Errorf("%v, %v", info, err)
	}
	if err := Exchange(a, b+"missing"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("one name only: %v", err)
	}
}
