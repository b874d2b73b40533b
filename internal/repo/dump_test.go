package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// sqlText looks like a dump: it differs in one row from that of the day before.
func sqlText(extra string) []byte {
	var b bytes.Buffer
	for i := range 150_000 {
		fmt.Fprintf(&b, "INSERT INTO orders VALUES (%d,'%x');\n", i, i*i*7919)
		if i == 1000 {
			b.WriteString(extra)
		}
	}
	return b.Bytes()
}

// A dump is a stream on its way in, an object of its own among the backups, and a file on
// its way out. It is never the latest backup, and is counted apart.
func TestDumps(t *testing.T) {
	r := open(t, "file://"+filepath.Join(t.TempDir(), "repo"), "db1")
	at := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	m := respaldo.Manifest{Server: "shop", ServerID: "1", Host: "db1", Taken: at, Proof: respaldo.Proof{OK: true, Level: respaldo.ProveQuick}}
	image := recordOf(t, r, repo.TreeEntry{Name: "data", Path: dataDir(t)}, m)
	m.Dump, m.Proof = &respaldo.Dump{Image: "now", Tool: "mysqldump 9.7.4"}, respaldo.Proof{}
	m.Taken = at.Add(time.Hour)
	text := sqlText("")
	first := recordOf(t, r, repo.TreeEntry{Name: "dump/shop.sql", Stream: bytes.NewReader(text)}, m)
	if first.Bytes != int64(len(text)) || first.Files != 1 || first.Stored == 0 || first.Manifest.Dump == nil {
		t.Errorf("recorded %+v", first)
	}
	m.Taken = at.Add(2 * time.Hour)
	second := recordOf(t, r, repo.TreeEntry{Name: "dump/shop.sql", Stream: iotest.HalfReader(bytes.NewReader(sqlText("one row more\n")))}, m)
	if second.Stored > first.Stored*2/3 {
		t.Errorf("a row more cost %d bytes, after %d for all of it", second.Stored, first.Stored)
	}
	list, err := r.List(t.Context(), "shop")
	if err != nil || len(list) != 3 || list[0].Manifest.Dump != nil || list[1].Manifest.Dump == nil || list[1].Manifest.Server != "shop" {
		t.Fatalf("%+v, %v", list, err)
	}
	latest, err := r.Find(t.Context(), "shop", repo.Latest)
	if err != nil || latest.ID != image.ID {
		t.Errorf("the latest is %s, not the backup %s: %v", latest.ID, image.ID, err)
	}
	keep, forget := repo.Retain(repo.Policy{Last: 1}, list)
	if len(keep) != 2 || len(forget) != 1 || forget[0].ID != first.ID {
		t.Errorf("kept %v, forgot %v", keep, forget)
	}
	found, err := r.Find(t.Context(), "", first.ID[:8])
	if err != nil || found.Manifest.Dump == nil || found.Manifest.Dump.Tool != m.Dump.Tool {
		t.Fatalf("%+v, %v", found, err)
	}
	to := filepath.Join(t.TempDir(), "out")
	if err := r.Restore(t.Context(), found, map[string]string{"dump": to}, repo.RestoreOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(to, "shop.sql")); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(text), err)
	}
	if v, err := r.Verify(t.Context(), found, nil); err != nil || v.Bytes < int64(len(text)) {
		t.Errorf("verified %+v, %v", v, err)
	}
	must(t, r.Forget(t.Context(), image.ID))
	if _, err := r.Find(t.Context(), "shop", repo.Latest); respaldo.KindOf(err) != respaldo.NotFound || !strings.Contains(err.Error(), "dumps") {
		t.Errorf("without a backup, the latest: %v", err)
	}
}

// What the stream says went wrong is why the save fails.
func TestBrokenStreamIsNotSaved(t *testing.T) {
	r := open(t, "file://"+filepath.Join(t.TempDir(), "repo"), "db1")
	broken := &respaldo.Error{Kind: respaldo.SnapshotLost, What: "the snapshot is gone"}
	entry := repo.TreeEntry{Name: "dump/x.sql", Stream: io.MultiReader(strings.NewReader("some of it"), iotest.ErrReader(broken))}
	if _, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{entry}}, nil); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func recordOf(t *testing.T, r *repo.Repo, e repo.TreeEntry, m respaldo.Manifest) respaldo.Backup {
	t.Helper()
	saved, err := r.Save(context.Background(), m.Server, repo.Tree{Entries: []repo.TreeEntry{e}}, nil)
	must(t, err)
	b, err := r.Record(context.Background(), saved, m)
	must(t, err)
	return b
}
