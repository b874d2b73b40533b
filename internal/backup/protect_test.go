package backup

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// repository is a real one in a folder, with one backup of a data directory.
func repository(t *testing.T, folder, data string) (*repo.Repo, respaldo.Backup) {
	t.Helper()
	r, err := repo.Create(t.Context(), repo.Config{URL: "file://" + folder}, "password", repo.Options{CacheDir: filepath.Join(t.TempDir(), "cache"), Host: "db1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: dataName, Path: data}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Record(t.Context(), saved, respaldo.Manifest{Server: "shop", Taken: time.Now(),
		Layout: respaldo.Layout{DataDir: data, Places: []respaldo.Place{{Role: respaldo.DataRole, Path: data, Real: data, Stored: dataName}}}})
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

// quiet is a Reporter for those who do not listen.
type quiet struct{}

func (quiet) Step(string, string)        {}
func (quiet) Progress(respaldo.Progress) {}
func (quiet) Warn(string)                {}

func TestRestoreSparesItsOwnFiles(t *testing.T) {
	root, _ := origin(t)
	top := t.TempDir()
	folder := filepath.Join(top, "srv", "backup")
	r, _ := repository(t, folder, root+"/data")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(top, "srv"), link); err != nil {
		t.Fatal(err)
	}
	s := &Site{StateDir: filepath.Join(top, "state"), RunDir: filepath.Join(top, "run")}
	for name, to := range map[string]string{
		"the repository":                   folder,
		"around the repository":            filepath.Dir(folder),
		"around it, by another name":       link,
		"in it":                            filepath.Join(folder, "new", "mysql"),
		"in it, by another name":           filepath.Join(link, "backup", "mysql"),
		"around the state":                 top,
		"in the state, which is not there": filepath.Join(top, "state", "mysql"),
		"the runtime directory":            s.RunDir,
		"around the cache":                 filepath.Dir(r.CacheDir()),
	} {
		if err := s.refuseOurs(to, r.Folder(), r.CacheDir()); respaldo.KindOf(err) != respaldo.Refused {
			t.Errorf("%s (%s): %v", name, to, err)
		}
	}
	for _, to := range []string{filepath.Join(top, "srv", "mysql"), filepath.Join(link, "backup.new"), root + "/data"} {
		if err := s.refuseOurs(to, r.Folder(), r.CacheDir()); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// Between the look at a directory and the removal of what it holds, a server may come back.
func TestServerThatComesBackIsSpared(t *testing.T) {
	root, _ := origin(t)
	r, b := repository(t, filepath.Join(t.TempDir(), "repo"), root+"/data")
	s := &Site{Server: "shop", StateDir: t.TempDir(), RunDir: t.TempDir(), Report: quiet{}}
	op, err := s.open("restore")
	if err != nil {
		t.Fatal(err)
	}
	defer op.close(context.Background(), &err)
	to := filepath.Join(t.TempDir(), "mysql")
	if err := os.CopyFS(to, os.DirFS(root+"/data")); err != nil {
		t.Fatal(err)
	}
	done := Restored{Backup: b, Targets: map[string]string{dataName: to}}
	holdOpen(t, to+"/ibdata1")
	restore := func(o repo.RestoreOptions) error { return r.Restore(t.Context(), b, done.Targets, o, nil) }
	if err := op.restoreInto(t.Context(), true, &done, restore); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("into a directory in use: %v", err)
	}
	if _, err := os.Stat(to + "/shop/t.ibd"); err != nil || repo.Incomplete(to) {
		t.Errorf("the refused restore has touched it: %v", err)
	}
	if err := refuseInUse(to + "/shop/new"); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("inside a directory in use: %v", err)
	}
}
