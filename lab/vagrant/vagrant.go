// Package vagrant has Debian's vagrant, fetched into the cache folder with all that it needs,
// Ruby among it. Nothing is installed, and no virtual machine is run: it reads Vagrantfiles.
package vagrant

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Release is the Debian whose vagrant this is, and that the Vagrantfile's machine runs.
const Release = "bookworm"

// recipe changes whenever the cache has to be made anew.
const recipe = "1 " + Release

// clutter is not unpacked: vagrant needs none of it.
var clutter = []string{"./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/lintian", "./usr/share/perl*",
	"./usr/lib/x86_64-linux-gnu/perl*", "./usr/lib/x86_64-linux-gnu/gconv", "./var"}

func home() string { return filepath.Join(servers.Cache(), "vagrant") }

// Ensure fetches vagrant unless it is there: some 60 MB.
func Ensure(ctx context.Context) error {
	dir := home()
	ready := func() bool {
		made, err := os.ReadFile(filepath.Join(dir, "recipe"))
		return err == nil && string(made) == recipe
	}
	if ready() {
		return nil
	}
	unlock, err := debian.Lock(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if ready() { // another process made it while we waited
		return nil
	}
	fmt.Fprintln(os.Stderr, "lab: fetching vagrant")
	tmp := dir + ".new"
	root, debs := filepath.Join(tmp, "root"), filepath.Join(tmp, "debs")
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	files, err := debian.Fetch(ctx, debian.Request{State: filepath.Join(servers.Cache(), "apt"),
		Suites: []string{Release, Release + "-updates", Release + "-security"}, Install: []string{"vagrant"}, Dest: debs})
	if err != nil {
		return err
	}
	if err := debian.Skeleton(root); err != nil {
		return err
	}
	for _, deb := range files {
		if err := debian.Unpack(ctx, deb, root, clutter...); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "dev"} { // Ruby writes to /dev/null, a plain file here
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(debs),
		os.WriteFile(filepath.Join(tmp, "recipe"), []byte(recipe), 0o644), os.RemoveAll(dir), os.Rename(tmp, dir))
}

// Validate runs vagrant validate on a Vagrantfile, without a provider, and returns what it
// says. With names the files that the Vagrantfile refers to, relative to its folder.
func Validate(ctx context.Context, vagrantfile string, with ...string) (said string, err error) {
	if err := Ensure(ctx); err != nil {
		return "", err
	}
	root := filepath.Join(home(), "root")
	work, err := os.MkdirTemp(filepath.Join(root, "tmp"), "validate")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	for _, file := range append(with, filepath.Base(vagrantfile)) {
		if err := copyFile(filepath.Join(filepath.Dir(vagrantfile), file), filepath.Join(work, file)); err != nil {
			return "", err
		}
	}
	inside := strings.TrimPrefix(work, root)
	cmd := exec.CommandContext(ctx, "/usr/bin/ruby", "/usr/bin/vagrant", "validate", "--ignore-provider")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + inside, "VAGRANT_CWD=" + inside, "VAGRANT_HOME=" + inside + "/home",
		"VAGRANT_CHECKPOINT_DISABLE=1", "VAGRANT_VAGRANTFILE=" + filepath.Base(vagrantfile)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if os.Geteuid() != 0 { // root of a user namespace may do that, too
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
