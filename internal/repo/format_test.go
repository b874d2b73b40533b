//go:build !guest

package repo

import (
	"context"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"

	"github.com/respaldo-backup/respaldo"
)

var update = flag.Bool("update", false, "write the repository of this release into testdata")

const goldenPassword = "golden"

// goldenFiles is what every repository in testdata holds.
var goldenFiles = map[string]string{
	"ibdata1":       strings.Repeat("a page of data. ", 1024),
	"shop/orders":   "orders",
	"shop/customer": "customers",
}

// A repository made by each release stays readable. go test -run TestFormat -update writes
// the one of the release that is coming; older ones are never written again.
func TestFormatsStayReadable(t *testing.T) {
	t.Parallel()
	current := filepath.Join("testdata", "repository-"+strconv.Itoa(respaldo.ManifestFormat))
	if *update {
		writeGolden(t, current)
	}
	golden, err := filepath.Glob("testdata/repository-*")
	if err != nil || len(golden) < respaldo.ManifestFormat {
		t.Fatalf("found %v, %v", golden, err)
	}
	for _, dir := range golden {
		folder := filepath.Join(t.TempDir(), "repo")
		if err := os.CopyFS(folder, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		r, err := Open(t.Context(), Config{URL: folder}, goldenPassword, Options{CacheDir: t.TempDir(), Host: "db1"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Find(t.Context(), "shop", Latest)
		if err != nil {
			t.Fatal(err)
		}
		m := b.Manifest
		if m.Host != "db1" || m.Version.Patch != 14 || m.Variables["server_id"] != "7" || m.Quiesced.Coordinates.String() != "binlog.000007:4711" || !m.Proof.OK {
			t.Errorf("%s holds %+v", dir, m)
		}
		to := filepath.Join(t.TempDir(), "to")
		if err := r.Restore(t.Context(), b, map[string]string{"data": to}, RestoreOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		for name, want := range goldenFiles {
			if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
				t.Errorf("%s: %s is %q, %v", dir, name, got, err)
			}
		}
		if info, err := os.Stat(filepath.Join(to, "shop")); err != nil || info.Mode().Perm() != 0o750 {
			t.Errorf("%s: shop has %v, %v", dir, info.Mode(), err)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func writeGolden(t *testing.T, dir string) {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	for name, text := range goldenFiles {
		path := filepath.Join(data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	r, err := Create(t.Context(), Config{URL: must(filepath.Abs(dir))}, goldenPassword, Options{CacheDir: t.TempDir(), Host: "db1"})
	if err != nil {
		t.Fatal(err)
	}
	saved, err := r.Save(t.Context(), "shop", Tree{Entries: []TreeEntry{{Name: "data", Path: data}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Record(t.Context(), saved, respaldo.Manifest{
		Program: "golden", Server: "shop", Host: "db1", Taken: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC),
		Version:   respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11, Patch: 14, Text: "10.11.14-MariaDB"},
		Quiesced:  respaldo.Quiesced{Mode: respaldo.LockBackup, Coordinates: respaldo.Coordinates{File: "binlog.000007", Position: 4711}},
		Proof:     respaldo.Proof{Level: respaldo.ProveQuick, OK: true},
		Variables: map[string]string{"server_id": "7"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// fixture is a repository with one saved tree.
func fixture(t *testing.T) (*Repo, *Saved) {
	t.Helper()
	r, err := Create(t.Context(), Config{URL: filepath.Join(t.TempDir(), "repo")}, "pw", Options{CacheDir: t.TempDir(), Host: "db1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	saved, err := r.Save(t.Context(), "shop", Tree{Entries: []TreeEntry{{Name: "data/x", Data: []byte("x")}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r, saved
}

func TestNewerFormatIsListedAndRefused(t *testing.T) {
	t.Parallel()
	r, saved := fixture(t)
	b, err := r.Record(t.Context(), saved, respaldo.Manifest{Server: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	// The same backup, as a later program might write it down.
	err = r.write(t.Context(), "test", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		man, err := snapshot.LoadSnapshot(ctx, w, manifest.ID(b.ID))
		if err != nil {
			return err
		}
		man.Tags[tagFormat] = strconv.Itoa(respaldo.ManifestFormat + 1)
		man.Tags[tagSummary] = `{"manifest":{"server":["shop"]},"bytes":"many"}`
		_, err = snapshot.SaveSnapshot(ctx, w, man)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.List(t.Context(), "shop")
	if err != nil || len(list) != 2 {
		t.Fatalf("listed %+v, %v", list, err)
	}
	for _, listed := range list {
		_, err := r.Find(t.Context(), "", listed.ID)
		restored := r.Restore(t.Context(), listed, map[string]string{"data": t.TempDir()}, RestoreOptions{}, nil)
		if listed.ID == b.ID {
			if err != nil || restored != nil {
				t.Errorf("ours: %v, %v", err, restored)
			}
			continue
		}
		if listed.Manifest.Server != "shop" {
			t.Errorf("listed %+v", listed)
		}
		for _, err := range []error{err, restored} {
			if respaldo.KindOf(err) != respaldo.RepoFailed || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "newer") {
				t.Errorf("a newer format: %v", err)
			}
		}
	}
}

// Whoever can write into the repository must not thereby write anywhere else.
func TestRestoreStaysInside(t *testing.T) {
	t.Parallel()
	r, saved := fixture(t)
	outside := t.TempDir()
	now := time.Now()
	x := saved.root.children[0].children[0]
	link := func(w repo.DirectRepositoryWriter, name, to string) *node {
		n := &node{name: name, stored: name, info: meta{mode: fs.ModeSymlink | 0o777, mtime: now}, data: []byte(to)}
		u := &upload{w: w, async: 1, progress: reporter("", 0, nil)}
		if err := u.file(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	named := func(n *node, name string) *node {
		entry := *n.entry
		entry.Name = name
		return &node{name: name, entry: &entry}
	}
	for name, build := range map[string]func(w repo.DirectRepositoryWriter) []*node{
		"a name with dots": func(repo.DirectRepositoryWriter) []*node { return []*node{named(x, "../x")} },
		"an absolute name": func(repo.DirectRepositoryWriter) []*node { return []*node{named(x, outside+"/x")} },
		"the name dot dot": func(repo.DirectRepositoryWriter) []*node { return []*node{named(x, "..")} },
		"a directory and a link": func(w repo.DirectRepositoryWriter) []*node {
			return []*node{link(w, "d", outside), directory(t, w, "d", x)}
		},
		"a file and a link": func(w repo.DirectRepositoryWriter) []*node { return []*node{link(w, "x", outside+"/x"), x} },
	} {
		err := r.write(t.Context(), "test", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
			saved.root = &node{info: saved.root.info, children: []*node{directory(t, w, "data", build(w)...)}}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Record(t.Context(), saved, respaldo.Manifest{Server: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Restore(t.Context(), b, map[string]string{"data": filepath.Join(t.TempDir(), "to")}, RestoreOptions{}, nil); err == nil {
			t.Errorf("%s: restored", name)
		}
		if list, _ := os.ReadDir(outside); len(list) > 0 {
			t.Errorf("%s: wrote %v outside", name, list)
		}
	}
}

// directory writes children without any of the checks of Save.
func directory(t *testing.T, w repo.DirectRepositoryWriter, name string, children ...*node) *node {
	t.Helper()
	n := &node{name: name, stored: name, info: meta{mode: fs.ModeDir | 0o700, mtime: time.Now()}}
	list := snapshot.DirManifest{StreamType: "kopia:directory", Summary: (&snapshotfs.DirManifestBuilder{}).Build(0, "").Summary}
	for _, c := range children {
		list.Entries = append(list.Entries, c.entry)
	}
	id, err := snapshotfs.WriteDirManifest(t.Context(), w, name, &list, compressor)
	if err != nil {
		t.Fatal(err)
	}
	n.entry = n.dirEntry(snapshot.EntryTypeDirectory)
	n.entry.ObjectID, n.entry.DirSummary = id, list.Summary
	return n
}
