//go:build !guest

package repo_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

func TestVerifyFindsDamage(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "repo")
	r := open(t, folder, "db1")
	b := backup(t, r, "shop", dataDir(t))
	must(t, r.Close(t.Context()))
	for _, prefix := range []string{"p", "q"} {
		t.Run(prefix, func(t *testing.T) {
			damaged := filepath.Join(t.TempDir(), "repo")
			must(t, os.CopyFS(damaged, os.DirFS(folder)))
			flip(t, damaged, prefix)
			r := open(t, damaged, "db1")
			v, err := r.Verify(t.Context(), b, nil)
			if respaldo.KindOf(err) != respaldo.RepoFailed || len(respaldo.HintsOf(err)) == 0 {
				t.Fatalf("verified a damaged repository: %+v, %v", v, err)
			}
			if prefix == "p" && (len(v.Damaged) == 0 || !strings.HasPrefix(v.Damaged[0].Path, "data/") || !strings.Contains(err.Error(), v.Damaged[0].Path)) {
				t.Errorf("damaged %+v, %v", v, err)
			}
			err = r.Restore(t.Context(), b, map[string]string{"data": filepath.Join(t.TempDir(), "to")}, repo.RestoreOptions{}, nil)
			if respaldo.KindOf(err) != respaldo.RepoFailed {
				t.Errorf("restored from a damaged repository: %v", err)
			}
		})
	}
}

// flip changes every 64th KiB of the repository's blobs of one kind.
func flip(t *testing.T, folder, prefix string) {
	t.Helper()
	n := 0
	must(t, filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(folder, path)
		if err != nil || e.IsDir() || !strings.HasPrefix(rel, prefix) {
			return err
		}
		n++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := 100; i < len(data); i += 64 << 10 {
			data[i] ^= 1
		}
		return os.WriteFile(path, data, 0o600)
	}))
	if n == 0 {
		t.Fatalf("no blob %s in %s", prefix, folder)
	}
}

func TestForgetAndMaintain(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "repo")
	r := open(t, folder, "db1")
	dir := dataDir(t)
	old, kept := backup(t, r, "shop", dir), backup(t, r, "shop", dir)
	must(t, r.Forget(t.Context(), old.ID, "gone already"))
	list, err := r.List(t.Context(), "shop")
	must(t, err)
	if len(list) != 1 || list[0].ID != kept.ID {
		t.Errorf("after forgetting %s there are %+v", old.ID, list)
	}

	// Half a pack that a killed process left.
	half := filepath.Join(folder, "p", "000", "0000000000000000000000000000-s0000000000000000123.f.tmp.1")
	must(t, os.MkdirAll(filepath.Dir(half), 0o700))
	must(t, os.WriteFile(half, make([]byte, 10<<20), 0o600))
	long := time.Now().Add(-2 * 24 * time.Hour)
	must(t, os.Chtimes(half, long, long))
	m, err := r.Maintain(t.Context(), repo.MaintainOptions{Full: true})
	must(t, err)
	if m.Owner != "respaldo@db1" || m.Freed < 10<<20 || m.Freed > 11<<20 || m.After < kept.Stored {
		t.Errorf("maintained %+v", m)
	}
	if v, err := r.Verify(t.Context(), kept, nil); err != nil {
		t.Errorf("after maintenance %+v, %v", v, err)
	}

	other := open(t, folder, "db2")
	_, err = other.Maintain(t.Context(), repo.MaintainOptions{})
	if !errors.Is(err, repo.ErrNotOwner) || respaldo.KindOf(err) != respaldo.RepoFailed || !strings.Contains(err.Error(), "respaldo@db1") {
		t.Errorf("maintained from another host: %v", err)
	}
	m, err = other.Maintain(t.Context(), repo.MaintainOptions{TakeOver: true})
	if err != nil || m.Owner != "respaldo@db2" {
		t.Errorf("taken over: %+v, %v", m, err)
	}
	if _, err = r.Maintain(t.Context(), repo.MaintainOptions{}); !errors.Is(err, repo.ErrNotOwner) {
		t.Errorf("maintained after it was taken over: %v", err)
	}
}
