package mysql

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// DumpCoordinates is the name, in a directory of mydumper's, of the file that says what the
// dump is of and where to replicate from.
const DumpCoordinates = "respaldo.txt"

// Mydump has mydumper fill an empty directory with the scope, puts the image's coordinates
// in the place of the private server's, and adds the head of a dump.
// The directory is whole when it returns nil.
func (i *Instance) Mydump(ctx context.Context, tool DumpTool, scope DumpScope, dir string, at respaldo.Coordinates, head string) error {
	args := []string{"--defaults-file=/dev/null", "--socket=" + i.Socket(), "--user=" + i.user(), "--outputdir=" + dir,
		"--threads=2", "--compress", "--triggers", "--routines", "--events", "--verbose=1",
		"--no-locks"} // nobody writes
	switch len(scope.Databases) {
	case 0:
	case 1: // older ones look into every database, whatever the expression, and stumble over odd names
		args = append(args, "--database="+scope.Databases[0])
	default:
		var names []string
		for _, name := range scope.Databases {
			names = append(names, regexp.QuoteMeta(name))
		}
		args = append(args, `--regex=^(`+strings.Join(names, "|")+`)\.`)
	}
	if len(scope.Tables) > 0 {
		var names []string
		for _, table := range scope.Tables {
			names = append(names, table.String())
		}
		args = append(args, "--tables-list="+strings.Join(names, ","))
	}
	if err := i.runTool(ctx, tool, run.Cmd{Argv: slices.Concat(tool.Program.Argv, args)}, nil); err != nil {
		return err
	}
	path := filepath.Join(dir, "metadata") // called metadata.partial until all is written
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &respaldo.Error{Kind: respaldo.Failed, What: "the dump is not whole: " + tool.String() + " left no metadata", Hint: "run it again with --verbose", Err: err}
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(withCoordinates(string(text), at)), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, DumpCoordinates), []byte(head), 0o600)
}

// Where mydumper notes the server's own coordinates: under "SHOW MASTER STATUS:", since 0.13
// in a section [master] or [source].
var (
	ownStatus   = regexp.MustCompile(`^(SHOW (MASTER|BINARY LOG|BINLOG) STATUS:|\[(master|source)\])`)
	statusBegin = regexp.MustCompile(`^(SHOW |\[)`)
	statusField = regexp.MustCompile(`^(\s*(Log|Pos|GTID|File|Position|Executed_Gtid_Set)\s*[:=] ?).*$`)
)

// withCoordinates puts the image's coordinates in the place of those of the private server,
// which mean nothing to anybody.
func withCoordinates(metadata string, at respaldo.Coordinates) string {
	values := map[string]string{"Log": at.File, "File": at.File, "GTID": at.GTIDSet, "Executed_Gtid_Set": at.GTIDSet,
		"Pos": strconv.FormatUint(at.Position, 10), "Position": strconv.FormatUint(at.Position, 10)}
	own := false
	lines := strings.Split(metadata, "\n")
	for n, line := range lines {
		if statusBegin.MatchString(line) {
			own = ownStatus.MatchString(line)
		}
		if m := statusField.FindStringSubmatch(line); own && m != nil {
			lines[n] = m[1] + values[m[2]]
		}
	}
	return strings.Join(lines, "\n")
}
