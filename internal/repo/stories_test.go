//go:build !guest

package repo_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/lab/stores"
)

// Nobody is locked in: the stock program lists and restores our backups, and neither its
// snapshots nor its policies reach us.
func TestStockKopia(t *testing.T) {
	t.Parallel()
	program, err := stores.Kopia(t.Context())
	must(t, err)
	scratch := t.TempDir()
	folder := filepath.Join(scratch, "repo")
	r := open(t, folder, "db1")
	kopia := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command(program, append(args, "--config-file", filepath.Join(scratch, "kopia.config"), "--no-progress")...)
		cmd.Env = append(os.Environ(), "KOPIA_PASSWORD="+password, "KOPIA_CHECK_FOR_UPDATES=false", "HOME="+scratch, "XDG_CACHE_HOME="+scratch)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("kopia %v: %v\n%s", args, err, errs.Bytes())
		}
		return out.Bytes()
	}
	kopia("repository", "connect", "filesystem", "--path", folder)
	kopia("policy", "set", "--global", "--add-ignore", "*.ibd", "--add-dot-ignore", ".kopiaignore", "--one-file-system", "true")
	must(t, os.Mkdir(filepath.Join(scratch, "foreign"), 0o755))
	kopia("snapshot", "create", filepath.Join(scratch, "foreign"))

	dir := dataDir(t)
	b := backup(t, r, "shop", dir)
	list, err := r.List(t.Context(), "")
	must(t, err)
	if len(list) != 1 || list[0].ID != b.ID {
		t.Errorf("listed %+v", list)
	}

	var seen []struct {
		ID     string
		Source struct{ Host, UserName, Path string }
		Tags   map[string]string
	}
	must(t, json.Unmarshal(kopia("snapshot", "list", "--all", "--json", "--tags", "server:shop"), &seen))
	if len(seen) != 1 || seen[0].ID != b.ID || seen[0].Source.Path != "shop" || seen[0].Source.UserName != "respaldo" ||
		seen[0].Source.Host != "db1" || seen[0].Tags["tag:coordinates"] != "binlog.000007:4711" || seen[0].Tags["tag:gtid"] != "0-1-42" {
		t.Errorf("the stock program lists %+v", seen)
	}
	out := filepath.Join(scratch, "out")
	kopia("snapshot", "restore", b.ID, out)
	if got, want := withoutDirTimes(t, out+"/data"), withoutDirTimes(t, dir); got != want {
		t.Errorf("the stock program restored\n%s\ninstead of\n%s", got, want)
	}
	var m respaldo.Manifest
	text, err := os.ReadFile(out + "/respaldo.json")
	must(t, err)
	must(t, json.Unmarshal(text, &m))
	if m.Server != "shop" || m.Format != respaldo.ManifestFormat {
		t.Errorf("respaldo.json is %s", text)
	}
	kopia("snapshot", "verify", "--verify-files-percent=100")
}

func TestUnchangedServerCostsNothing(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	dir := dataDir(t)
	first := backup(t, r, "shop", dir)
	second := backup(t, r, "shop", dir)
	if first.Stored < first.Bytes/4 || second.Stored > first.Stored/100 || second.Read != second.Bytes || second.Bytes != first.Bytes {
		t.Errorf("first %+v, second %+v", first, second)
	}

	// A page that changes while size and time stay: InnoDB does that.
	path := filepath.Join(dir, "ibdata1")
	info, err := os.Stat(path)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), 1<<20)
	must(t, errors.Join(err, f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime())))
	third := backup(t, r, "shop", dir)
	if third.Stored < 100<<10 || third.Stored > 300<<10 {
		t.Errorf("a changed page stored %d bytes", third.Stored)
	}
	to := t.TempDir()
	must(t, r.Restore(t.Context(), third, map[string]string{"data": to}, repo.RestoreOptions{}, nil))
	if got, want := listing(t, to), listing(t, dir); got != want {
		t.Errorf("restored\n%s\ninstead of\n%s", got, want)
	}
}

func TestSocketsAreSkippedAndNothingElse(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	dir := dataDir(t)
	want := listing(t, filepath.Join(dir, "shop"))
	must(t, syscall.Mkfifo(filepath.Join(dir, "shop", "fifo"), 0o600))
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(t, err)
	defer syscall.Close(fd)
	short, err := os.MkdirTemp("", "s") // a socket's path ends at 107 bytes
	must(t, err)
	defer os.RemoveAll(short)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: short + "/s"}))
	must(t, os.Rename(short+"/s", filepath.Join(dir, "mysqld.sock")))
	must(t, os.Chtimes(filepath.Join(dir, "shop"), time.Time{}, time.Date(2023, 1, 2, 3, 4, 5, 0, time.UTC)))
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}}}, nil)
	must(t, err)
	if got := strings.Join(saved.Skipped, " "); got != "data/mysqld.sock data/shop/fifo" {
		t.Errorf("skipped %s", got)
	}
	b, err := r.Record(t.Context(), saved, manifest("shop", saved.Start))
	must(t, err)
	to := t.TempDir()
	must(t, r.Restore(t.Context(), b, map[string]string{"data/shop": to}, repo.RestoreOptions{}, nil))
	if got := listing(t, to); got != want {
		t.Errorf("restored\n%s\ninstead of\n%s", got, want)
	}
}

