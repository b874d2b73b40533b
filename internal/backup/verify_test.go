package backup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// heard is a Reporter that remembers the warnings.
type heard struct {
	quiet
	warnings []string
}

func (h *heard) Warn(message string) { h.warnings = append(h.warnings, message) }

// record saves a directory as one more backup.
func record(t *testing.T, r *repo.Repo, data string, m respaldo.Manifest) string {
	t.Helper()
	saved, err := r.Save(t.Context(), m.Server, repo.Tree{Entries: []repo.TreeEntry{{Name: dataName, Path: data}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Record(t.Context(), saved, m)
	if err != nil {
		t.Fatal(err)
	}
	return b.ID
}

// stoppedServer is a data directory of a server that was shut down, and its manifest.
func stoppedServer(t *testing.T, name, data string) respaldo.Manifest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := errors.Join(servers.Ensure(ctx, name), servers.Init(ctx, name, data)); err != nil {
		t.Fatal(err)
	}
	running, err := servers.Start(ctx, servers.Spec{Name: name, DataDir: data, Args: []string{"--skip-log-bin"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { running.Kill() })
	server, err := mysql.Connect(ctx, mysql.Options{Socket: running.Spec().Socket, User: "root"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	facts, err := server.Facts(ctx)
	server.Close()
	if err = errors.Join(err, running.Stop()); err != nil {
		t.Fatal(err)
	}
	m := respaldo.Manifest{Server: "verified", Host: "db1", Taken: time.Now(), Version: facts.Version, Variables: facts.Variables, Binary: facts.Process.Binary}
	m.Layout = respaldo.Layout{DataDir: data, Places: []respaldo.Place{{Role: respaldo.DataRole, Path: data, Real: data, Stored: dataName}}}
	return m
}

// All backups of this very server are restored and started one after the other: in an
// empty directory each, with a log of its own, and with room for one at a time.
func TestVerifyStartsEveryBackup(t *testing.T) {
	root, err := os.MkdirTemp("", "vfy") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	data, folder := root+"/data", root+"/repo"
	m := stoppedServer(t, "mariadb-10.11", data)
	r, _ := repository(t, folder, data)
	m.ServerID = "another host's"
	other := record(t, r, data, m)
	m.ServerID = "ours"
	first, last := record(t, r, data, m), record(t, r, data, m)
	broken := m
	broken.Variables = map[string]string{"innodb_page_size": "4096"}
	bad := []string{record(t, r, data, broken), record(t, r, data, broken)}

	s := &Site{Server: m.Server, ServerID: m.ServerID, Host: "db1", StateDir: root + "/state", RunDir: root + "/run", Prove: respaldo.ProveQuick, Run: run.Local{}, Report: quiet{},
		Repository: func(ctx context.Context) (*repo.Repo, error) {
			return repo.Open(ctx, repo.Config{URL: "file://" + folder}, "password", repo.Options{CacheDir: root + "/cache", Host: "db1"})
		}}
	results, err := s.Verify(t.Context(), VerifyRequest{Start: true})
	if respaldo.KindOf(err) != respaldo.NotProved {
		t.Errorf("two of them cannot start: %v", err)
	}
	var seen []string
	for _, v := range results {
		seen = append(seen, v.Backup.ID)
		if wrong := slices.Contains(bad, v.Backup.ID); v.OK == wrong || v.Damaged || v.Proof == nil || v.Proof.OK == wrong {
			t.Errorf("%s: %+v %v", v.Backup.ID, v.Proof, v.Problems)
		}
	}
	if want := []string{first, last, bad[0], bad[1]}; !slices.Equal(seen, want) {
		t.Errorf("verified %q, not %q; %s is another's", seen, want, other)
	}
	for _, dir := range []string{"state/work/verified", "run/work/verified"} {
		if left, _ := os.ReadDir(filepath.Join(root, dir)); len(left) > 0 {
			t.Errorf("%s is left in %s", left[0].Name(), dir)
		}
	}
	if logs, _ := os.ReadDir(root + "/state/failed"); len(logs) != len(bad) {
		t.Errorf("%d logs of %d failures are kept", len(logs), len(bad))
	}

	s.ServerID = "a third host's"
	if _, err := s.Verify(t.Context(), VerifyRequest{}); respaldo.KindOf(err) != respaldo.NotFound || !strings.Contains(strings.Join(respaldo.HintsOf(err), " "), "by its ID") {
		t.Errorf("on a host that has made none: %v, %v", err, respaldo.HintsOf(err))
	}
}

// A host that does not look after the repository is told how it could.
func TestPruneOnAnotherHost(t *testing.T) {
	root, _ := origin(t)
	top := t.TempDir()
	_, b := repository(t, filepath.Join(top, "repo"), root+"/data")
	said := &heard{}
	s := &Site{Server: "shop", ServerID: "other", Host: "db2", StateDir: filepath.Join(top, "state"), RunDir: filepath.Join(top, "run"), Run: run.Local{}, Report: said,
		Repository: func(ctx context.Context) (*repo.Repo, error) {
			return repo.Open(ctx, repo.Config{URL: "file://" + filepath.Join(top, "repo")}, "password", repo.Options{CacheDir: filepath.Join(top, "cache"), Host: "db2"})
		}}
	done, err := s.Prune(t.Context(), PruneRequest{})
	if err != nil || done.MaintenanceBy != "respaldo@db1" || done.Maintenance != nil {
		t.Errorf("%+v, %v", done, err)
	}
	if len(done.Kept)+len(done.Forgotten) != 0 {
		t.Errorf("%s of another host was judged: %+v", b.ID, done)
	}
	if len(said.warnings) != 1 || !strings.Contains(said.warnings[0], "db1") || !strings.Contains(said.warnings[0], "--take-over") {
		t.Errorf("said %q", said.warnings)
	}
	if done, err = s.Prune(t.Context(), PruneRequest{TakeOver: true}); err != nil || done.Maintenance == nil || len(said.warnings) != 1 {
		t.Errorf("taken over: %+v, %v; said %q", done, err, said.warnings)
	}
}
