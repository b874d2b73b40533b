package backup

import (
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
)

// placeOptions names the server option by which a server finds a place that does not lie
// in its data directory.
var placeOptions = map[respaldo.Role]string{
	respaldo.RedoRole:        "innodb_log_group_home_dir",
	respaldo.UndoRole:        "innodb_undo_directory",
	respaldo.DoublewriteRole: "innodb_doublewrite_dir",
	respaldo.SystemRole:      "innodb_data_home_dir",
	respaldo.AriaLogRole:     "aria_log_dir_path",
	respaldo.TablespaceRole:  "innodb_directories",
}

// fileOptions are settings that the files were made with: a server with other values
// refuses them or, with lower_case_table_names, does not find its tables.
var fileOptions = []struct{ name, usual string }{
	{"innodb_page_size", "16384"},
	{"innodb_data_file_path", "ibdata1:12M:autoextend"},
	{"innodb_checksum_algorithm", ""},
	{"lower_case_table_names", "0"},
	{"innodb_undo_tablespaces", ""},
}

// optionsFor are the option file's lines for a restored data directory.
func optionsFor(m respaldo.Manifest, targets map[string]string) []string {
	lines := []string{"datadir=" + targets[dataName]}
	for _, p := range m.Layout.Places {
		dir, ok := placeIn(targets, p)
		if !ok || p.Stored == dataName {
			continue
		}
		if p.Role == respaldo.BinlogRole {
			lines = append(lines, "log_bin="+filepath.Join(dir, filepath.Base(m.Variables["log_bin_basename"])))
			continue
		}
		option := placeOptions[p.Role]
		if p.Role == respaldo.TablespaceRole && !m.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
			option = "" // older servers follow the .isl files, which relocate has rewritten
		}
		if option != "" {
			lines = append(lines, option+"="+dir)
		}
	}
	if base := m.Variables["log_bin_basename"]; m.BinlogOn && len(m.Layout.Of(respaldo.BinlogRole)) == 0 {
		lines = append(lines, "log_bin="+filepath.Base(base))
	}
	for _, o := range fileOptions {
		if value, known := m.Variables[o.name]; known && o.usual != "" && value != o.usual {
			lines = append(lines, o.name+"="+value)
		}
	}
	return lines
}
