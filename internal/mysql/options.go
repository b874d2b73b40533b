package mysql

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// option is one line of an option file that belongs to a group of ours.
type option struct {
	group string // without the brackets
	name  string // underscores as dashes, "loose-" removed
	value string
	bare  bool // "name" without "=value"
	loose bool
	file  string
	line  int
}

// optionFiles is what a set of option files said.
type optionFiles struct {
	options  []option // in the order read; a later one overrides
	read     []string // files that exist and were read, includes among them
	dirs     []string // directories that are included, in the order read
	pretend  string   // a file that is read as if it were there, and held just the option below
	as       option
	warnings []string
}

// Depth at which MySQL's own parser stops following !include.
const maxIncludeDepth = 10

// readOptionFiles reads option files as MySQL's my_default.c does (MySQL 9 and
// MariaDB 11 agree): files that do not exist are passed over, world-writable ones
// ignored with a warning, !include and !includedir followed. Groups that are not asked
// for are parsed but not kept; groups nil keeps all.
func readOptionFiles(files, groups []string) (*optionFiles, error) {
	o := &optionFiles{}
	wanted := map[string]bool{}
	for _, g := range groups {
		wanted[g] = true
	}
	for _, f := range files {
		if err := o.readFile(f, wanted, 0); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *optionFiles) readFile(path string, wanted map[string]bool, depth int) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		// MySQL's programs pass over a file that they may not read, too: /etc/mysql is full of them.
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o002 != 0 {
		o.warnings = append(o.warnings, fmt.Sprintf("option file %s is ignored because everybody may write to it (chmod o-w)", path))
		return nil
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	o.read = append(o.read, path)

	var group string
	var inGroup bool
	scan := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))))
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimSpace(scan.Text())
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '!':
			if err := o.directive(path, n, line, wanted, depth); err != nil {
				return err
			}
		case line[0] == '[':
			name, _, ok := strings.Cut(line[1:], "]")
			if !ok {
				return fmt.Errorf("%s line %d: group without closing bracket", path, n)
			}
			group, inGroup = strings.TrimSpace(name), true
		case !inGroup:
			return fmt.Errorf("%s line %d: option before the first [group]", path, n)
		case len(wanted) == 0 || wanted[group]:
			opt := parseOption(line)
			opt.group, opt.file, opt.line = group, path, n
			o.options = append(o.options, opt)
		}
	}
	return scan.Err()
}

func (o *optionFiles) directive(path string, n int, line string, wanted map[string]bool, depth int) error {
	words := strings.TrimSpace(line[1:])
	if depth >= maxIncludeDepth {
		o.warnings = append(o.warnings, fmt.Sprintf("%s line %d: includes nested too deeply, passed over", path, n))
		return nil
	}
	if dir, ok := directiveArgument(words, "includedir"); ok {
		entries, err := os.ReadDir(dir)
		if err != nil {
			// What MySQL's programs do: an unreadable folder of includes does not stop them.
			o.warnings = append(o.warnings, fmt.Sprintf("%s line %d: cannot read %s", path, n, dir))
			return nil
		}
		o.dirs = append(o.dirs, dir)
		var names []string
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".cnf") && filepath.Join(dir, e.Name()) != o.pretend {
				names = append(names, e.Name())
			}
		}
		if filepath.Dir(o.pretend) == filepath.Clean(dir) {
			names = append(names, filepath.Base(o.pretend))
		}
		sort.Strings(names)
		for _, name := range names {
			if path := filepath.Join(dir, name); path == o.pretend {
				o.options = append(o.options, o.as)
			} else {
				if err := o.readFile(path, wanted, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if file, ok := directiveArgument(words, "include"); ok {
		return o.readFile(file, wanted, depth+1)
	}
	return nil // unknown directives are passed over, as MySQL does
}

func directiveArgument(words, directive string) (string, bool) {
	rest, ok := strings.CutPrefix(words, directive)
	if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
		return "", false
	}
	rest = strings.TrimSpace(rest)
	return rest, rest != ""
}

// parseOption reads "name", "name=value", 'name = "value with # in it"' and the escapes.
func parseOption(line string) option {
	line = strings.TrimRight(cutComment(line), " \t\r")
	name, value, ok := strings.Cut(line, "=")
	opt := option{name: optionName(strings.TrimSpace(name)), bare: !ok}
	opt.name, opt.loose = strings.CutPrefix(opt.name, "loose-")
	value = strings.TrimSpace(value)
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	opt.value = unescapeOption(value)
	return opt
}

// optionName makes innodb_log_file_size and innodb-log-file-size the same.
func optionName(s string) string { return strings.ReplaceAll(s, "_", "-") }

// cutComment removes a # comment that stands outside quotes.
func cutComment(line string) string {
	var quote byte
	escaped := false
	for i := 0; i < len(line); i++ {
		c := line[i]
		if (c == '\'' || c == '"') && !escaped {
			switch quote {
			case 0:
				quote = c
			case c:
				quote = 0
			}
		}
		if quote == 0 && c == '#' {
			return line[:i]
		}
		escaped = quote != 0 && c == '\\' && !escaped
	}
	return line
}

func unescapeOption(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i == len(s)-1 {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case 'b':
			b.WriteByte('\b')
		case 's':
			b.WriteByte(' ')
		case '"', '\'', '\\':
			b.WriteByte(s[i])
		default: // Windows paths survive: the backslash stays
			b.WriteByte('\\')
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
