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
	"github.com/respaldo-backup/respaldo/lab/stores"
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

func TestSaveAndRestore(t *testing.T) {
	everywhere(t, func(t *testing.T, url string) {
		r := open(t, url, "db1")
		dir := dataDir(t)
		option := filepath.Join(t.TempDir(), "my.cnf")
		must(t, os.WriteFile(option, []byte("[mysqld]\n"), 0o644))
		var last respaldo.Progress
		saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{
			{Name: "data", Path: dir},
			{Name: "options/etc/my.cnf", Path: option},
			{Name: "tail/binlog.000007", Data: []byte("the tail of a binlog")},
		}}, func(p respaldo.Progress) { last = p })
		must(t, err)
		if last.Done != last.Total || last.Done != saved.Bytes || last.Files != saved.Files || saved.Read != saved.Bytes {
			t.Errorf("progress ends at %+v, saved %+v", last, saved)
		}
		if list, err := r.List(t.Context(), ""); err != nil || len(list) != 0 {
			t.Fatalf("before Record there are %v, %v", list, err)
		}
		want := manifest("shop", time.Now())
		recorded, err := r.Record(t.Context(), saved, want)
		must(t, err)

		list, err := r.List(t.Context(), "shop")
		must(t, err)
		if len(list) != 1 || list[0].ID != recorded.ID || list[0].Stored != saved.Stored || list[0].Manifest.Quiesced.Coordinates.GTIDSet != "0-1-42" {
			t.Fatalf("listed %+v", list)
		}
		found, err := r.Find(t.Context(), "shop", recorded.ID[:6])
		must(t, err)
		if found.Manifest.Variables["datadir"] != "/var/lib/mysql/" || found.Manifest.Format != respaldo.ManifestFormat {
			t.Errorf("found %+v", found.Manifest)
		}

		to := t.TempDir()
		must(t, r.Restore(t.Context(), found, map[string]string{
			"data": to + "/new/data", "options/etc/my.cnf": to + "/my.cnf", "tail": to + "/tail",
		}, repo.RestoreOptions{}, func(p respaldo.Progress) { last = p }))
		if got, want := listing(t, to+"/new/data"), listing(t, dir); got != want {
			t.Errorf("restored\n%s\ninstead of\n%s", got, want)
		}
		if last.Done != last.Total || last.Done != saved.Bytes {
			t.Errorf("progress of the restore ends at %+v", last)
		}
		for name, want := range map[string]string{"my.cnf": "[mysqld]\n", "tail/binlog.000007": "the tail of a binlog"} {
			if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v", name, got, err)
			}
		}
		v, err := r.Verify(t.Context(), found, nil)
		must(t, err)
		if v.Bytes < saved.Bytes {
			t.Errorf("verified %+v of %+v", v, saved)
		}
	})
}

// everywhere runs a test on every kind of repository.
func everywhere(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("folder", func(t *testing.T) {
		t.Parallel()
		test(t, filepath.Join(t.TempDir(), "repo"))
	})
	t.Run("sftp", func(t *testing.T) {
		t.Parallel()
		test(t, sshServer(t).URL("repo"))
	})
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		s := s3Server(t)
		test(t, "s3://"+s.Bucket+"/some/prefix?region=us-east-1&endpoint="+s.Endpoint)
	})
}

func sshServer(t *testing.T) *stores.SSHServer {
	t.Helper()
	s, err := stores.StartSSH(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	return s
}

func s3Server(t *testing.T) *stores.S3Server {
	t.Helper()
	s, err := stores.StartS3(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	return s
}

// TestMain gives the S3 servers' credentials the way users give theirs.
func TestMain(m *testing.M) {
	os.Setenv("AWS_ACCESS_KEY_ID", stores.S3AccessKey)
	os.Setenv("AWS_SECRET_ACCESS_KEY", stores.S3SecretKey)
	os.Unsetenv("AWS_SESSION_TOKEN")
	os.Exit(m.Run())
}
