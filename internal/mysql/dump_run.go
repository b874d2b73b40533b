package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// DumpScope is what is to be dumped: all databases, users and grants included, unless
// Databases or Tables name some.
type DumpScope struct {
	Databases []string
	Tables    []DumpTable
	Without   []DumpTable // tables and views to leave out; not for mydumper
}

// DumpTable names one table.
type DumpTable struct{ Database, Table string }

func (t DumpTable) String() string { return t.Database + "." + t.Table }

// ParseDumpTable reads "database.table". The database is what stands before the first dot.
func ParseDumpTable(s string) (DumpTable, error) {
	database, table, ok := strings.Cut(s, ".")
	if !ok || database == "" || table == "" {
		return DumpTable{}, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%q is not DATABASE.TABLE", s), Hint: "name tables with their databases: shop.orders"}
	}
	return DumpTable{database, table}, nil
}

// dumpCall is one run of a dump program.
type dumpCall struct {
	before   string // SQL in front of what it writes
	database string // the one that it begins in, "" where it says so itself
	args     []string
}

// calls are the runs that it takes to dump the scope: one, unless tables of several
// databases are asked for, which mysqldump cannot do at once.
func (t DumpTool) calls(scope DumpScope) []dumpCall {
	options := []string{"--default-character-set=utf8mb4", "--hex-blob", "--tz-utc", "--quick", "--triggers",
		"--max-allowed-packet=1G",
		// Nobody writes to a private server.
		"--skip-lock-tables"}
	for _, table := range scope.Without {
		options = append(options, "--ignore-table="+table.String())
	}
	if len(scope.Tables) == 0 {
		options = append(options, "--routines", "--events")
	}
	if len(scope.Databases) > 0 {
		return []dumpCall{{args: slices.Concat(options, []string{"--databases", "--"}, scope.Databases)}}
	}
	if len(scope.Tables) == 0 {
		return []dumpCall{{args: append(options, "--flush-privileges", "--all-databases")}}
	}
	var databases []string
	tables := map[string][]string{}
	for _, table := range scope.Tables {
		if tables[table.Database] == nil {
			databases = append(databases, table.Database)
		}
		tables[table.Database] = append(tables[table.Database], table.Table)
	}
	var calls []dumpCall
	for _, database := range databases {
		c := dumpCall{database: database, args: slices.Concat(options, []string{"--", database}, tables[database])}
		if len(databases) > 1 { // one alone can be loaded into any other
			c.before = fmt.Sprintf("\nCREATE DATABASE IF NOT EXISTS %s;\nUSE %s;\n\n", quoteName(database), quoteName(database))
		}
		calls = append(calls, c)
	}
	return calls
}

// connect are the options that reach the instance and nothing else, and those without which
// this program does not get along with that server.
func (t DumpTool) connect(i *Instance) []string {
	server := i.request.Manifest.Version
	args := []string{"--no-defaults", "--protocol=SOCKET", "--socket=" + i.Socket(), "--user=" + i.user()}
	if t.Version.Flavor == respaldo.MariaDB {
		return append(args, "--skip-ssl") // since 11.4 it insists, on a socket as well
	}
	args = append(args, "--set-gtid-purged=OFF") // they would be the instance's
	if t.Version.AtLeast(respaldo.MySQL, 8, 0, 0) && !server.AtLeast(respaldo.MySQL, 8, 0, 0) {
		args = append(args, "--column-statistics=0")
	}
	return args
}

// Dump has the tool write the scope to the stream. It returns when the tool has ended in
// order and has written all that it should: but for the last line, which tells a whole dump
// from a part of one, and which Finish writes. What goes wrong names the table, if one is
// to blame.
func (i *Instance) Dump(ctx context.Context, tool DumpTool, scope DumpScope, to *DumpStream) error {
	for _, call := range tool.calls(scope) {
		if err := to.begin(call); err != nil {
			return err
		}
		argv := slices.Concat(tool.Program.Argv, tool.connect(i), call.args)
		if err := i.runTool(ctx, tool, run.Cmd{Argv: argv, Stdout: to}, to); err != nil {
			return err
		}
		if !to.complete() {
			return &respaldo.Error{Kind: respaldo.Failed, What: "the dump is not whole: " + tool.String() + " ended without its last line", Hint: "run it again with --verbose"}
		}
	}
	return nil
}

// runTool runs a dump program on the instance. It ends when the instance does.
func (i *Instance) runTool(ctx context.Context, tool DumpTool, cmd run.Cmd, to *DumpStream) error {
	// Its own folder as home and no password: whatever clients read there is not for this server.
	cmd.Env = slices.Concat(tool.Program.Env, []string{"HOME=" + i.request.Scratch, "MYSQL_PWD=", "MYSQL_HOST="})
	cmd.Quiet = true
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is ours to pass on
	_, err := run.Local{Log: i.request.Log}.Run(ctx, cmd)
	var exit *run.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case to != nil && to.failed != nil:
		return to.failed
	case !errors.As(err, &exit):
		return err
	}
	said := strings.TrimSpace(exit.Stderr)
	if exit.Signal != 0 {
		said = strings.TrimSpace("it was ended by signal " + strconv.Itoa(int(exit.Signal)) + " " + said)
	}
	failed := &respaldo.Error{Kind: respaldo.Failed, What: tool.String() + " failed", Err: errors.New(said),
		Hint: "a table that is damaged in the image is damaged at the origin, too: see CHECK TABLE there; --without leaves out what cannot be dumped, such as a view of what is gone"}
	if to != nil && to.item != "" {
		failed.What += " at " + to.item + " or after it"
	}
	select {
	case <-i.exited:
		return i.crashed()
	default:
		return failed
	}
}

func (i *Instance) user() string {
	if a := i.request.Account; a != nil {
		return a.User
	}
	return "root"
}
