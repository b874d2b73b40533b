//go:build !guest

package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

func TestBadRepositories(t *testing.T) {
	t.Parallel()
	cache := repo.Options{CacheDir: t.TempDir(), Host: "db1"}
	tryOpen := func(url, password string) error {
		r, err := repo.Open(t.Context(), repo.Config{URL: url}, password, cache)
		if err == nil {
			r.Close(t.Context())
		}
		return err
	}
	create := func(url, password string, o repo.Options) error {
		r, err := repo.Create(t.Context(), repo.Config{URL: url}, password, o)
		if err == nil {
			r.Close(t.Context())
		}
		return err
	}
	folder := filepath.Join(t.TempDir(), "repo")
	must(t, create(folder, password, cache))
	must(t, tryOpen(folder, password))
	must(t, tryOpen("file://"+folder, password))

	fails(t, "wrong password", tryOpen(folder, "wrong"), respaldo.RepoFailed, folder, "wrong password")
	fails(t, "no password", tryOpen(folder, ""), respaldo.Usage, "password")
	fails(t, "missing", tryOpen(folder+"x", password), respaldo.RepoFailed, folder+"x", "respaldo init", "mounted")
	if _, err := os.Stat(folder + "x"); err == nil {
		t.Error("looking for a repository made a folder")
	}
	empty := t.TempDir()
	fails(t, "empty folder", tryOpen(empty, password), respaldo.RepoFailed, empty, "respaldo init")
	if list, _ := os.ReadDir(empty); len(list) > 1 {
		t.Errorf("looking for a repository wrote %v", list)
	}
	garbage := t.TempDir()
	must(t, os.WriteFile(filepath.Join(garbage, "kopia.repository.f"), []byte("garbage"), 0o600))
	fails(t, "garbage", tryOpen(garbage, password), respaldo.RepoFailed, garbage)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	fails(t, "a file", tryOpen(file, password), respaldo.RepoFailed, "not a directory")
	fails(t, "relative cache", create(filepath.Join(t.TempDir(), "r"), password, repo.Options{CacheDir: "cache"}), respaldo.Usage, "cache")
	fails(t, "no cache", create(filepath.Join(t.TempDir(), "r"), password, repo.Options{CacheDir: file + "/cache"}), respaldo.RepoFailed, "cache")

	err := create(folder, password, cache)
	fails(t, "exists", err, respaldo.Refused, folder)
	if !errors.Is(err, repo.ErrExists) {
		t.Errorf("an existing repository: %v", err)
	}
	used := t.TempDir()
	must(t, os.WriteFile(filepath.Join(used, "holiday.jpg"), nil, 0o600))
	fails(t, "used folder", create(used, password, cache), respaldo.Refused, "holiday.jpg")
	// A creation that was cut short is finished by the next one.
	half := t.TempDir()
	must(t, os.WriteFile(filepath.Join(half, "kopia.blobcfg.f"), []byte("half"), 0o600))
	must(t, create(half, password, cache))

	// Gone since it was last used, whatever is cached.
	must(t, os.Rename(folder, folder+".away"))
	fails(t, "gone", tryOpen(folder, password), respaldo.RepoFailed, folder, "mounted")
	must(t, os.Mkdir(folder, 0o700))
	fails(t, "not mounted", tryOpen(folder, password), respaldo.RepoFailed, folder, "mounted")
}

// The repository's disk is unplugged, or its file system unmounted, while it is in use.
func TestRepositoryVanishes(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "repo")
	r := open(t, folder, "db1")
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "x", Data: []byte("x")}}}, nil)
	must(t, err)
	must(t, os.Rename(folder, folder+".away"))
	_, err = r.Record(t.Context(), saved, respaldo.Manifest{Server: "shop"})
	fails(t, "record", err, respaldo.RepoFailed, folder)
	_, err = r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "y", Data: []byte("y")}}}, nil)
	fails(t, "save", err, respaldo.RepoFailed, folder)
	if _, err := os.Stat(folder); err == nil {
		t.Error("the repository's folder was made again, on another file system")
	}
	must(t, os.Rename(folder+".away", folder))
	_, err = r.Record(t.Context(), saved, respaldo.Manifest{Server: "shop"})
	must(t, err)
}

func TestBadSFTP(t *testing.T) {
	t.Parallel()
	s := sshServer(t)
	other := sshServer(t)
	o := repo.Options{CacheDir: t.TempDir(), Host: "db1"}
	try := func(url string) error {
		_, err := repo.Open(t.Context(), repo.Config{URL: url}, password, o)
		return err
	}
	replace := func(from, to string) string { return strings.Replace(s.URL("repo"), from, to, 1) }
	fails(t, "missing", try(s.URL("repo")), respaldo.RepoFailed, "respaldo init")
	fails(t, "unknown host", try(replace(s.KnownHosts, other.KnownHosts)), respaldo.RepoFailed, "known hosts")
	fails(t, "unknown key", try(replace(s.Key, other.Key)), respaldo.RepoFailed, "authorized_keys")
	fails(t, "no key", try(replace(s.Key, "/none")), respaldo.RepoFailed, "/none")
	fails(t, "no known hosts", try(replace(s.KnownHosts, "/none")), respaldo.RepoFailed, "ssh-keyscan")
	must(t, other.Stop())
	fails(t, "down", try(other.URL("repo")), respaldo.RepoFailed, "reached")
}

func TestBadS3(t *testing.T) {
	t.Parallel()
	s := s3Server(t)
	o := repo.Options{CacheDir: t.TempDir(), Host: "db1"}
	url := "s3://" + s.Bucket + "/x?region=us-east-1&endpoint=" + s.Endpoint
	_, err := repo.Open(t.Context(), repo.Config{URL: url}, password, o)
	fails(t, "missing", err, respaldo.RepoFailed, "s3://"+s.Bucket+"/x", "respaldo init")
	_, err = repo.Create(t.Context(), repo.Config{URL: strings.Replace(url, s.Bucket, "none", 1)}, password, o)
	fails(t, "no bucket", err, respaldo.RepoFailed, "make the bucket")
	_, err = repo.Open(t.Context(), repo.Config{URL: url + "&profile=none"}, password, o)
	fails(t, "no credentials", err, respaldo.RepoFailed, "AWS_ACCESS_KEY_ID")
}

func TestURLs(t *testing.T) {
	t.Parallel()
	o := repo.Options{CacheDir: t.TempDir()}
	for url, words := range map[string]string{
		"":                                   "/path",
		"relative/path":                      "/path",
		"ftp://host/path":                    "sftp://",
		"file://host/path":                   "three slashes",
		"sftp://host":                        "path",
		"sftp:///path":                       "host",
		"sftp://me:" + "hunter2" + "@h/path": "password",
		"sftp://h/path?kye=x":                "kye",
		"s3:///prefix":                       "bucket",
		"s3://bucket/prefix?key=x":           "key",
		"s3://bucket/%zz":                    "URL",
	} {
		_, err := repo.Open(t.Context(), repo.Config{URL: url}, password, o)
		fails(t, url, err, respaldo.Usage, words)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}
