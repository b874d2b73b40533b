//go:build !guest

package repo_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/lab/stores"
)

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
