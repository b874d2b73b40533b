// Package debian fetches Debian packages into a folder of ours and unpacks them, as any
// user, without installing anything and without touching the machine's own apt state.
//
// apt itself does the work, with a private state and an empty list of installed packages,
// so that the whole closure down to libc is fetched. Its signature checks are on: every
// suite must be signed by a key of Debian's keyring.
package debian

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Request names what to fetch.
type Request struct {
	// State holds apt's lists, one folder for each set of suites; share it between
	// requests to fetch the lists once.
	State  string
	Suites []string // "bookworm", "bookworm-security"
	// Install is fetched with everything it depends on, Download without.
	Install  []string
	Download []string
	Dest     string // folder for the .deb files
}

// Fetch downloads the packages and returns their files. Concurrent calls, also of other
// processes, that share State and Suites wait for each other.
func Fetch(ctx context.Context, r Request) ([]string, error) {
	state := filepath.Join(r.State, strings.Join(r.Suites, ","))
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, err
	}
	unlock, err := Lock(ctx, filepath.Join(state, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	apt, err := newApt(state, r)
	if err != nil {
		return nil, err
	}
	if err := apt.update(ctx, time.Hour); err != nil {
		return nil, err
	}
	if err = apt.fetch(ctx, r); err != nil {
		// A package that vanished since the lists were read: read them again.
		if err := apt.update(ctx, 0); err != nil {
			return nil, err
		}
		err = apt.fetch(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(r.Dest, "*.deb"))
}

// Version returns the package and version that a file fetched by apt is named after.
func Version(deb string) (name, version string) {
	name, rest, _ := strings.Cut(filepath.Base(deb), "_")
	version, _, _ = strings.Cut(rest, "_")
	if plain, err := url.PathUnescape(version); err == nil {
		version = plain
	}
	return name, version
}

// Unpack extracts the files of one package below root, without its maintainer scripts and
// without owners. Exclude holds tar patterns such as "./usr/share/doc". Call Skeleton first.
func Unpack(ctx context.Context, deb, root string, exclude ...string) error {
	// tar applies the umask; a private one would hide the files from the guest's users.
	args := []string{"-c", `umask 022; deb=$1; shift; dpkg-deb --fsys-tarfile "$deb" | tar "$@"`, "sh", deb,
		"-x", "--keep-directory-symlink", "--no-same-owner", "--no-same-permissions", "--warning=no-timestamp", "-C", root}
	for _, x := range exclude {
		args = append(args, "--exclude="+x)
	}
	if out, err := exec.CommandContext(ctx, "sh", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, tail(out))
	}
	return nil
}

// Skeleton makes the merged /usr layout below root. It must be there before the first
// package, or packages that still ship /lib and /bin end up beside it.
func Skeleton(root string) error {
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// Lock takes an exclusive lock on a file, which it creates, and waits for it until ctx ends.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the lock on %s: %w", path, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Keyring holds the keys that must have signed what is fetched.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

type apt struct{ config, state, dest string }

func newApt(state string, r Request) (*apt, error) {
	mirror, security, err := mirrors("/etc/apt")
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"state/lists/partial", "cache", "log"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(r.Dest, "partial"), 0o755); err != nil {
		return nil, err
	}
	var sources strings.Builder
	for _, suite := range r.Suites {
		uri := mirror
		if strings.HasSuffix(suite, "-security") {
			uri = security
		}
		fmt.Fprintf(&sources, "deb [arch=amd64 signed-by=%s] %s %s main\n", Keyring, uri, suite)
	}
	a := &apt{config: filepath.Join(state, "apt.conf"), state: state, dest: r.Dest}
	// The machine's own drop-ins (proxies, certificates) are still read, its sources,
	// preferences and hooks are not. #clear works in a file given by -c, which is read last.
	config := fmt.Sprintf(`Dir::State "%[1]s/state"; Dir::State::status "%[1]s/empty";
Dir::Cache "%[1]s/cache"; Dir::Cache::archives "%[2]s"; Dir::Log "%[1]s/log";
Dir::Etc::sourcelist "%[1]s/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "%[1]s/empty"; Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64"; #clear APT::Architectures; APT::Architectures { "amd64"; };
APT::Install-Recommends "false"; APT::Keep-Downloaded-Packages "true"; APT::Sandbox::User "root";
Acquire::Languages "none"; Acquire::Retries "3";
#clear APT::Update::Pre-Invoke; #clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke; #clear DPkg::Post-Invoke; #clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::DEP-11; #clear Acquire::IndexTargets::deb::DEP-11-icons;
`, state, r.Dest)
	return a, errors.Join(
		os.WriteFile(filepath.Join(state, "empty"), nil, 0o644),
		os.WriteFile(filepath.Join(state, "sources.list"), []byte(sources.String()), 0o644),
		os.WriteFile(a.config, []byte(config), 0o644))
}

// update reads the suites' lists unless they were read within fresh.
func (a *apt) update(ctx context.Context, fresh time.Duration) error {
	stamp := filepath.Join(a.state, "updated")
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < fresh {
		return nil
	}
	if err := a.get(ctx, "", "update"); err != nil {
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

func (a *apt) fetch(ctx context.Context, r Request) error {
	if len(r.Install) > 0 {
		if err := a.get(ctx, "", append([]string{"-y", "--download-only", "install"}, r.Install...)...); err != nil {
			return err
		}
	}
	if len(r.Download) > 0 {
		return a.get(ctx, r.Dest, append([]string{"download"}, r.Download...)...)
	}
	return nil
}

func (a *apt) get(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-c", a.config, "-qq"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	// update calls a mirror that it could not reach a warning and ends well.
	if err == nil && args[0] == "update" && (bytes.Contains(out, []byte("W: Failed to fetch")) || bytes.Contains(out, []byte("Err:"))) {
		err = errors.New("some lists could not be fetched")
	}
	if err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, tail(out))
	}
	return nil
}

// mirrors reads which mirror this machine fetches Debian from, in the deb822 and the
// one-line format, and which one it fetches security updates from.
func mirrors(etc string) (mirror, security string, err error) {
	files, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	sort.Strings(files)
	for _, f := range append([]string{filepath.Join(etc, "sources.list")}, files...) {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		entries := oneLine(data)
		if strings.HasSuffix(f, ".sources") {
			entries = deb822(data)
		}
		for _, e := range entries {
			switch {
			case strings.Contains(e.suites, "-security") || strings.Contains(e.suites, "/updates"):
				if security == "" {
					security = e.uri
				}
			case mirror == "" && isDebian(e):
				mirror = e.uri
			}
		}
	}
	if mirror == "" {
		return "", "", errors.New("the apt sources of this machine name no Debian mirror; add one to /etc/apt/sources.list.d")
	}
	if security == "" {
		security = strings.TrimSuffix(mirror, "/") + "-security"
	}
	return mirror, security, nil
}

// isDebian tells a mirror of Debian from the other archives a machine may use: it has the
// component main and suites named after a Debian release.
func isDebian(e source) bool {
	if !strings.Contains(" "+e.components+" ", " main ") {
		return false
	}
	for _, suite := range strings.Fields(e.suites) {
		release, _, _ := strings.Cut(suite, "-")
		switch release {
		case "buster", "bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "oldoldstable", "testing", "unstable":
			return true
		}
	}
	return false
}

type source struct{ uri, suites, components string }

func deb822(data []byte) []source {
	var found []source
	for _, stanza := range strings.Split(string(data), "\n\n") {
		fields := map[string]string{}
		last := ""
		for _, line := range strings.Split(stanza, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
				fields[last] += " " + strings.TrimSpace(line)
			default:
				key, value, _ := strings.Cut(line, ":")
				last = strings.ToLower(key)
				fields[last] = strings.TrimSpace(value)
			}
		}
		uris := strings.Fields(fields["uris"])
		if len(uris) > 0 && strings.Contains(fields["types"], "deb") && fields["enabled"] != "no" {
			found = append(found, source{uris[0], fields["suites"], fields["components"]})
		}
	}
	return found
}

func oneLine(data []byte) []source {
	var found []source
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		rest, ok := strings.CutPrefix(line, "deb ")
		if !ok {
			continue
		}
		if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, "[") {
			_, rest, _ = strings.Cut(rest, "]")
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			found = append(found, source{f[0], f[1], strings.Join(f[2:], " ")})
		}
	}
	return found
}

func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	return strings.Join(lines, "\n")
}
