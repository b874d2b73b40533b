package repo_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

const password = "correct horse"

// open makes a repository at url, or opens it when it is there, for the length of a test.
func open(t *testing.T, url, host string) *repo.Repo {
	t.Helper()
	o := repo.Options{CacheDir: filepath.Join(t.TempDir(), "cache"), Host: host}
	r, err := repo.Create(t.Context(), repo.Config{URL: url}, password, o)
	if respaldo.KindOf(err) == respaldo.Refused {
		r, err = repo.Open(t.Context(), repo.Config{URL: url}, password, o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// dataDir is a small directory with most of what a data directory may hold.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	random := rand.NewChaCha8([32]byte{1})
	put := func(name string, size int, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		b := make([]byte, size)
		random.Read(b)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, b, 0o600))
		must(t, os.Chmod(path, mode))
		when := time.Date(2024, 5, 6, 7, 8, 9, size*1000, time.UTC)
		must(t, os.Chtimes(path, when, when))
	}
	put("ibdata1", 3<<20+512, 0o640)
	put("mysql/user.ibd", 112<<10, 0o640)
	put("shop/orders.ibd", 1<<20, 0o660)
	put("shop/empty.MYD", 0, 0o640)
	put("shop/one", 1, 0o600)
	put("shop/chunk", 128<<10, 0o600)
	put(".kopiaignore", 0, 0o644)
	must(t, os.WriteFile(filepath.Join(dir, ".kopiaignore"), []byte("*\n**/*\n"), 0o644))
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	must(t, os.Symlink("/nowhere/else", filepath.Join(dir, "elsewhere")))
	must(t, os.Symlink("ibdata1", filepath.Join(dir, "alias")))
	sparse, err := os.Create(filepath.Join(dir, "shop", "sparse.ibd"))
	must(t, err)
	must(t, sparse.Truncate(8<<20))
	_, err = sparse.WriteAt([]byte("in the middle"), 5<<20)
	must(t, err)
	must(t, sparse.Close())
	when := time.Date(2023, 1, 2, 3, 4, 5, 0, time.UTC)
	must(t, os.Chmod(filepath.Join(dir, "shop"), 0o750))
	must(t, os.Chtimes(filepath.Join(dir, "shop"), when, when))
	return dir
}

// listing describes everything below dir that a backup must bring back.
func listing(t *testing.T, dir string) string { return describe(t, dir, true) }

// withoutDirTimes is a listing as far as the stock program restores: it gives directories
// the time of the newest file below them.
func withoutDirTimes(t *testing.T, dir string) string { return describe(t, dir, false) }

func describe(t *testing.T, dir string, dirTimes bool) string {
	t.Helper()
	var out strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&out, "%s %s", name, info.Mode())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			fmt.Fprintf(&out, " -> %s", to)
		case e.IsDir() && !dirTimes:
		case e.IsDir():
			fmt.Fprintf(&out, " %s", info.ModTime().UTC().Format(time.RFC3339Nano))
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s %d %x", info.ModTime().UTC().Format(time.RFC3339Nano), info.Size(), sha256.Sum256(b))
		}
		out.WriteByte('\n')
		return nil
	}))
	return out.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func manifest(server string, taken time.Time) respaldo.Manifest {
	return respaldo.Manifest{
		Program: "test", Server: server, Host: "db1", Taken: taken,
		Version:   respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11, Patch: 14, Text: "10.11.14-MariaDB"},
		Quiesced:  respaldo.Quiesced{Mode: respaldo.LockBackup, Coordinates: respaldo.Coordinates{File: "binlog.000007", Position: 4711, GTIDSet: "0-1-42"}},
		Proof:     respaldo.Proof{Level: respaldo.ProveQuick, OK: true},
		Variables: map[string]string{"datadir": "/var/lib/mysql/"},
	}
}

// backup saves dir as "data" and records it.
func backup(t *testing.T, r *repo.Repo, server, dir string) respaldo.Backup {
	t.Helper()
	saved, err := r.Save(t.Context(), server, repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}}}, nil)
	must(t, err)
	b, err := r.Record(t.Context(), saved, manifest(server, saved.Start))
	must(t, err)
	return b
}

// fails asserts that an error says what a tired reader needs.
func fails(t *testing.T, name string, err error, kind respaldo.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", name)
		return
	}
	hints := strings.Join(respaldo.HintsOf(err), "; ")
	for _, w := range words {
		if !strings.Contains(err.Error()+"; "+hints, w) {
			t.Errorf("%s: nothing about %q in: %v; %s", name, w, err, hints)
		}
	}
	if respaldo.KindOf(err) != kind || hints == "" || strings.Contains(err.Error()+hints, password) || len(err.Error()) > 300 {
		t.Errorf("%s: kind %d: %v; %s", name, respaldo.KindOf(err), err, hints)
	}
}
