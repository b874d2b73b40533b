package mysql

import (
	"fmt"
	"path/filepath"
	"slices"
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

// Value is what the files say of a server's option, the last one that does, and where:
// "FILE line N". Both are empty if none does.
func (s ServerFiles) Value(name string) (value, where string, err error) {
	parsed, err := readOptionFiles(s, nil)
	if err != nil {
		return "", "", err
	}
	for _, o := range slices.Backward(parsed.options) {
		if o.name == optionName(name) && isServerGroup(o.group) {
			return o.value, fmt.Sprintf("%s line %d", o.file, o.line), nil
		}
	}
	return "", "", nil
}

// isServerGroup tells groups that every server reads, and those of one release:
// "mysqld-8.4", "mariadb-10.11".
func isServerGroup(group string) bool {
	base, _, _ := strings.Cut(group, "-")
	return slices.Contains([]string{"mysqld", "mariadbd", "mariadb", "server"}, base)
}
