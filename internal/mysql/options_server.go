package mysql

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ServerFiles are the option files that a server starts with, so that they can be asked
// again when they have changed. They can be stored.
type ServerFiles []string

// ServerFiles are those of the running server; none if it was started with --no-defaults.
func (f *Facts) ServerFiles() ServerFiles { return topOptionFiles(f.Process) }

// IncludeDir is the directory of included option files that is read last, so that what is
// put into it beats the others; empty if none is included.
func (s ServerFiles) IncludeDir() string {
	parsed, err := readOptionFiles(s, nil)
	if err != nil || len(parsed.dirs) == 0 {
		return ""
	}
	return filepath.Clean(parsed.dirs[len(parsed.dirs)-1])
}

// Beats is what would be heard instead of a server's option if that stood in the file
// named, and where: "FILE line N". Both are empty if the option would be heard.
func (s ServerFiles) Beats(path, name string) (value, where string, err error) {
	parsed := &optionFiles{pretend: filepath.Clean(path), as: option{group: "mysqld", name: optionName(name)}}
	for _, f := range s {
		if err := parsed.readFile(f, nil, 0); err != nil {
			return "", "", err
		}
	}
	for _, o := range slices.Backward(parsed.options) {
		if o.name != optionName(name) || !isServerGroup(o.group) {
			continue
		}
		if o == parsed.as {
			return "", "", nil
		}
		return o.value, fmt.Sprintf("%s line %d", o.file, o.line), nil
	}
	return "", "no option file of the server's", nil
}

// SharedWith says who else would hear of an option in a [mysqld] group in a directory that
// the server's option files include: another server that runs, or one whose groups are
// there. Empty if nobody would.
func (f *Facts) SharedWith(dir string) (string, error) {
	for _, arg := range f.Process.Args {
		if name, value, _ := strings.Cut(arg, "="); optionName(name) == "--defaults-group-suffix" {
			return "this server is one of several: " + name + "=" + value, nil
		}
	}
	if suffix := f.Process.env["MYSQL_GROUP_SUFFIX"]; suffix != "" {
		return "this server is one of several: MYSQL_GROUP_SUFFIX=" + suffix, nil
	}
	group, err := f.ServerFiles().groupOfAnother()
	if err != nil || group != "" {
		return group, err
	}
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == f.Process.PID || !isServerProgram(pid) {
			continue
		}
		other, err := readProcess(pid)
		if err != nil {
			continue // it has ended
		}
		parsed, err := readOptionFiles(topOptionFiles(other), nil)
		if err != nil || slices.ContainsFunc(parsed.dirs, func(d string) bool { return filepath.Clean(d) == filepath.Clean(dir) }) {
			return fmt.Sprintf("another server, process %d, reads them too", pid), nil
		}
	}
	return "", err
}

// groupOfAnother finds a group that is one of several servers': "mysqld@shop",
// "mariadbd.shop", "mysqld2".
func (s ServerFiles) groupOfAnother() (string, error) {
	parsed, err := readOptionFiles(s, nil)
	if err != nil {
		return "", err
	}
	for _, o := range parsed.options {
		if severalGroup.MatchString(o.group) && !slices.Contains(helperGroups, optionName(o.group)) {
			return fmt.Sprintf("%s has a group of one of several servers: [%s]", o.file, o.group), nil
		}
	}
	return "", nil
}

// severalGroup is a server's group with a suffix that is no release ("mysqld-8.4") and no
// other program's ("mysqld_safe", "mariadb-dump").
var severalGroup = regexp.MustCompile(`^((mysqld|mariadbd|mariadb|server)([@.].*|[0-9]+)|(mysqld|mariadbd|server)[-_][^0-9].*)$`)

var helperGroups = []string{"mysqld-safe", "mysqld-multi", "mariadbd-safe", "mariadbd-multi"}

// isServerGroup tells groups that every server reads, and those of one release:
// "mysqld-8.4", "mariadb-10.11".
func isServerGroup(group string) bool {
	base, _, _ := strings.Cut(group, "-")
	return slices.Contains([]string{"mysqld", "mariadbd", "mariadb", "server"}, base)
}
