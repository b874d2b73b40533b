package backup

import (
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// Whoever restores an encrypted server is told where its keys are now, and what has to
// point there.
func TestKeysOfARestoredServer(t *testing.T) {
	keyring := func(path, stored string) respaldo.Place {
		return respaldo.Place{Role: respaldo.KeyringRole, Path: path, Real: path, Inside: stored == "", Stored: stored}
	}
	for name, c := range map[string]struct {
		places    []respaldo.Place
		variables map[string]string
		want      []string // in the one note; none: no note
	}{
		"a key file and its key": {
			[]respaldo.Place{keyring("/etc/keys/keys.enc", "keyring/keys.enc"), keyring("/etc/keys/key", "keyring-2/key")},
			map[string]string{"file_key_management_filename": "/etc/keys/keys.enc", "file_key_management_filekey": "FILE:/etc/keys/key"},
			[]string{"file_key_management_filename=/new/mysql.more/keyring/keys.enc", "file_key_management_filekey=FILE:/new/mysql.more/keyring-2/key", "plugin"},
		},
		"a keyring in the data directory": {
			[]respaldo.Place{keyring("/db/data/keys/ring", "")},
			map[string]string{"keyring_file_data": "/db/data/keys/ring"}, []string{"keyring_file_data=/new/mysql/keys/ring"},
		},
		"a component": {
			[]respaldo.Place{keyring("/usr/sbin/mysqld.my", "keyring/mysqld.my"), keyring("/lib/plugin/component_keyring_file.cnf", "keyring-2/component_keyring_file.cnf"), keyring("/keys/ring", "keyring-3/ring")},
			nil, []string{"restored to /new/mysql.more/keyring-3/ring:", `"path"`, "/new/mysql.more/keyring-2/component_keyring_file.cnf", "plugin_dir"},
		},
		"a component whose keys are elsewhere": {
			[]respaldo.Place{keyring("/lib/plugin/component_keyring_vault.cnf", "keyring/component_keyring_vault.cnf")},
			nil, []string{"does not hold", "/new/mysql.more/keyring/component_keyring_vault.cnf"},
		},
		"a key server": {nil, map[string]string{"keyring_vault_config": "/etc/vault"}, []string{"does not hold", "plugin"}},
	} {
		m := respaldo.Manifest{Encrypted: true, Variables: c.variables, Layout: respaldo.Layout{DataDir: "/db/data", Places: append([]respaldo.Place{
			{Role: respaldo.DataRole, Path: "/db/data", Real: "/db/data", Stored: dataName}}, c.places...)}}
		where, err := targets(m, RestoreRequest{To: "/new/mysql"})
		if err != nil {
			t.Fatal(err)
		}
		notes := keyNotes(m, where)
		if len(notes) != 1 {
			t.Errorf("%s: notes %q", name, notes)
			continue
		}
		for _, word := range c.want {
			if !strings.Contains(notes[0], word) {
				t.Errorf("%s: the note lacks %q: %s", name, word, notes[0])
			}
		}
		if m.Encrypted = false; len(keyNotes(m, where)) != 0 {
			t.Errorf("%s: a note without encryption", name)
		}
	}
}

// A replica's relay logs are not in its backup, and it looks for them unless told not to.
func TestNoteOfAReplica(t *testing.T) {
	m := respaldo.Manifest{Proof: respaldo.Proof{OK: true}}
	m.Quiesced.Coordinates.Upstream = []respaldo.Upstream{{Host: "db0", Port: 3306}}
	if notes := warningsFor(m); len(notes) != 1 || !strings.Contains(notes[0], "db0:3306") || !strings.Contains(notes[0], "relay_log_recovery=ON") {
		t.Errorf("%q", notes)
	}
}
