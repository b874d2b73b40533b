//go:build !guest

package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// A copy with no repository between is what a restore would have written, and is marked as
// incomplete until it is whole.
func TestCopy(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	top := t.TempDir()
	options := filepath.Join(top, "my.cnf")
	must(t, os.WriteFile(options, []byte("[mysqld]\n"), 0o640))
	tree := repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}, {Name: "option-file/my.cnf", Path: options}}}
	to, more := filepath.Join(top, "to"), filepath.Join(top, "to.more")
	targets := map[string]string{"data": to, "option-file": more}

	stopped := errors.New("stopped")
	_, err := repo.Copy(t.Context(), tree, "the snapshot s", targets, repo.RestoreOptions{Finish: func() error { return stopped }}, nil)
	if !errors.Is(err, stopped) || !repo.Incomplete(to) {
		t.Errorf("stopped before its end: %v, marked: %v", err, repo.Incomplete(to))
	}
	var last respaldo.Progress
	copied, err := repo.Copy(t.Context(), tree, "the snapshot s", targets, repo.RestoreOptions{}, func(p respaldo.Progress) { last = p })
	must(t, err)
	if got, want := listing(t, to), listing(t, dir); got != want {
		t.Errorf("copied:\n%s\nwanted:\n%s", got, want)
	}
	if text, err := os.ReadFile(filepath.Join(more, "my.cnf")); err != nil || string(text) != "[mysqld]\n" {
		t.Errorf("the single file: %q, %v", text, err)
	}
	if last.Done != copied.Bytes || last.Total != copied.Bytes || copied.Files != 9 {
		t.Errorf("copied %+v, last said %+v", copied, last)
	}
	_, err = repo.Copy(t.Context(), tree, "the snapshot s", targets, repo.RestoreOptions{}, nil)
	fails(t, "into what is not empty", err, respaldo.Refused, "not empty")
	_, err = repo.Copy(t.Context(), tree, "the snapshot s", map[string]string{"redo": filepath.Join(top, "redo")}, repo.RestoreOptions{}, nil)
	fails(t, "what there is not", err, respaldo.NotFound, "redo")
}

// Two restores into one directory at once would mix their files.
func TestOneRestoreAtATime(t *testing.T) {
	t.Parallel()
	dir, to := dataDir(t), filepath.Join(t.TempDir(), "to")
	tree, targets := repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}}}, map[string]string{"data": to}
	var second error
	_, err := repo.Copy(t.Context(), tree, "one", targets, repo.RestoreOptions{Begin: func(string) error {
		_, second = repo.Copy(t.Context(), tree, "two", targets, repo.RestoreOptions{Force: true}, nil)
		return nil
	}}, nil)
	must(t, err)
	fails(t, "a second restore", second, respaldo.Busy, to)
}