// Somebody has started a server on what a failed restore had left. The mark is not part of
// the data, and where a backup has it all the same, it can be restored.
func TestMarkOfAnotherRestore(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	dir := dataDir(t)
	mark, inside := filepath.Join(dir, repo.IncompleteMarker), filepath.Join(dir, "shop", repo.IncompleteMarker)
	must(t, os.WriteFile(mark, []byte("an older one"), 0o600))
	must(t, os.WriteFile(inside, []byte("an older one"), 0o600))
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}}}, nil)
	must(t, err)
	if got := strings.Join(saved.Skipped, " "); got != "data/"+repo.IncompleteMarker {
		t.Errorf("skipped %q", got)
	}
	b, err := r.Record(t.Context(), saved, manifest("shop", saved.Start))
	must(t, err)
	for stored, from := range map[string]string{"data": dir, "data/shop": filepath.Join(dir, "shop")} {
		to := filepath.Join(t.TempDir(), "to")
		must(t, r.Restore(t.Context(), b, map[string]string{stored: to}, repo.RestoreOptions{}, nil))
		if repo.Incomplete(to) {
			t.Errorf("%s is marked as incomplete", stored)
		}
		all, err := os.ReadDir(from)
		must(t, err)
		if got, err := os.ReadDir(to); err != nil || len(got) != len(all)-1 { // all but the mark
			t.Errorf("%s restored as %v, %v", stored, got, err)
		}
	}
}

func TestSaveFailsRatherThanLeavesOut(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	save := func(progress func(respaldo.Progress), entries ...repo.TreeEntry) error {
		_, err := r.Save(t.Context(), "shop", repo.Tree{Entries: entries}, progress)
		return err
	}
	dir := dataDir(t)
	small := filepath.Join(dir, "shop", "one")
	for name, err := range map[string]error{
		"missing": save(nil, repo.TreeEntry{Name: "data", Path: dir + "/none"}),
		"grows": save(func(p respaldo.Progress) {
			os.WriteFile(small, []byte("more than it was"), 0o600)
		}, repo.TreeEntry{Name: "data", Path: dir}),
		"vanishes": save(func(p respaldo.Progress) { os.Remove(small) }, repo.TreeEntry{Name: "data", Path: dir}),
		"twice":    save(nil, repo.TreeEntry{Name: "data", Path: dir}, repo.TreeEntry{Name: "data", Path: dir}),
		"inside":   save(nil, repo.TreeEntry{Name: "data", Path: dir}, repo.TreeEntry{Name: "data/more", Path: dir}),
		"reserved": save(nil, repo.TreeEntry{Name: "respaldo.json", Data: []byte("{}")}),
		"outside":  save(nil, repo.TreeEntry{Name: "../data", Path: dir}),
	} {
		if err == nil {
			t.Errorf("%s: saved", name)
		} else if respaldo.KindOf(err) != respaldo.Failed || len(respaldo.HintsOf(err)) == 0 {
			t.Errorf("%s: %v (kind %d, hints %v)", name, err, respaldo.KindOf(err), respaldo.HintsOf(err))
		}
	}
	if list, err := r.List(t.Context(), ""); err != nil || len(list) > 0 {
		t.Errorf("listed %v, %v", list, err)
	}
}

func TestInterruptedSave(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	path := filepath.Join(t.TempDir(), "ibdata1")
	data := make([]byte, 64<<20)
	rand.Read(data)
	must(t, os.WriteFile(path, data, 0o600))
	tree := repo.Tree{Entries: []repo.TreeEntry{{Name: "data/ibdata1", Path: path}}}

	ctx, cancel := context.WithCancelCause(t.Context())
	lost := errors.New("the snapshot is lost")
	_, err := r.Save(ctx, "shop", tree, func(p respaldo.Progress) {
		if p.Done > 0 {
			cancel(lost)
		}
	})
	if !errors.Is(err, lost) {
		t.Fatalf("an interrupted save returned %v", err)
	}
	if list, err := r.List(t.Context(), ""); err != nil || len(list) > 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	saved, err := r.Save(t.Context(), "shop", tree, nil)
	must(t, err)
	if saved.Stored >= int64(len(data)) || saved.Read != int64(len(data)) {
		t.Errorf("the second attempt stored %d of %d bytes again", saved.Stored, len(data))
	}
	again, err := r.Save(t.Context(), "shop", tree, nil)
	must(t, err)
	if again.Stored > int64(len(data))/100 {
		t.Errorf("what was saved and not recorded was stored again: %d bytes", again.Stored)
	}
}

