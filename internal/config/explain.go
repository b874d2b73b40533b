package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// explain turns the decoder's error into one that names file, line and key.
func explain(path string, text []byte, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var what, hints []string
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			w, h := unknownKey(e.Key())
			what = append(what, fmt.Sprintf("%s:%d: %s", path, line, w))
			if h != "" && !slices.Contains(hints, h) {
				hints = append(hints, h)
			}
		}
		return usage(strings.Join(what, "; "), strings.Join(hints, "; "))
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		message := strings.TrimPrefix(wrong.Error(), "toml: ")
		message = strings.TrimPrefix(message, "error calling UnmarshalText: ")
		if m := wrongType.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("%s is needed, not %s", cmp.Or(typeNames[m[2]], "a section"), typeNames[m[1]])
		}
		if key := keyAt(text, line); key != "" && !strings.Contains(message, key) {
			message = key + ": " + message
		}
		return usage(fmt.Sprintf("%s:%d: %s", path, line, message), "")
	}
	return usage(path+": "+strings.TrimPrefix(err.Error(), "toml: "), "")
}

// wrongType is how the decoder words a value of the wrong type.
var wrongType = regexp.MustCompile(`^cannot decode TOML (\w+) into struct field \S+ of type (\S+)$`)

var typeNames = map[string]string{
	"string": "a string in quotes", "int": "a whole number", "integer": "a whole number",
	"float64": "a number with a decimal point", "float": "a number with a decimal point",
	"boolean": "true or false", "array": "a list", "[]string": "a list of strings", "inline table": "a table",
}

// keyAt is the key that a line assigns to; empty for other lines.
func keyAt(text []byte, line int) string {
	lines := strings.Split(string(text), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	key, _, assigned := strings.Cut(lines[line-1], "=")
	key = strings.TrimSpace(key)
	if !assigned || strings.ContainsAny(key, "[]#\"' ") {
		return ""
	}
	return key
}

// secret are the names under which people try to put secrets into the file.
var secret = regexp.MustCompile(`^(password|passwd|passphrase|(access|secret)_?(access_)?key(_id)?|token)$`)

// unknownKey says what is wrong with a key that the document does not have, and what was
// probably meant.
func unknownKey(path []string) (what, hint string) {
	if len(path) == 0 {
		return "unknown key", ""
	}
	key, section, fields := path[len(path)-1], "", keysOf(reflect.TypeFor[document]())
	for i, step := range path[:len(path)-1] {
		next, ok := fields[step]
		if !ok {
			key = step // the section itself is unknown
			break
		}
		section = strings.Join(path[:i+1], ".")
		if next.Kind() == reflect.Map && i+1 < len(path)-1 {
			fields = map[string]reflect.Type{path[i+1]: next.Elem()}
			continue
		}
		fields = keysOf(next)
	}
	what = fmt.Sprintf("unknown key %q", key)
	if section != "" {
		what += " in [" + section + "]"
	}
	if secret.MatchString(key) {
		return what, "secrets do not belong into this file: use password_file in [repository], and MySQL's own option files for the server's"
	}
	if near := nearest(key, fields); near != "" {
		return what, fmt.Sprintf("did you mean %q?", near)
	}
	if home := sectionsWith(key); len(home) > 0 {
		return what, fmt.Sprintf("%q belongs in %s", key, strings.Join(home, " or "))
	}
	return what, ""
}

// keysOf are the keys of a section and the types of their values.
func keysOf(section reflect.Type) map[string]reflect.Type {
	for section.Kind() == reflect.Pointer {
		section = section.Elem()
	}
	keys := map[string]reflect.Type{}
	if section.Kind() != reflect.Struct {
		return keys
	}
	for _, field := range reflect.VisibleFields(section) {
		keys[field.Tag.Get("toml")] = field.Type
	}
	return keys
}

// sectionsWith are the sections that have a key of this name.
func sectionsWith(key string) []string {
	var found []string
	for name, section := range map[string]reflect.Type{
		"the top of the file": reflect.TypeFor[document](),
		"[repository]":        reflect.TypeFor[repositorySection](),
		"[keep]":              reflect.TypeFor[Keep](), // and [keep_snapshots]
		"[thresholds]":        reflect.TypeFor[thresholdSection](),
		"[server.NAME]":       reflect.TypeFor[serverSection](),
	} {
		if _, ok := keysOf(section)[key]; ok {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

func nearest(key string, among map[string]reflect.Type) string {
	best, closest := "", max(2, len(key)/3)+1
	for candidate := range among {
		if d := distance(key, candidate); d < closest || d == closest && best != "" && candidate < best {
			best, closest = candidate, d
		}
	}
	return best
}

// distance is how many letters must be inserted, removed or replaced (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
