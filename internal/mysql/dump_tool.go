package mysql

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// DumpTool is a program on this machine that makes logical dumps.
type DumpTool struct {
	Program respaldo.Binary
	// Version is the release of mysqldump or mariadb-dump; of mydumper, its own.
	Version  respaldo.Version
	Mydumper bool // writes a folder of files, and not one stream of SQL
}

// String names the program and its release, for people.
func (t DumpTool) String() string {
	v := t.Version
	name := "mysqldump"
	switch {
	case t.Mydumper:
		name = "mydumper"
	case v.Flavor == respaldo.MariaDB:
		name = "mariadb-dump"
	}
	return fmt.Sprintf("%s %d.%d.%d", name, v.Major, v.Minor, v.Patch)
}

// The tools that can be asked for by name.
const (
	ToolAuto      = "auto" // mysqldump or mariadb-dump, whichever fits the server
	ToolMysqldump = "mysqldump"
	ToolMydumper  = "mydumper"
)

// DumpToolRequest says for which server a dump program is wanted.
type DumpToolRequest struct {
	Server respaldo.Version
	Beside respaldo.Binary // the server program: its own dump program lies beside it
	Tool   string          // one of the Tool constants; "" is ToolAuto
	Path   string          // of the program, if the user names one
	Log    *slog.Logger
}

// FindDumpTool finds a dump program that fits the server: the one that the request names,
// one beside the server program or in the bin folder next to that, or one on the PATH. Each is
// asked what it is. It fails with Kind Refused, and says of every program that it found why
// not, if none will do.
func FindDumpTool(ctx context.Context, r DumpToolRequest) (DumpTool, error) {
	var unfit []string
	var other *DumpTool // of the other flavor, which is second choice
	for _, program := range r.candidates() {
		tool, err := askDumpTool(ctx, program, r.Log)
		if ctx.Err() != nil {
			return DumpTool{}, context.Cause(ctx)
		}
		path := program.Argv[len(program.Argv)-1]
		if err == nil {
			err = tool.fits(r.Server)
		}
		switch {
		case err != nil:
			unfit = append(unfit, path+" "+err.Error())
		case tool.Mydumper || tool.Version.Flavor == r.Server.Flavor:
			return tool, nil
		case other == nil:
			other = &tool
		}
	}
	if other != nil {
		return *other, nil
	}
	want := "mysqldump"
	switch {
	case r.Tool == ToolMydumper:
		want = "mydumper"
	case r.Server.Flavor == respaldo.MariaDB:
		want = "mariadb-dump"
	}
	hint := fmt.Sprintf("install the client programs of %s, or name a program that fits with --program", r.Server)
	if want == "mydumper" {
		hint = "install mydumper, name it with --program, or leave --tool out"
	}
	if len(unfit) == 0 {
		return DumpTool{}, refused("there is no "+want+" on this machine", hint)
	}
	return DumpTool{}, refused(fmt.Sprintf("no %s here fits %s: %s", want, r.Server, strings.Join(unfit, "; ")), hint)
}

// candidates are the programs that exist, the likeliest first.
func (r DumpToolRequest) candidates() []respaldo.Binary {
	if r.Path != "" {
		return []respaldo.Binary{{Argv: []string{r.Path}}}
	}
	names := []string{"mysqldump", "mariadb-dump"}
	switch {
	case r.Tool == ToolMydumper:
		names = []string{"mydumper"}
	case r.Server.Flavor == respaldo.MariaDB:
		slices.Reverse(names)
	}
	var found []respaldo.Binary
	add := func(dir, name string, with respaldo.Binary) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return
		}
		// A server that was started through a dynamic loader has clients that need it, too.
		found = append(found, respaldo.Binary{Argv: append(slices.Clone(with.Argv), path), Env: with.Env})
	}
	if n := len(r.Beside.Argv); n > 0 {
		with := respaldo.Binary{Argv: r.Beside.Argv[:n-1], Env: r.Beside.Env}
		beside := filepath.Dir(r.Beside.Argv[n-1])
		for _, dir := range []string{beside, filepath.Join(beside, "../bin")} {
			for _, name := range names {
				add(dir, name, with)
			}
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + ":/usr/local/bin:/usr/bin:/bin") {
		for _, name := range names {
			add(dir, name, respaldo.Binary{})
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(found, func(b respaldo.Binary) bool {
		key := strings.Join(b.Argv, "\x00")
		again := seen[key]
		seen[key] = true
		return again
	})
}

// What dump programs say of themselves: "mysqldump  Ver 8.0.36 for Linux on x86_64 (…)",
// "mysqldump  Ver 10.13 Distrib 5.7.20, for Linux", "mariadb-dump from 11.8.3-MariaDB, client
// 10.19 for …", "mydumper 0.10.1, built against MySQL 10.11.4".
var (
	saysMydumper = regexp.MustCompile(`^mydumper v?([0-9][^\s,]*)`)
	saysDump     = regexp.MustCompile(`(?:Distrib|from|Ver) ([0-9][^\s,]*)(.*)$`)
)

func askDumpTool(ctx context.Context, program respaldo.Binary, log *slog.Logger) (DumpTool, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := run.Local{Log: log}.Run(ctx, run.Cmd{Argv: append(slices.Clone(program.Argv), "--version"), Env: program.Env, Quiet: true})
	if err != nil {
		return DumpTool{}, fmt.Errorf("cannot be run (%w)", err)
	}
	said, _, _ := strings.Cut(string(out.Stdout), "\n")
	tool, err := parseDumpTool(said)
	tool.Program = program
	return tool, err
}

func parseDumpTool(said string) (tool DumpTool, err error) {
	if m := saysMydumper.FindStringSubmatch(said); m != nil {
		tool.Mydumper = true
		tool.Version, err = respaldo.ParseVersion(m[1], "")
		return tool, err
	}
	m := saysDump.FindStringSubmatch(said)
	if before, after, ok := strings.Cut(said, " Distrib "); ok && before != "" { // the number before it is the format's
		m = saysDump.FindStringSubmatch("Distrib " + after)
	}
	if m == nil {
		return tool, fmt.Errorf("does not say which release it is (%q)", said)
	}
	tool.Version, err = respaldo.ParseVersion(m[1], m[2])
	return tool, err
}

// fits says why a program will not do for a server. An older one does not know what the
// server has, and would leave it out without a word.
func (t DumpTool) fits(server respaldo.Version) error {
	v := t.Version
	older := v.Major < server.Major || v.Major == server.Major && v.Minor < server.Minor
	old := server.Flavor == respaldo.MySQL && server.Major < 8
	switch {
	case t.Mydumper:
		if server.AtLeast(respaldo.MySQL, 8, 4, 0) && v.Major == 0 && v.Minor < 16 {
			return fmt.Errorf("is %s, which asks %s for what that no longer has", t, server)
		}
		return nil
	case v.Flavor == server.Flavor && older:
		return fmt.Errorf("is the older %s", t)
	case v.Flavor == server.Flavor:
		return nil
	case server.Flavor == respaldo.MariaDB:
		return fmt.Errorf("is MySQL's %s, which knows neither sequences nor accounts of MariaDB", t)
	case !old:
		return fmt.Errorf("is MariaDB's %s, which knows neither accounts nor statistics of MySQL 8", t)
	case server.Minor < 7 && v.AtLeast(respaldo.MariaDB, 10, 6, 0):
		return fmt.Errorf("is %s, which asks for columns that %s does not have", t, server)
	}
	return nil
}