func TestTwoHostsShareARepository(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "repo")
	hosts := map[string]*repo.Repo{"db1": open(t, folder, "db1"), "db2": open(t, folder, "db2.example.com")}
	dir := dataDir(t)
	var group errgroup.Group
	for host, r := range hosts {
		group.Go(func() error {
			for range 3 {
				saved, err := r.Save(t.Context(), host, repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}}}, nil)
				if err != nil {
					return err
				}
				if _, err := r.Record(t.Context(), saved, manifest(host, saved.Start)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, group.Wait())
	for host, r := range hosts {
		list, err := r.List(t.Context(), "")
		must(t, err)
		if len(list) != 6 {
			t.Errorf("%s sees %d backups", host, len(list))
		}
		other := map[string]string{"db1": "db2", "db2": "db1"}[host]
		b, err := r.Find(t.Context(), other, repo.Latest)
		must(t, err)
		to := t.TempDir()
		must(t, r.Restore(t.Context(), b, map[string]string{"data": to}, repo.RestoreOptions{}, nil))
		if listing(t, to) != listing(t, dir) {
			t.Errorf("%s restored %s's backup otherwise", host, other)
		}
	}
	if _, err := hosts["db1"].Find(t.Context(), "", repo.Latest); respaldo.KindOf(err) != respaldo.Usage {
		t.Errorf("the latest of two servers is %v", err)
	}
}

// Two hosts may each have a server "main". Restoring the other one's by mistake would be
// discovered much later.
func TestLatestIsThisHosts(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "repo")
	newest := map[string]string{}
	for i, host := range []string{"db1", "db2"} {
		r := open(t, folder, host)
		saved, err := r.Save(t.Context(), "main", repo.Tree{Entries: []repo.TreeEntry{{Name: "data/x", Data: []byte(host)}}}, nil)
		must(t, err)
		m := manifest("main", saved.Start.Add(time.Duration(i)*time.Second))
		m.Host = host
		b, err := r.Record(t.Context(), saved, m)
		must(t, err)
		newest[host] = b.ID
	}
	for _, host := range []string{"db1", "db2"} {
		if b, err := open(t, folder, host).Find(t.Context(), "main", repo.Latest); err != nil || b.ID != newest[host] {
			t.Errorf("on %s the latest is %s (%v), not its own %s", host, b.ID, err, newest[host])
		}
	}
	_, err := open(t, folder, "db3").Find(t.Context(), "main", repo.Latest)
	fails(t, "on a third host", err, respaldo.Usage, "main@db1", "main@db2")
}

func TestFind(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	if _, err := r.Find(t.Context(), "shop", repo.Latest); respaldo.KindOf(err) != respaldo.NotFound || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("in an empty repository: %v", err)
	}
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "data/x", Data: []byte("x")}}}, nil)
	must(t, err)
	first := map[byte]string{} // 17 IDs: two must begin with the same of 16 digits
	var shared, last string
	for i := 0; shared == ""; i++ {
		b, err := r.Record(t.Context(), saved, manifest("shop", time.Date(2024, 1, i, 0, 0, 0, 0, time.UTC)))
		must(t, err)
		if first[b.ID[0]] != "" {
			shared = b.ID[:1]
		}
		first[b.ID[0]], last = b.ID, b.ID
	}
	_, err = r.Find(t.Context(), "shop", shared)
	if respaldo.KindOf(err) != respaldo.Usage || !strings.Contains(err.Error(), last) {
		t.Errorf("an ambiguous ID: %v", err)
	}
	if b, err := r.Find(t.Context(), "shop", strings.ToUpper(last)); err != nil || b.ID != last {
		t.Errorf("a whole ID finds %v, %v", b.ID, err)
	}
	if _, err = r.Find(t.Context(), "shop", "zzz"); respaldo.KindOf(err) != respaldo.NotFound || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("no such ID: %v", err)
	}
	if _, err = r.Find(t.Context(), "other", repo.Latest); respaldo.KindOf(err) != respaldo.NotFound {
		t.Errorf("no such server: %v", err)
	}
}

