package repo_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/internal/repo"
)

// A power cut can leave every cached file empty; the repository opens all the same.
func TestCacheOfBeforeAPowerCut(t *testing.T) {
	url := "file://" + filepath.Join(t.TempDir(), "r")
	o := repo.Options{CacheDir: t.TempDir(), Host: "db1"}
	r, err := repo.Create(t.Context(), repo.Config{URL: url}, password, o)
	must(t, err)
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dataDir(t)}}}, nil)
	must(t, err)
	_, err = r.Record(t.Context(), saved, manifest("shop", time.Now()))
	must(t, err)
	must(t, r.Close(t.Context()))

	emptied := 0
	must(t, filepath.WalkDir(o.CacheDir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || e.IsDir():
			return err
		case e.Name() == "boot":
			return os.WriteFile(path, []byte("an earlier one\n"), 0o600)
		}
		emptied++
		return os.Truncate(path, 0)
	}))
	if emptied == 0 {
		t.Fatal("nothing is cached")
	}
	r, err = repo.Open(t.Context(), repo.Config{URL: url}, password, o)
	must(t, err)
	defer r.Close(t.Context())
	if list, err := r.List(t.Context(), "shop"); err != nil || len(list) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
}
