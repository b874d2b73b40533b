package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// release is the Debian release that the guest is made of.
const release = "bookworm"

// imageLayout is raised when the way of making the image changes.
const imageLayout = "5"

// packages is the guest's whole system, dependencies named: resolving them would pull in
// things that only maintainer scripts could set up.
var packages = strings.Fields(`
base-files base-passwd bash busybox-static coreutils dash debianutils diffutils e2fsprogs findutils grep gzip
hostname iproute2 iputils-ping kmod less libc-bin libcap2-bin login mawk mount ncurses-base openssh-client
openssh-server openssh-sftp-server passwd procps psmisc rsync sed socat sysvinit-utils tar udev util-linux
util-linux-extra zstd
lvm2 dmsetup dmeventd thin-provisioning-tools btrfs-progs xfsprogs logsave
systemd libsystemd-shared libapparmor1 libargon2-1 libcryptsetup12 libfdisk1 libip4tc2 libjson-c5 libp11-kit0 libseccomp2
libacl1 libaio1 libattr1 libaudit-common libaudit1 libblkid1 libbpf1 libbsd0 libbz2-1.0 libc6 libcap-ng0 libcap2
libcbor0.8 libcom-err2 libcrypt1 libdb5.3 libdebconfclient0 libdevmapper-event1.02.1 libdevmapper1.02.1 libedit2
libelf1 libexpat1 libext2fs2 libffi8 libfido2-1 libgcc-s1 libgcrypt20 libgdbm-compat4 libgdbm6 libgmp10
libgpg-error0 libgssapi-krb5-2 libidn2-0 libinih1 libk5crypto3 libkeyutils1 libkmod2 libkrb5-3 libkrb5support0
liblvm2cmd2.03 liblz4-1 liblzma5 liblzo2-2 libmd0 libmnl0 libmount1 libncurses6 libncursesw6 libnsl2 libnuma1
libpam-modules libpam-modules-bin libpam-runtime libpam0g libpcre2-8-0 libpopt0 libproc2-0 libreadline8
libselinux1 libsemanage-common libsemanage2 libsepol2 libsmartcols1 libss2 libssl3 libstdc++6 libsystemd0 libtinfo6
libtirpc-common libtirpc3 libudev1 libunistring2 liburcu8 liburing2 libuuid1 libwrap0 libxtables12 libxxhash0
libzstd1 readline-common zlib1g`)

// clutter is not unpacked into the guest: documentation, what drives hardware that a guest has
// not, and what systemd asks at every boot about disks and scripts that a guest has not.
var clutter = []string{"./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/lintian",
	"./usr/share/bash-completion", "./usr/share/icons", "./usr/include", "./usr/lib/x86_64-linux-gnu/gconv",
	"./lib/systemd/system-generators/systemd-[!f]*", "./usr/lib/systemd/catalog", "./lib/udev/hwdb.d", "./etc/init.d",
	"./usr/lib/uml/modules/*/kernel/drivers/[a-ln-z]*", "./usr/lib/uml/modules/*/kernel/sound", "./usr/lib/uml/modules/*/kernel/net"}

// image is what every guest boots from; it is never written to.
type image struct {
	kernel string // the linux program; see unpackKernel for how to run it
	root   string // ext4, mounted read-only below an overlay
}

func imageDir() string { return filepath.Join(servers.Cache(), "guest") }

func imageID() string {
	return fmt.Sprintf("layout %s release %s packages %s clutter %s kernel %s", imageLayout, release, packages, clutter, kernelSuite)
}

