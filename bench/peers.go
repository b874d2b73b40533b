package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// peersRelease is the Debian release whose restic and zstd are measured; mariabackup is
// the server's own.
const peersRelease = "trixie"

// peers are the programs to measure against, in the cache folder.
type peers struct {
	root     string
	packages map[string]string // versions
}

func fetchPeers(ctx context.Context, dir string) (*peers, error) {
	return fetchPackages(ctx, filepath.Join(dir, "peers-"+peersRelease), peersRelease, "restic", "zstd", "libc-bin")
}

// fetchPackages unpacks Debian packages, with everything they need, below a folder, unless
// it is there already.
func fetchPackages(ctx context.Context, root, release string, install ...string) (*peers, error) {
	p := &peers{root: root, packages: map[string]string{}}
	unlock, err := debian.Lock(ctx, p.root+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(p.root); errors.Is(err, fs.ErrNotExist) {
		if err := p.fetch(ctx, release, install); err != nil {
			return nil, err
		}
	}
	list, err := os.ReadFile(filepath.Join(p.root, "versions"))
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(list)), "\n") {
		name, version, _ := strings.Cut(line, " ")
		p.packages[name] = version
	}
	return p, nil
}

func (p *peers) fetch(ctx context.Context, release string, install []string) error {
	tmp := p.root + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	debs, err := debian.Fetch(ctx, debian.Request{
		State:   filepath.Join(servers.Cache(), "apt"),
		Suites:  []string{release, release + "-updates", release + "-security"},
		Install: install,
		Dest:    filepath.Join(tmp, "debs"),
	})
	if err != nil {
		return err
	}
	if err := debian.Skeleton(tmp); err != nil {
		return err
	}
	var versions []string
	for _, deb := range debs {
		if err := debian.Unpack(ctx, deb, tmp, "./usr/share/doc", "./usr/share/man", "./usr/share/locale"); err != nil {
			return err
		}
		name, version := debian.Version(deb)
		versions = append(versions, name+" "+version)
	}
	sort.Strings(versions)
	if err := os.WriteFile(filepath.Join(tmp, "versions"), []byte(strings.Join(versions, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(tmp, "debs")); err != nil {
		return err
	}
	return os.Rename(tmp, p.root)
}

// program is how to run one of them: with its own loader and libraries.
func (p *peers) program(name string, args ...string) []string {
	libs := filepath.Join(p.root, "usr/lib/x86_64-linux-gnu")
	return append([]string{filepath.Join(libs, "ld-linux-x86-64.so.2"), "--library-path", libs, filepath.Join(p.root, "usr/bin", name)}, args...)
}

// contender is one way to back up and restore. Its steps follow one another, and leave
// nothing but dir behind.
type contender struct {
	name  string
	dir   string
	steps []step
}

// Names of contenders; all ratios are to the baseline.
const (
	ours     = "respaldo"
	baseline = "mariabackup | zstd -1"
)

func contenders(p *peers, data *dataset, profile string) ([]contender, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if profile != "" {
		if profile, err = filepath.Abs(profile); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(profile, 0o755); err != nil {
			return nil, err
		}
	}
	dir := func(name string) string { return filepath.Join(data.work, name) }
	return []contender{
		respaldoContender(self, profile, data, dir("respaldo")),
		mariabackup(p, data, dir("mariabackup")),
		tar(p, data, dir("tar")),
		restic(p, data, dir("restic")),
	}, nil
}

func respaldoContender(self, profile string, data *dataset, dir string) contender {
	repository, restored := filepath.Join(dir, "repository"), filepath.Join(dir, "restored")
	act := func(action string, more ...string) [][]string {
		return [][]string{append([]string{self, contenderCommand, action, repository, filepath.Join(dir, "cache")}, more...)}
	}
	env := []string{profileVariable + "=" + profile}
	save := step{warm: data.dir, pipe: act("backup", data.dir, tellsRead), env: env, writes: repository, stores: true}
	first, again := save, save
	first.name, again.name = backupStep, againStep
	first.before = func(ctx context.Context) error { return setUp(ctx, dir, act("create", data.dir), nil) }
	return contender{ours, dir, []step{first, again, {
		name: restoreStep, warm: repository, pipe: act("restore", restored), env: env, writes: restored,
		after: func(context.Context) error { return sameTree(data.dir, restored) },
	}}}
}

func restic(p *peers, data *dataset, dir string) contender {
	repository, restored := filepath.Join(dir, "repository"), filepath.Join(dir, "restored")
	env := []string{"RESTIC_PASSWORD=" + password, "RESTIC_REPOSITORY=" + repository, "RESTIC_CACHE_DIR=" + filepath.Join(dir, "cache")}
	act := func(args ...string) [][]string {
		return [][]string{p.program("restic", append([]string{"-q"}, args...)...)}
	}
	save := step{warm: data.dir, pipe: act("backup", data.dir), env: env, writes: repository, stores: true}
	first, again, forced := save, save, save
	first.name, again.name, forced.name = backupStep, againStep, againForcedStep
	first.before = func(ctx context.Context) error { return setUp(ctx, dir, act("init"), env) }
	forced.pipe = act("backup", "--force", data.dir)
	return contender{"restic", dir, []step{first, again, forced, {
		name: restoreStep, warm: repository, pipe: act("restore", "latest:"+data.dir, "--target", restored), env: env, writes: restored,
		after: func(context.Context) error { return sameTree(data.dir, restored) },
	}}}
}

func tar(p *peers, data *dataset, dir string) contender {
	archive, restored := filepath.Join(dir, "backup.tar.zst"), filepath.Join(dir, "restored")
	return contender{"tar | zstd -1", dir, []step{{
		name: backupStep, warm: data.dir, writes: archive, stores: true, out: archive,
		before: func(ctx context.Context) error { return setUp(ctx, dir, nil, nil, restored) },
		pipe:   [][]string{{"tar", "-C", data.dir, "-cf", "-", "."}, p.program("zstd", "-q", "-1", "-c")},
	}, {
		name: restoreStep, warm: archive, in: archive, writes: restored,
		pipe:  [][]string{p.program("zstd", "-q", "-d", "-c"), {"tar", "-C", restored, "-xf", "-"}},
		after: func(context.Context) error { return sameTree(data.dir, restored) },
	}}}
}

func mariabackup(p *peers, data *dataset, dir string) contender {
	stream, restored := filepath.Join(dir, "backup.xb.zst"), filepath.Join(dir, "restored")
	program := servers.Binary(server, "mariabackup")
	// It needs a running server; what that one does in the meantime is not counted.
	save := step{name: backupStep, warm: data.dir, writes: stream, stores: true, out: stream}
	save.pipe = [][]string{
		{program, "--no-defaults", "--backup", "--stream=xbstream", "--user=root", "--socket=" + data.socket, "--datadir=" + data.dir, "--target-dir=" + filepath.Join(dir, "tmp")},
		p.program("zstd", "-q", "-1", "-c"),
	}
	save.before = func(ctx context.Context) error {
		if err := setUp(ctx, dir, nil, nil, restored); err != nil {
			return err
		}
		return data.start(ctx)
	}
	save.after = func(context.Context) error { return data.stop() }
	return contender{baseline, dir, []step{save, {
		name: restoreStep, warm: stream, in: stream, writes: restored,
		pipe: [][]string{p.program("zstd", "-q", "-d", "-c"), {servers.Binary(server, "mbstream"), "-x", "-C", restored}},
	}, {
		name: prepareStep, warm: restored, writes: restored,
		pipe:  [][]string{{program, "--no-defaults", "--prepare", "--target-dir=" + restored}},
		after: func(ctx context.Context) error { return data.usable(ctx, restored) },
	}}}
}

// setUp makes a contender's folders and runs what makes its repository.
func setUp(ctx context.Context, dir string, pipe [][]string, env []string, folders ...string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, d := range append(folders, dir) {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if pipe == nil {
		return nil
	}
	run, err := start(ctx, step{pipe: pipe, env: env})
	if err != nil {
		return err
	}
	if _, err := run.wait(&Measurement{}); err != nil {
		return fmt.Errorf("cannot make a repository: %w", err)
	}
	return nil
}
