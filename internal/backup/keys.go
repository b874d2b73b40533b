package backup

import (
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// keyOptions name files without which a server reads none of its encrypted tables. MariaDB
// marks one that holds a key file's own key.
var keyOptions = []struct{ name, mark string }{
	{"file_key_management_filename", ""},
	{"file_key_management_filekey", "FILE:"},
	{"keyring_file_data", ""},
}

// keyNotes say where an encrypted server's keys lie now and what must point there. They are
// no options to print: without the plugin that reads the keys a server refuses them.
func keyNotes(m respaldo.Manifest, targets map[string]string) []string {
	if !m.Encrypted {
		return nil
	}
	o := &optionLines{m: m, targets: targets, moves: movesOf(m.Layout, targets)}
	for _, key := range keyOptions {
		file, ok := strings.CutPrefix(m.Variables[key.name], key.mark)
		if file == "" || !ok {
			continue
		}
		if now, restored := o.now(file); restored {
			o.add(key.name, key.mark+now)
		}
	}
	var config, keys []string
	for _, p := range m.Layout.Of(respaldo.KeyringRole) {
		now, restored := o.now(p.Path)
		switch name := filepath.Base(p.Path); {
		case !restored:
		case strings.HasPrefix(name, "component_keyring_"), strings.HasSuffix(name, ".my"):
			config = append(config, now)
		default:
			keys = append(keys, now)
		}
	}
	const encrypted = "the data are encrypted, and no server reads them without the keys"
	switch {
	case len(o.lines) > 0:
		return []string{encrypted + ": load the key plugin as the origin did (see its option files), with " + strings.Join(o.lines, " and ")}
	case len(config) > 0 && len(keys) > 0:
		return []string{encrypted + ", which were restored to " + strings.Join(keys, ", ") + `: "path" in the keyring component's configuration must say so; the origin's, ` + strings.Join(config, " and ") +
			", belong beside the server program (mysqld.my) and into its plugin_dir, or where these send it, into the data directory"}
	case len(config) > 0:
		return []string{encrypted + ", which this backup does not hold: configure the keyring component as the origin's, " + strings.Join(config, " and ") + ", says"}
	}
	return []string{encrypted + ", which this backup does not hold: give the server the origin's key plugin with the origin's settings"}
}