// ensureImage makes the guest's kernel and root image if the cache has none. Processes
// that need it at the same time wait for each other.
func ensureImage(ctx context.Context) (image, error) {
	dir := imageDir()
	img := image{kernel: filepath.Join(dir, "kernel/linux"), root: filepath.Join(dir, "root.ext4")}
	ready := func() bool {
		id, err := os.ReadFile(filepath.Join(dir, "recipe"))
		return err == nil && string(id) == imageID()
	}
	if ready() {
		return img, nil
	}
	unlock, err := debian.Lock(ctx, dir+".lock")
	if err != nil {
		return img, err
	}
	defer unlock()
	if ready() {
		return img, nil
	}
	fmt.Fprintln(os.Stderr, "lab: making the guest's root from Debian packages")
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return img, err
	}
	root := filepath.Join(tmp, "root")
	versions, err := unpackRoot(ctx, filepath.Join(tmp, "debs"), root)
	if err != nil {
		return img, fmt.Errorf("guest root: %w", err)
	}
	kernel, err := unpackKernel(ctx, tmp, root)
	if err != nil {
		return img, fmt.Errorf("guest kernel: %w", err)
	}
	versions = append(versions, kernel...)
	if err := finishRoot(ctx, root); err != nil {
		return img, fmt.Errorf("guest root: %w", err)
	}
	if err := makeImage(ctx, root, filepath.Join(tmp, "root.ext4")); err != nil {
		return img, err
	}
	if err := errors.Join(
		os.RemoveAll(root), os.RemoveAll(filepath.Join(tmp, "debs")),
		os.WriteFile(filepath.Join(tmp, "versions"), []byte(strings.Join(versions, "\n")+"\n"), 0o644),
		os.WriteFile(filepath.Join(tmp, "recipe"), []byte(imageID()), 0o644),
		os.RemoveAll(dir), os.Rename(tmp, dir)); err != nil {
		return img, err
	}
	for _, v := range versions {
		for _, p := range []string{"user-mode-linux ", "lvm2 ", "btrfs-progs ", "xfsprogs "} {
			if strings.HasPrefix(v, p) {
				fmt.Fprintf(os.Stderr, "lab: the guest has %s\n", v)
			}
		}
	}
	return img, nil
}

// Prepare fetches and makes what every guest boots from, so that the first Boot is not the
// one to wait for it.
func Prepare(ctx context.Context) error {
	_, err := ensureImage(ctx)
	return err
}

func unpackRoot(ctx context.Context, debs, root string) ([]string, error) {
	files, err := debian.Fetch(ctx, debian.Request{
		State:    filepath.Join(servers.Cache(), "apt"),
		Suites:   []string{release, release + "-updates", release + "-security"},
		Download: packages,
		Dest:     debs,
	})
	if err != nil {
		return nil, err
	}
	if err := debian.Skeleton(root); err != nil {
		return nil, err
	}
	var versions []string
	for _, f := range files {
		if err := debian.Unpack(ctx, f, root, clutter...); err != nil {
			return nil, err
		}
		versions = append(versions, versionOf(f))
	}
	return versions, nil
}

func versionOf(deb string) string {
	name, version := debian.Version(deb)
	return name + " " + version
}

