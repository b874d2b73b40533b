//go:build guest

package repo_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// random makes a file that neither deduplicates nor compresses.
func random(t *testing.T, path string, mib int) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	buf := make([]byte, 1<<20)
	for range mib {
		rand.Read(buf)
		_, err := f.Write(buf)
		must(t, err)
	}
	must(t, f.Close())
}

// used is how much of a volume is in use.
func used(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	must(t, syscall.Statfs(path, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

func TestRepositoryFull(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 32 << 20})
	folder := filepath.Join(v.Path, "repo")
	r := open(t, folder, "db1")
	first := backup(t, r, "shop", dataDir(t))
	before := used(t, v.Path)

	big := filepath.Join(t.TempDir(), "big")
	random(t, big, 40)
	_, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "big", Path: big}}}, nil)
	fails(t, "full", err, respaldo.RepoFailed, folder, "no space left", "respaldo prune")
	if after := used(t, v.Path); after > before+1<<20 {
		t.Errorf("a save that failed keeps %d MiB of a full disk", (after-before)>>20)
	}
	list, err := r.List(t.Context(), "")
	if err != nil || len(list) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
	if _, err := r.Verify(t.Context(), first, nil); err != nil {
		t.Error(err)
	}
	// With more room the next one succeeds, with the same open repository.
	guest.Run(t, "lvextend", "-qq", "-y", "-r", "-L", "128m", v.LV)
	saved, err := r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "big", Path: big}}}, nil)
	must(t, err)
	b, err := r.Record(t.Context(), saved, manifest("shop", saved.Start))
	must(t, err)
	if _, err := r.Verify(t.Context(), b, nil); err != nil {
		t.Error(err)
	}
}

func TestRepositoryReadOnly(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 48 << 20})
	folder := filepath.Join(v.Path, "repo")
	r := open(t, folder, "db1")
	dir := dataDir(t)
	b := backup(t, r, "shop", dir)
	must(t, r.Close(t.Context()))
	guest.Run(t, "mount", "-o", "remount,ro", v.Path)

	r, err := repo.Open(t.Context(), repo.Config{URL: folder}, password, repo.Options{CacheDir: t.TempDir(), Host: "db1"})
	must(t, err)
	list, err := r.List(t.Context(), "shop")
	if err != nil || len(list) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
	to := filepath.Join(t.TempDir(), "to")
	must(t, r.Restore(t.Context(), b, map[string]string{"data": to}, repo.RestoreOptions{}, nil))
	if listing(t, to) != listing(t, dir) {
		t.Error("restored otherwise from a read-only repository")
	}
	_, err = r.Save(t.Context(), "shop", repo.Tree{Entries: []repo.TreeEntry{{Name: "new", Data: []byte("new")}}}, nil)
	fails(t, "save", err, respaldo.RepoFailed, folder, "read-only")
	fails(t, "forget", r.Forget(t.Context(), b.ID), respaldo.RepoFailed, folder, "read-only")
	_, err = r.Maintain(t.Context(), repo.MaintainOptions{})
	fails(t, "maintain", err, respaldo.RepoFailed, folder, "read-only")
	_, err = repo.Create(t.Context(), repo.Config{URL: v.Path + "/other"}, password, repo.Options{CacheDir: t.TempDir()})
	fails(t, "create", err, respaldo.RepoFailed, v.Path, "read-only")
	must(t, r.Close(t.Context()))
}

