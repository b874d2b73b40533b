package backup

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// dirOptions name directories in which a server looks for its files. Where one lies in the
// data directory or is unset, the default finds it.
var dirOptions = []string{
	"innodb_undo_directory", "innodb_doublewrite_dir", "aria_log_dir_path",
	"rocksdb_datadir", "rocksdb_wal_dir", "tokudb_data_dir", "tokudb_log_dir",
}

// fileOptions are settings that the files were made with: a server with other values
// refuses them or, with lower_case_table_names, does not find its tables. Those without a
// usual value have another default in each release.
var fileOptions = []struct{ name, usual string }{
	{"innodb_page_size", "16384"},
	{"innodb_checksum_algorithm", ""},
	{"lower_case_table_names", "0"},
	{"innodb_undo_tablespaces", ""},
}

// redoFolder is what MySQL 8.0.30 and later make in innodb_log_group_home_dir.
const redoFolder = "#innodb_redo"

// optionsFor are the option file's lines for a restored data directory.
func optionsFor(m respaldo.Manifest, targets map[string]string) []string {
	o := &optionLines{m: m, targets: targets, moves: movesOf(m.Layout, targets)}
	o.add("datadir", targets[dataName])
	o.system()
	o.redo()
	for _, name := range dirOptions {
		o.dir(name)
	}
	o.directories()
	o.binlog()
	for _, f := range fileOptions {
		if f.name == "innodb_undo_tablespaces" && m.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
			continue // counts what is there, and warns of the option
		}
		if value := m.Variables[f.name]; value != "" && value != f.usual {
			o.add(f.name, value)
		}
	}
	return o.lines
}

type optionLines struct {
	m       respaldo.Manifest
	targets map[string]string
	moves   []move
	lines   []string
}

func (o *optionLines) add(name, value string) { o.lines = append(o.lines, name+"="+value) }

// origin is one of the server's paths as it was there: relative ones are relative to the
// data directory.
func (o *optionLines) origin(path string) string {
	if !filepath.IsAbs(path) {
		path = filepath.Join(o.m.Layout.DataDir, path)
	}
	return filepath.Clean(path)
}

// now is where one of the origin's paths lies after the restore, if it was restored.
func (o *optionLines) now(path string) (string, bool) {
	path = o.origin(path)
	for _, p := range o.m.Layout.Places {
		if p.Inside && p.Path == path {
			path = p.Real
		}
	}
	return longest(path, o.moves)
}

// dir adds an option for a directory that is not the data directory itself.
func (o *optionLines) dir(name string) {
	value := o.m.Variables[name]
	if value == "" {
		return
	}
	if dir, ok := o.now(value); ok && dir != o.targets[dataName] {
		o.add(name, dir)
	}
}

// redo may have been restored as a folder in the one that the option names.
func (o *optionLines) redo() {
	const name = "innodb_log_group_home_dir"
	home := o.m.Variables[name]
	if home == "" {
		return
	}
	if dir, ok := o.now(filepath.Join(home, redoFolder)); ok && o.m.Version.AtLeast(respaldo.MySQL, 8, 0, 30) {
		if dir = filepath.Dir(dir); dir != o.targets[dataName] {
			o.add(name, dir)
		}
		return
	}
	o.dir(name)
}

// system adds where the system tablespace's files lie. A home of its own was restored as a
// whole, or each file for itself; then the paths must be whole, which InnoDB takes only
// with an empty home.
func (o *optionLines) system() {
	const homeName, pathName, usual = "innodb_data_home_dir", "innodb_data_file_path", "ibdata1:12M:autoextend"
	home, files := o.m.Variables[homeName], o.m.Variables[pathName]
	var whole []string
	apart := false
	for spec := range strings.SplitSeq(files, ";") {
		name, size, _ := strings.Cut(spec, ":")
		path := name
		if !filepath.IsAbs(name) {
			path = filepath.Join(home, name)
		}
		now, ok := o.now(path)
		if !ok {
			now = o.origin(path)
		}
		_, homeMoved := o.now(home)
		apart = apart || filepath.IsAbs(name) || !homeMoved
		whole = append(whole, now+":"+size)
	}
	switch {
	case files == "":
	case apart:
		o.add(homeName, "")
		o.add(pathName, strings.Join(whole, ";"))
		return
	case files != usual:
		o.add(pathName, files)
	}
	o.dir(homeName)
}

// directories lists the folders of tablespaces outside the data directory, all in one
// option. Older servers follow the .isl files, which relocate has rewritten; links in the
// data directory lead to what they lead to in every release.
func (o *optionLines) directories() {
	if !o.m.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		return
	}
	others := map[string]bool{} // places of the same role that are other engines'
	for _, name := range dirOptions {
		if value := o.m.Variables[name]; value != "" {
			others[o.origin(value)] = true
		}
	}
	var dirs []string
	for _, p := range o.m.Layout.Of(respaldo.TablespaceRole) {
		to, ok := placeIn(o.targets, p)
		if !ok || others[p.Path] || strings.HasPrefix(p.Path, o.m.Layout.DataDir+"/") {
			continue
		}
		if isSingle(p) {
			to = filepath.Dir(to)
		}
		if !slices.Contains(dirs, to) {
			dirs = append(dirs, to)
		}
	}
	if len(dirs) > 0 {
		o.add("innodb_directories", strings.Join(dirs, ";"))
	}
}

// binlog must be on where it was: it tells which of the transactions that InnoDB has
// prepared were committed. Without it MySQL silently rolls them back, and MariaDB refuses
// to start.
func (o *optionLines) binlog() {
	if !o.m.BinlogOn {
		return
	}
	v := o.m.Variables
	base := v["log_bin_basename"]
	if base == "" {
		o.lines = append(o.lines, "log_bin")
	} else {
		o.add("log_bin", o.short(base))
	}
	if index := v["log_bin_index"]; index != "" && base != "" && o.origin(index) != o.origin(base)+".index" {
		o.add("log_bin_index", o.short(index))
	}
	// MySQL 5.7 refuses log_bin without it.
	if id := v["server_id"]; id != "" && id != "0" && o.m.Version.Flavor == respaldo.MySQL && !o.m.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		o.add("server_id", id)
	}
}

// short is where a file lies now, relative to the data directory if it is in there.
func (o *optionLines) short(path string) string {
	now, ok := o.now(path)
	if !ok {
		return filepath.Base(path)
	}
	return strings.TrimPrefix(now, o.targets[dataName]+"/")
}

// isSingle tells a place that is a file.
func isSingle(p respaldo.Place) bool { return strings.Contains(p.Stored, "/") }