// finishRoot does what the packages' maintainer scripts would have done.
func finishRoot(ctx context.Context, root string) error {
	at := func(path string) string { return filepath.Join(root, path) }
	var failed error
	do := func(err error) { failed = errors.Join(failed, err) }
	write := func(path, text string) {
		do(os.MkdirAll(filepath.Dir(at(path)), 0o755))
		do(os.WriteFile(at(path), []byte(text), 0o644))
	}
	link := func(target, path string) {
		do(os.RemoveAll(at(path)))
		do(os.Symlink(target, at(path)))
	}
	for _, d := range []string{"cache", "etc/lvm/archive", "etc/lvm/backup", "etc/ssh", "mnt", "opt/lab", "out", "proc", "root", "run", "src", "srv", "sys", "dev", "tmp",
		"var/lib/mysql", "var/log", "var/tmp"} {
		do(os.MkdirAll(at(d), 0o755))
	}
	passwd, err := os.ReadFile(at("usr/share/base-passwd/passwd.master"))
	do(err)
	group, err := os.ReadFile(at("usr/share/base-passwd/group.master"))
	do(err)
	accounts := string(passwd) + "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nmysql:x:102:102::/nonexistent:/bin/false\n"
	write("etc/passwd", accounts)
	write("etc/group", string(group)+"mysql:x:102:\nsystemd-journal:x:103:\ninput:x:104:\nkvm:x:105:\nrender:x:106:\nsgx:x:107:\n")
	var shadow strings.Builder
	lines := bufio.NewScanner(strings.NewReader(accounts))
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), ":")
		fmt.Fprintf(&shadow, "%s:*:19000:0:99999:7:::\n", name)
	}
	write("etc/shadow", shadow.String())
	do(os.Chmod(at("etc/shadow"), 0o600))
	write("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\nprotocols: files\n")
	write("etc/hosts", "127.0.0.1 localhost\n")
	write("etc/hostname", "lab\n")
	write("etc/fstab", "")
	write("etc/services", "ssh 22/tcp\nmysql 3306/tcp\n")
	for _, kind := range []string{"auth", "account", "password", "session", "session-noninteractive"} {
		facility, _, _ := strings.Cut(kind, "-")
		write("etc/pam.d/common-"+kind, facility+" required pam_permit.so\n")
	}
	write("etc/ssh/sshd_config", "PermitRootLogin yes\nUsePAM no\nHostKey /etc/ssh/ssh_host_ed25519_key\nSubsystem sftp internal-sftp\n")
	write("root/.bashrc", `PS1='\[\e[1m\]\h\[\e[0m\]:\w# '`+"\nalias ls='ls --color=auto'\n")
	do(os.Chmod(at("root"), 0o700))
	do(os.Chmod(at("tmp"), 0o777|fs.ModeSticky))
	do(os.Chmod(at("var/tmp"), 0o777|fs.ModeSticky))
	link("uml/modules", "usr/lib/modules")
	link("mawk", "usr/bin/awk")
	link("dash", "usr/bin/sh")
	link("/run", "var/run")
	link("/run/lock", "var/lock")
	link("/proc/self/mounts", "etc/mtab")
	for path, text := range systemdFiles() {
		write(path, text)
	}
	for path, target := range systemdLinks() {
		do(os.MkdirAll(filepath.Dir(at(path)), 0o755))
		link(target, path)
	}
	if failed != nil {
		return failed
	}
	// The guest's own tools, through its own loader: the host needs none of them.
	tool := func(program string, args ...string) error {
		cmd := exec.CommandContext(ctx, at("usr/lib64/ld-linux-x86-64.so.2"), append([]string{"--library-path", at("usr/lib/x86_64-linux-gnu"), at(program)}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
		}
		return nil
	}
	return errors.Join(
		tool("usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", at("etc/ssh/ssh_host_ed25519_key")),
		tool("usr/sbin/ldconfig", "-r", root))
}

// makeImage makes an ext4 image of a folder in which root owns everything, without being
// root: in a user namespace, or where those are forbidden by rewriting the owners.
func makeImage(ctx context.Context, root, path string) error {
	args := []string{"-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", "-m", "0", "-N", "40000", "-d", root, path, "1G"}
	mke2fs := sbin("mke2fs")
	if os.Geteuid() == 0 {
		return command(ctx, mke2fs, args...)
	}
	if command(ctx, "unshare", append([]string{"-r", mke2fs}, args...)...) == nil {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := command(ctx, mke2fs, args...); err != nil {
		return err
	}
	var script bytes.Buffer
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		fmt.Fprintf(&script, "sif \"/%[1]s\" uid 0\nsif \"/%[1]s\" gid 0\n", rel)
		return err
	})
	if err != nil {
		return err
	}
	owners := path + ".owners"
	if err := os.WriteFile(owners, script.Bytes(), 0o644); err != nil {
		return err
	}
	return errors.Join(command(ctx, sbin("debugfs"), "-w", "-f", owners, path), os.Remove(owners))
}

// makeRoot makes the filesystem that holds what a guest writes to its root, unless it is there.
func makeRoot(ctx context.Context, path string, bytes int64) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return command(ctx, sbin("mke2fs"), "-q", "-t", "ext4", "-E", "root_owner=0:0,nodiscard", "-m", "0", path, fmt.Sprintf("%dk", bytes>>10))
}

func command(ctx context.Context, program string, args ...string) error {
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, bytes.TrimSpace(out))
	}
	return nil
}

// sbin finds an administrator's program, which an ordinary user's PATH does not show.
func sbin(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, program); exec.Command(path, "-V").Run() == nil {
			return path
		}
	}
	return program
}
