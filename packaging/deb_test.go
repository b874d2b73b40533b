// Package packaging has no code: these tests make the Debian package, install it and
// remove it again.
package packaging_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/config"
)

// command runs a program at the top of the house and returns what it printed.
func command(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// made is the package of the program as it is now, in a folder of its own.
func made(t *testing.T) (deb string) {
	t.Helper()
	for _, source := range []string{"cmd", "internal", "packaging", "docs"} { // go test caches results by what the test itself has read
		if err := filepath.WalkDir("../"+source, func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "respaldo")
	command(t, "go", "build", "-ldflags=-X main.version=v1.2.3-4-gabcdef", "-o", program, "./cmd/respaldo")
	deb = command(t, "sh", "packaging/deb.sh", program, dir)
	again := command(t, "sh", "packaging/deb.sh", program, filepath.Join(dir, "again"))
	one, err := os.ReadFile(deb)
	two, err2 := os.ReadFile(again)
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the package made twice is not the same")
	}
	return deb
}

// What the package does to a machine: it puts its files where they belong, enables nothing,
// and when it goes, what brings backups back stays.
func TestDebianPackage(t *testing.T) {
	deb := made(t)
	if filepath.Base(deb) != "respaldo_1.2.3+4+gabcdef_"+command(t, "dpkg", "--print-architecture")+".deb" {
		t.Errorf("it is called %s", deb)
	}
	if got := command(t, "dpkg-deb", "-f", deb, "Recommends"); got != "lvm2 | btrfs-progs" {
		t.Errorf("it recommends %q", got)
	}
	contents := command(t, "dpkg-deb", "-c", deb)
	for path, mode := range map[string]string{
		"/usr/bin/respaldo":                                  "-rwxr-xr-x",
		"/etc/respaldo/respaldo.toml":                        "-rw-------",
		"/usr/lib/systemd/system/respaldo-backup@.service":   "-rw-r--r--",
		"/usr/lib/systemd/system/respaldo-backup@.timer":     "-rw-r--r--",
		"/usr/lib/systemd/system/respaldo-cleanup@.service":  "-rw-r--r--",
		"/usr/lib/systemd/system/respaldo-cleanup@.timer":    "-rw-r--r--",
		"/usr/lib/systemd/system/respaldo-status.service":    "-rw-r--r--",
		"/usr/lib/systemd/system/respaldo-status.timer":      "-rw-r--r--",
		"/usr/share/man/man8/respaldo-backup.8.gz":           "-rw-r--r--",
		"/usr/share/man/man8/respaldo-status.8.gz":           "-rw-r--r--",
		"/usr/share/bash-completion/completions/respaldo":    "-rw-r--r--",
		"/usr/share/zsh/vendor-completions/_respaldo":        "-rw-r--r--",
		"/usr/share/fish/vendor_completions.d/respaldo.fish": "-rw-r--r--",
		"/usr/share/doc/respaldo/copyright":                  "-rw-r--r--",
		"/usr/share/doc/respaldo/changelog.gz":               "-rw-r--r--",
		"/usr/share/doc/respaldo/configuration.md":           "-rw-r--r--",
		"/usr/share/doc/respaldo/samples/full.toml":          "-rw-r--r--",
	} {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(mode) + ` root/root .* \.` + regexp.QuoteMeta(path) + `$`).MatchString(contents) {
			t.Errorf("the package has no %s of mode %s:\n%s", path, mode, contents)
		}
	}

	root := t.TempDir()
	for _, dir := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root+"/var/lib/dpkg/status", "")
	dpkg := func(args ...string) string {
		return command(t, append([]string{"dpkg", "--root=" + root, "--log=/dev/null", "--force-not-root", "--force-script-chrootless", "--force-bad-path"}, args...)...)
	}
	said := dpkg("-i", deb)
	if !strings.Contains(said, "makes no backups yet") || !strings.Contains(said, "systemctl enable --now respaldo-backup@main.timer") || !strings.Contains(said, "a rollback that a power cut left midway") {
		t.Errorf("it does not say what to do next:\n%s", said)
	}
	if got := command(t, root+"/usr/bin/respaldo", "version"); !strings.Contains(got, "v1.2.3-4-gabcdef") {
		t.Errorf("installed is %q", got)
	}
	if c, err := config.Load(root + "/etc/respaldo/respaldo.toml"); err != nil || c.Repository.URL != "" || c.Names()[0] != "main" {
		t.Errorf("its configuration: %v", err)
	}
	if enabled, _ := filepath.Glob(root + "/etc/systemd/system/*/*"); len(enabled) > 0 {
		t.Errorf("it enables %s", enabled)
	}
	verifyUnits(t, root)

	ledger, password, cache := root+"/var/lib/respaldo/main.ledger", root+"/etc/respaldo/password", root+"/var/cache/respaldo/x"
	for _, path := range []string{ledger, password, cache} {
		write(t, path, "kept")
	}
	said = dpkg("--purge", "respaldo")
	for path, stays := range map[string]bool{ledger: true, password: true, cache: false, root + "/usr/bin/respaldo": false, root + "/etc/respaldo/respaldo.toml": false} {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) == stays {
			t.Errorf("after the purge, %s: %v", path, err)
		}
	}
	if !strings.Contains(said, "/var/lib/respaldo is not empty and stays") {
		t.Errorf("it does not say what stays:\n%s", said)
	}
}

// verifyUnits has systemd read the installed units, on a machine that has it.
func verifyUnits(t *testing.T, root string) {
	t.Helper()
	units, err := filepath.Glob(root + "/usr/lib/systemd/system/respaldo*")
	if err != nil || len(units) != 6 {
		t.Fatalf("%q %v", units, err)
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("this machine has no systemd-analyze: the units are not verified")
		return
	}
	var names []string
	for _, unit := range units {
		names = append(names, strings.Replace(filepath.Base(unit), "@", "@main", 1))
	}
	for _, target := range []string{"sysinit.target", "basic.target", "timers.target", "shutdown.target", "network-online.target", "time-set.target", "time-sync.target"} {
		write(t, root+"/usr/lib/systemd/system/"+target, "[Unit]\nDescription=x\n")
	}
	cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--root=" + root}, names...)...)
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