func TestRestoreTargets(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	dir := dataDir(t)
	b := backup(t, r, "shop", dir)
	restore := func(ctx context.Context, to string, force bool, progress func(respaldo.Progress)) error {
		return r.Restore(ctx, b, map[string]string{"data": to}, repo.RestoreOptions{Force: force}, progress)
	}
	fresh := t.TempDir()
	must(t, os.Mkdir(filepath.Join(fresh, "lost+found"), 0o700))
	must(t, restore(t.Context(), fresh, false, nil))
	must(t, os.Remove(filepath.Join(fresh, "lost+found")))

	used := t.TempDir()
	must(t, os.WriteFile(filepath.Join(used, "ib_logfile0"), []byte("somebody's"), 0o600))
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("untouched"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(used, "ibdata1")))
	err := restore(t.Context(), used, false, nil)
	if respaldo.KindOf(err) != respaldo.Refused || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("into a used directory: %v", err)
	}
	if got, _ := os.ReadFile(filepath.Join(used, "ib_logfile0")); string(got) != "somebody's" {
		t.Error("a refused restore touched the directory")
	}
	must(t, restore(t.Context(), used, true, nil))
	if got, want := listing(t, used), listing(t, dir); got != want {
		t.Errorf("forced, restored\n%s\ninstead of\n%s", got, want)
	}
	if got, _ := os.ReadFile(outside); string(got) != "untouched" {
		t.Error("a forced restore wrote through a link")
	}

	// Interrupted, it is marked; and may be run again just so.
	ctx, cancel := context.WithCancel(t.Context())
	again := filepath.Join(t.TempDir(), "again")
	if err := restore(ctx, again, false, func(p respaldo.Progress) {
		if p.Done > 0 {
			cancel()
		}
	}); respaldo.KindOf(err) != respaldo.Interrupted {
		t.Errorf("an interrupted restore: %v", err)
	}
	if !repo.Incomplete(again) {
		t.Error("an interrupted restore left no mark")
	}
	must(t, restore(t.Context(), again, false, nil))
	if got, want := listing(t, again), listing(t, dir); got != want {
		t.Errorf("the second time, restored\n%s\ninstead of\n%s", got, want)
	}

	// What Finish says counts, and the mark stays until then.
	failing := filepath.Join(t.TempDir(), "failing")
	sorry := errors.New("sorry")
	err = r.Restore(t.Context(), b, map[string]string{"data": failing}, repo.RestoreOptions{Finish: func() error {
		if !repo.Incomplete(failing) {
			t.Error("not marked while Finish runs")
		}
		return sorry
	}}, nil)
	if !errors.Is(err, sorry) || !repo.Incomplete(failing) {
		t.Errorf("a failing Finish: %v", err)
	}

	// What is refused at the last moment leaves everything as it was: what was there, and
	// what was not.
	base := t.TempDir()
	full := filepath.Join(base, "full")
	must(t, os.Mkdir(full, 0o700))
	must(t, os.WriteFile(filepath.Join(full, "theirs"), []byte("theirs"), 0o600))
	was := withoutDirTimes(t, base)
	err = r.Restore(t.Context(), b, map[string]string{"data": full, "data/shop": filepath.Join(base, "new.more", "shop")},
		repo.RestoreOptions{Force: true, Begin: func(string) error { return sorry }}, nil)
	if !errors.Is(err, sorry) {
		t.Errorf("a refusing Begin: %v", err)
	}
	if got := withoutDirTimes(t, base); got != was {
		t.Errorf("a refused restore left\n%s\ninstead of\n%s", got, was)
	}

	one := filepath.Join(t.TempDir(), "deep", "one")
	must(t, r.Restore(t.Context(), b, map[string]string{"data/shop/one": one}, repo.RestoreOptions{}, nil))
	if err := r.Restore(t.Context(), b, map[string]string{"data/shop/one": one}, repo.RestoreOptions{}, nil); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("over a file: %v", err)
	}
	must(t, r.Restore(t.Context(), b, map[string]string{"data/shop/one": one}, repo.RestoreOptions{Force: true}, nil))
	if list, _ := os.ReadDir(filepath.Dir(one)); len(list) != 1 {
		t.Errorf("beside a restored file: %v", list)
	}

	for name, targets := range map[string]map[string]string{
		"relative": {"data": "x"},
		"nested":   {"data": fresh + "/a", "data/shop": fresh + "/a/b"},
		"unknown":  {"redo": fresh + "/a"},
	} {
		err := r.Restore(t.Context(), b, targets, repo.RestoreOptions{}, nil)
		if k := respaldo.KindOf(err); k != respaldo.Usage && k != respaldo.NotFound || len(respaldo.HintsOf(err)) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHolesComeBack(t *testing.T) {
	t.Parallel()
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	must(t, err)
	must(t, errors.Join(f.Truncate(32<<20), f.Close()))
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "sparse", Path: path}}}, nil)
	must(t, err)
	b, err := r.Record(t.Context(), saved, manifest("shop", saved.Start))
	must(t, err)
	to := filepath.Join(t.TempDir(), "sparse")
	must(t, r.Restore(t.Context(), b, map[string]string{"sparse": to}, repo.RestoreOptions{}, nil))
	info, err := os.Stat(to)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); info.Size() != 32<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes came back as %d blocks", info.Size(), st.Blocks)
	}
}
