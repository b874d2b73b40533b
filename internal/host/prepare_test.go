package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// files makes a machine out of paths and contents.
func files(t *testing.T, content map[string]string) *Host {
	t.Helper()
	h := &Host{Run: run.Local{}, Root: t.TempDir()}
	for path, text := range content {
		if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.path(path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *Host) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(h.path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var someMount = Mount{Source: "/dev/mysql/mysql", Dir: "/srv/my data", Type: "ext4", Options: "noatime,nofail", Pass: 2}

func TestFstab(t *testing.T) {
	const theirs = "# theirs\nUUID=1 / ext4 errors=remount-ro 0 1\n\n/dev/sr0\t/media udf,iso9660 user,noauto 0 0" // and no newline at its end
	h := files(t, map[string]string{Fstab: theirs})
	if err := os.Chmod(h.path(Fstab), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time after a crash
		if err := h.AddMount(someMount); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := h.read(t, Fstab), theirs+"\n"+fstabMark+"\n/dev/mysql/mysql /srv/my\\040data ext4 noatime,nofail 0 2\n"; got != want {
		t.Errorf("fstab is\n%s\nnot\n%s", got, want)
	}
	if got := h.read(t, Fstab+".before-respaldo"); got != theirs {
		t.Errorf("the copy is\n%s", got)
	}
	if info, _ := os.Stat(h.path(Fstab)); info.Mode().Perm() != 0o600 {
		t.Errorf("its mode became %s", info.Mode())
	}
	if err := h.RemoveMount(someMount); err != nil {
		t.Fatal(err)
	}
	if got := h.read(t, Fstab); got != theirs+"\n" {
		t.Errorf("after the removal it is\n%s", got)
	}
}

// Nobody's line but ours goes, though ours may have got other options since.
func TestFstabRemovesOurs(t *testing.T) {
	h := files(t, map[string]string{Fstab: fstabMark + "\n/dev/mysql/mysql /srv/my\\040data ext4 defaults 0 0\n/dev/mysql/mysql /srv/my\\040data/2 ext4 defaults 0 0\n"})
	if err := h.RemoveMount(someMount); err != nil {
		t.Fatal(err)
	}
	if got := h.read(t, Fstab); got != "/dev/mysql/mysql /srv/my\\040data/2 ext4 defaults 0 0\n" {
		t.Errorf("fstab is\n%s", got)
	}
	theirs := "/dev/mysql/mysql /srv/my\\040data ext4 defaults 0 0\n"
	h = files(t, map[string]string{Fstab: theirs})
	if err := h.RemoveMount(someMount); err != nil || h.read(t, Fstab) != theirs {
		t.Errorf("%v; fstab is\n%s", err, h.read(t, Fstab))
	}
}

func TestFstabConflict(t *testing.T) {
	for line, refused := range map[string]bool{
		"/dev/sdb1 /srv/my\\040data ext4 defaults 0 0":  true,
		"/dev/sdb1 /srv/my\\040data/ ext4 defaults 0 0": true,
		"/dev/mysql/mysql /elsewhere ext4 defaults 0 0": true,
		"#/dev/sdb1 /srv/my\\040data ext4 defaults 0 0": false,
		"/dev/sdb1 /srv ext4 defaults 0 0":              false,
		"LABEL=x":                                       false,
	} {
		h := files(t, map[string]string{Fstab: "# first\n" + line + "\n"})
		err := h.AddMount(someMount)
		if refused && (respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), line)) {
			t.Errorf("%s: %v", line, err)
		}
		if !refused && err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	h := files(t, nil) // no fstab at all
	if err := h.AddMount(someMount); err == nil || !errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(h.path("/etc"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(h.path("/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.AddMount(someMount); err != nil || !strings.HasPrefix(h.read(t, Fstab), fstabMark) {
		t.Errorf("without a table: %v", err)
	}
}

func TestOwnFiles(t *testing.T) {
	const option, unit = "/etc/mysql/conf.d/zz.cnf", "/etc/systemd/system/mariadb.service.d/respaldo.conf"
	h := files(t, map[string]string{"/etc/mysql/conf.d/theirs.cnf": "[mysqld]\n"})
	for _, path := range []string{option, unit} {
		for range 2 {
			if err := h.WriteOwn(path, "[mysqld]\n"); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.WriteOwn("/etc/mysql/conf.d/theirs.cnf", "x"); respaldo.KindOf(err) != respaldo.Refused {
			t.Errorf("somebody else's file: %v", err)
		}
		for range 2 {
			if err := h.RemoveOwn(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.RemoveOwn("/etc/mysql/conf.d/theirs.cnf"); err != nil {
			t.Fatal(err)
		}
	}
	h.read(t, "/etc/mysql/conf.d/theirs.cnf")
	if _, err := os.Stat(h.path("/etc/systemd/system/mariadb.service.d")); !os.IsNotExist(err) {
		t.Errorf("the folder that was made for the unit: %v", err)
	}
}

// parser stands for apparmor_parser, which needs a kernel with AppArmor.
type parser struct{ calls []string }

func (p *parser) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	p.calls = append(p.calls, c.String())
	return run.Result{}, nil
}

func TestAppArmor(t *testing.T) {
	kernel := map[string]string{
		"/sys/kernel/security/apparmor/profiles": "/usr/bin/man (enforce)\n/usr/sbin/mysqld (enforce)\n",
		"/etc/apparmor.d/usr.sbin.mysqld":        "/usr/sbin/mysqld {\n  #include <local/usr.sbin.mysqld>\n}\n",
		"/etc/apparmor.d/local/usr.sbin.mysqld":  "# Site-specific additions",
	}
	h, loads := files(t, kernel), &parser{}
	h.Run = loads
	p, err := h.Profile()
	if err != nil || p == nil || p.Local != "/etc/apparmor.d/local/usr.sbin.mysqld" {
		t.Fatalf("%+v, %v", p, err)
	}
	for range 2 {
		if err := h.Allow(t.Context(), p, "/srv/mysql"); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := h.read(t, p.Local), "# Site-specific additions\n# respaldo prepare: /srv/mysql\n  \"/srv/mysql/\" r,\n  \"/srv/mysql/**\" rwk,\n# respaldo prepare: end\n"; got != want {
		t.Errorf("the additions are\n%s", got)
	}
	if err := h.Disallow(t.Context(), p, "/srv/mysql"); err != nil || h.read(t, p.Local) != "# Site-specific additions\n" {
		t.Errorf("%v; the additions are\n%s", err, h.read(t, p.Local))
	}
	if len(loads.calls) != 3 || loads.calls[0] != "apparmor_parser -r /etc/apparmor.d/usr.sbin.mysqld" {
		t.Errorf("ran %q", loads.calls)
	}
	kernel["/etc/apparmor.d/usr.sbin.mysqld"] = "/usr/sbin/mysqld {\n}\n"
	if _, err := files(t, kernel).Profile(); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a profile without local additions: %v", err)
	}
	kernel["/sys/kernel/security/apparmor/profiles"] = "/usr/sbin/mysqld (complain)\nsshd (enforce)\n"
	if p, err := files(t, kernel).Profile(); p != nil || err != nil {
		t.Errorf("none is enforced: %+v, %v", p, err)
	}
}

func TestSetAside(t *testing.T) {
	parent := t.TempDir()
	dir, aside, to := filepath.Join(parent, "mysql"), filepath.Join(parent, "mysql.before"), filepath.Join(parent, "data")
	for path, text := range map[string]string{dir: "old", to: "new"} {
		if err := errors.Join(os.Mkdir(path, 0o750), os.WriteFile(path+"/file", []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	says := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path + "/file"); string(got) != want {
			t.Errorf("%s says %q, not %q: %v", path, got, want, err)
		}
	}
	for range 2 {
		if err := SetAside(dir, aside, to); err != nil {
			t.Fatal(err)
		}
		says(dir, "new")
		says(aside, "old")
	}
	if err := SetAside(dir, aside, "/elsewhere"); err == nil {
		t.Error("a link of somebody else's was taken for ours")
	}
	for range 2 {
		if err := PutBack(dir, aside, to); err != nil {
			t.Fatal(err)
		}
		says(dir, "old")
		if _, err := os.Lstat(aside); !os.IsNotExist(err) {
			t.Errorf("something is left at %s: %v", aside, err)
		}
	}
	// A crash between making the link and exchanging it.
	if err := errors.Join(os.Symlink(to, aside), SetAside(dir, aside, to)); err != nil {
		t.Fatal(err)
	}
	says(aside, "old")
	// And, where no filesystem exchanges names, between the two renames.
	if err := errors.Join(os.Remove(dir), SetAside(dir, aside, to)); err != nil {
		t.Fatal(err)
	}
	says(dir, "new")
	if err := errors.Join(os.Remove(dir), PutBack(dir, aside, to)); err != nil {
		t.Fatal(err)
	}
	says(dir, "old")
}

func TestSameTree(t *testing.T) {
	change := map[string]func(dir string) error{
		"content": func(d string) error {
			return keepTime(d+"/db/t.ibd", func(p string) error { return os.WriteFile(p, []byte("tabl3"), 0o640) })
		},
		"size":    func(d string) error { return os.Truncate(d+"/db/t.ibd", 3) },
		"time":    func(d string) error { return os.Chtimes(d+"/db/t.ibd", time.Time{}, time.Unix(1, 0)) },
		"mode":    func(d string) error { return os.Chmod(d+"/db", 0o700) },
		"link":    func(d string) error { return errors.Join(os.Remove(d+"/link"), os.Symlink("elsewhere", d+"/link")) },
		"missing": func(d string) error { return os.Remove(d + "/empty") },
		"more":    func(d string) error { return os.WriteFile(d+"/db/stray", nil, 0o640) },
		"hard link": func(d string) error {
			return keepTime(d+"/again", func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, []byte("table"), 0o640)) })
		},
		"attribute":     func(d string) error { return unix.Setxattr(d+"/db/t.ibd", "user.note", []byte("other"), 0) },
		"one attribute": func(d string) error { return unix.Setxattr(d+"/db", "user.more", []byte("x"), 0) },
	}
	original := filepath.Join(t.TempDir(), "original")
	if err := errors.Join(os.MkdirAll(original+"/db", 0o750), os.WriteFile(original+"/db/t.ibd", []byte("table"), 0o640), os.WriteFile(original+"/empty", nil, 0o600),
		os.Link(original+"/db/t.ibd", original+"/again"), os.Symlink("db/t.ibd", original+"/link"), os.WriteFile(original+"/holes", nil, 0o640), os.Truncate(original+"/holes", 1<<20)); err != nil {
		t.Fatal(err)
	}
	attributes := unix.Setxattr(original+"/db/t.ibd", "user.note", []byte("kept"), 0) == nil // tmpfs may have none
	copied := func() string {
		to := filepath.Join(t.TempDir(), "copy")
		if _, err := (run.Local{}).Run(t.Context(), run.Cmd{Argv: []string{"cp", "--archive", "--sparse=auto", "--no-target-directory", original, to}}); err != nil {
			t.Fatal(err)
		}
		return to
	}
	var read int64
	tree, err := SameTree(t.Context(), original, copied(), func(n int64) { read += n })
	if err != nil || tree.Files != 3 || tree.Bytes != 1<<20+5 || read != tree.Bytes {
		t.Errorf("a copy: %+v, %d bytes read, %v", tree, read, err)
	}
	for what, f := range change {
		if strings.Contains(what, "attribute") && !attributes {
			continue
		}
		to := copied()
		if err := f(to); err != nil {
			t.Fatal(err)
		}
		if _, err := SameTree(t.Context(), original, to, nil); !errors.Is(err, ErrDiffers) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := SameTree(t.Context(), original, original+"-absent", nil); !errors.Is(err, ErrDiffers) {
		t.Errorf("no copy at all: %v", err)
	}
	if n, err := Occupied(original); err != nil || n >= 1<<20 {
		t.Errorf("holes take room: %d, %v", n, err)
	}
}

// keepTime changes a file behind its time's back.
func keepTime(path string, change func(string) error) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(change(path), os.Chtimes(path, time.Time{}, info.ModTime()))
}