func TestRestoreOntoAFullDisk(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 96 << 20})
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	dir := filepath.Join(t.TempDir(), "data")
	must(t, os.Mkdir(dir, 0o700))
	random(t, filepath.Join(dir, "ibdata1"), 30)
	b := backup(t, r, "shop", dir)
	to := filepath.Join(v.Path, "data")
	filler := filepath.Join(v.Path, "filler")
	restore := func(force bool, progress func(respaldo.Progress)) error {
		return r.Restore(t.Context(), b, map[string]string{"data": to}, repo.RestoreOptions{Force: force}, progress)
	}

	// Known beforehand: nothing is touched.
	random(t, filler, 60)
	fails(t, "no room", restore(false, nil), respaldo.Refused, to, "room")
	if list, _ := os.ReadDir(to); len(list) > 0 {
		t.Errorf("a refused restore left %v", list)
	}
	must(t, os.Remove(filler))

	// What is ours for a while leaves room for others, where a restore may take the last of it.
	var fs syscall.Statfs_t
	must(t, syscall.Statfs(v.Path, &fs))
	random(t, filler, int(int64(fs.Bfree)*fs.Bsize>>20)-33)
	err := r.Restore(t.Context(), b, map[string]string{"data": to}, repo.RestoreOptions{Working: true}, nil)
	fails(t, "a working copy", err, respaldo.Refused, to, "room", "state_dir")
	must(t, os.Remove(filler))

	// Not known beforehand: somebody else fills the disk meanwhile.
	full := false
	err = restore(false, func(p respaldo.Progress) {
		if p.Done == 0 || full {
			return
		}
		full = true
		f, err := os.Create(filler)
		must(t, err)
		buf := make([]byte, 1<<20)
		for err == nil {
			_, err = f.Write(buf)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Error(err)
		}
		f.Close()
	})
	fails(t, "full", err, respaldo.Failed, to, "no space left", "again")
	if !repo.Incomplete(to) {
		t.Error("not marked as incomplete")
	}
	must(t, os.Remove(filler))
	must(t, restore(false, nil))
	if listing(t, to) != listing(t, dir) {
		t.Error("restored otherwise the second time")
	}
	must(t, restore(true, nil)) // what it replaces counts as room
}

func TestForceStopsAtMountPoints(t *testing.T) {
	v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 48 << 20})
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	b := backup(t, r, "shop", dataDir(t))
	inner := filepath.Join(v.Path, "a", "binlogs")
	must(t, os.MkdirAll(inner, 0o755))
	must(t, syscall.Mount("tmpfs", inner, "tmpfs", 0, "size=1m"))
	defer syscall.Unmount(inner, 0)
	must(t, os.WriteFile(filepath.Join(inner, "binlog.000001"), nil, 0o600))
	err := r.Restore(t.Context(), b, map[string]string{"data": v.Path}, repo.RestoreOptions{Force: true}, nil)
	fails(t, "nested mount", err, respaldo.Refused, inner, "unmount")
	if _, err := os.Stat(filepath.Join(inner, "binlog.000001")); err != nil {
		t.Error(err)
	}
}

// On the machine of the restore mysql has another number, and one user does not exist.
func TestOwnersByName(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "repo"), "db1")
	dir := dataDir(t)
	mysql, err := user.Lookup("mysql")
	must(t, err)
	var uid, gid int
	fmt.Sscan(mysql.Uid, &uid)
	fmt.Sscan(mysql.Gid, &gid)
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, gid))
	}))
	must(t, os.Chown(filepath.Join(dir, "ibdata1"), 4711, 4712))
	setuid := filepath.Join(dir, "shop", "one")
	must(t, os.Chmod(setuid, 0o750|fs.ModeSetuid))
	b := backup(t, r, "shop", dir)

	passwd, err := os.ReadFile("/etc/passwd")
	must(t, err)
	defer func() { must(t, os.WriteFile("/etc/passwd", passwd, 0o644)) }()
	there := fmt.Sprintf("mysql:x:%d:", uid)
	moved := strings.Replace(string(passwd), there, "other:x:"+mysql.Uid+":", 1) + fmt.Sprintf("mysql:x:7777:%d::/nonexistent:/bin/false\n", gid)
	if !strings.Contains(string(passwd), there) {
		t.Fatalf("no mysql in %s", passwd)
	}
	must(t, os.WriteFile("/etc/passwd", []byte(moved), 0o644))

	to := filepath.Join(t.TempDir(), "to")
	must(t, r.Restore(t.Context(), b, map[string]string{"data": to}, repo.RestoreOptions{}, nil))
	if got, want := listing(t, to), listing(t, dir); got != want {
		t.Errorf("restored\n%s\ninstead of\n%s", got, want)
	}
	for name, want := range map[string][2]uint32{".": {7777, uint32(gid)}, "shop": {7777, uint32(gid)}, "shop/one": {7777, uint32(gid)},
		"elsewhere": {7777, uint32(gid)}, "ibdata1": {4711, 4712}} {
		info, err := os.Lstat(filepath.Join(to, name))
		must(t, err)
		if st := info.Sys().(*syscall.Stat_t); st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s belongs to %d:%d instead of %v", name, st.Uid, st.Gid, want)
		}
	}
}
