package mysql

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// encryption finds out whether anything in the data needs a key, and where the keys are.
func (s *Server) encryption(ctx context.Context, q queryer, f *Facts) error {
	n, err := s.encryptedTablespaces(ctx, q, f)
	if err != nil {
		return err
	}
	if n > 0 {
		f.EncryptedWhat = append(f.EncryptedWhat, plural(n, "tablespace"))
	}
	for _, setting := range []struct{ variable, what string }{
		{"innodb_redo_log_encrypt", "redo log"}, {"innodb_encrypt_log", "redo log"},
		{"innodb_undo_log_encrypt", "undo log"},
		{"aria_encrypt_tables", "Aria tables"},
		{"binlog_encryption", "binlog"}, {"encrypt_binlog", "binlog"},
	} {
		if f.On(setting.variable) {
			f.EncryptedWhat = append(f.EncryptedWhat, setting.what)
		}
	}
	f.Encrypted = len(f.EncryptedWhat) > 0
	f.keyring()
	return nil
}

// asksForSuper: until MDEV-23003, reading INNODB_TABLESPACES_ENCRYPTION took SUPER.
func asksForSuper(v respaldo.Version) bool {
	return v.Flavor == respaldo.MariaDB && !v.AtLeast(respaldo.MariaDB, 10, 5, 5) && (!v.AtLeast(respaldo.MariaDB, 10, 4, 14) || v.AtLeast(respaldo.MariaDB, 10, 5, 0))
}

// hasKeys tells whether a key management plugin of MariaDB is loaded; without one nothing
// can be encrypted.
func (f *Facts) hasKeys() bool {
	for name := range f.Variables {
		if strings.Contains(name, "_key_management_") {
			return true
		}
	}
	return false
}

// encryptedTablespaces counts what InnoDB itself knows to be encrypted. Needs PROCESS.
func (s *Server) encryptedTablespaces(ctx context.Context, q queryer, f *Facts) (int, error) {
	var query string
	switch v := f.Version; {
	case asksForSuper(v) && !f.hasKeys():
		return 0, nil
	case v.Flavor == respaldo.MariaDB:
		query = "SELECT COUNT(*) AS n FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME <> 0"
	case v.AtLeast(respaldo.MySQL, 8, 0, 13):
		query = "SELECT COUNT(*) AS n FROM information_schema.INNODB_TABLESPACES WHERE ENCRYPTION = 'Y'"
	case v.AtLeast(respaldo.MySQL, 8, 0, 0):
		query = "SELECT COUNT(*) AS n FROM information_schema.INNODB_TABLESPACES WHERE FLAG & 8192"
	case v.AtLeast(respaldo.MySQL, 5, 7, 11): // FSP_FLAGS_MASK_ENCRYPTION
		query = "SELECT COUNT(*) AS n FROM information_schema.INNODB_SYS_TABLESPACES WHERE FLAG & 8192"
	default:
		return 0, nil
	}
	counted, err := queryRows(ctx, q, query)
	if errorNumber(err) == errPrivilegeNeeded && asksForSuper(f.Version) {
		return 0, &respaldo.Error{Kind: respaldo.Unreachable, What: "looking for encrypted tables: " + f.Version.String() + " shows them to an account with SUPER only",
			Hint: s.asUs("GRANT SUPER ON *.* TO "+grantee) + "; not needed from 10.4.14 and 10.5.5 on (MDEV-23003)", Err: err}
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(counted[0]["n"])
}

// fileKey is the variable with the key of the key file, or FILE: and where it is.
const fileKey = "file_key_management_filekey"

// hidden stands in the place of a value that must not be told.
const hidden = "***"

// secretName is for names that end in what they hold: report_password holds one, while
// validate_password_length is about them.
var secretName = regexp.MustCompile(`secret|(password|passwd|passphrase|_pwd|_token|sst_auth)$`)

// withoutSecret is a variable's value as it may go into a manifest, onto a command line
// or into a log. Servers hide some of these themselves, but not all: report_password is
// shown to whoever asks.
func withoutSecret(name, value string) string {
	keyInClear := name == fileKey && !strings.HasPrefix(value, "FILE:")
	if value != "" && (keyInClear || secretName.MatchString(name)) {
		return hidden
	}
	return value
}

// keyring adds the key files to the layout, in use or not: a server may refuse to start
// without them.
func (f *Facts) keyring() {
	l := &layouter{datadir: f.Layout.DataDir, realData: realPath(f.Layout.DataDir), places: f.Layout.Places, seen: map[string]bool{}}
	v := f.Variables
	if path := v["file_key_management_filename"]; path != "" {
		l.add(respaldo.KeyringRole, path)
		if file, ok := strings.CutPrefix(v[fileKey], "FILE:"); ok {
			l.add(respaldo.KeyringRole, file)
		} else if v[fileKey] != "" {
			f.refused = append(f.refused, &respaldo.Error{Kind: respaldo.Refused, What: "the key of the key file (" + fileKey + ") stands in clear text in the server's options",
				Hint: "write it to a file that only the server can read, and set " + fileKey + "=FILE:/that/file"})
		}
	}
	for _, variable := range []string{"keyring_file_data", "keyring_encrypted_file_data"} {
		l.add(respaldo.KeyringRole, v[variable])
	}
	if v["keyring_encrypted_file_data"] != "" || v["keyring_encrypted_file_password"] != "" {
		f.refused = append(f.refused, &respaldo.Error{Kind: respaldo.Refused, What: "the keys are kept by the plugin keyring_encrypted_file, whose password an image could only be started with in clear text, in the list of processes",
			Hint: "migrate the keys to keyring_file, or from MySQL 8.0.24 on to component_keyring_encrypted_file, which has its password in a file of its own (mysqld --keyring-migration-to-component)"})
	}
	f.keyringComponent(l)
	for variable, name := range map[string]string{
		"keyring_vault_config": "a Vault (keyring_vault)", "keyring_hashicorp_server_url": "a Vault (keyring_hashicorp)", "hashicorp_key_management_vault_url": "a Vault (hashicorp_key_management)",
		"keyring_okv_conf_dir": "a key server (keyring_okv)", "keyring_aws_conf_file": "AWS KMS (keyring_aws)", "aws_key_management_master_key_id": "AWS KMS (aws_key_management)",
	} {
		if v[variable] != "" {
			f.KeyringElsewhere = name
		}
	}
	f.Layout.Places = l.places
}

// keyringComponent follows MySQL 8's manifest: mysqld.my beside the program names the
// component, or sends to one in the data directory; so does the component's own
// configuration in plugin_dir.
func (f *Facts) keyringComponent(l *layouter) {
	if !f.Version.AtLeast(respaldo.MySQL, 8, 0, 24) || len(f.Process.Binary.Argv) == 0 {
		return
	}
	program := f.Process.Binary.Argv[len(f.Process.Binary.Argv)-1]
	var manifest struct {
		Local      bool   `json:"read_local_manifest"`
		Components string `json:"components"`
	}
	path := filepath.Join(filepath.Dir(program), filepath.Base(program)+".my")
	if !readJSON(path, &manifest) {
		return
	}
	l.add(respaldo.KeyringRole, path)
	if manifest.Local {
		path = filepath.Join(l.datadir, filepath.Base(program)+".my")
		if !readJSON(path, &manifest) {
			return
		}
		l.add(respaldo.KeyringRole, path)
	}
	for _, component := range strings.Split(manifest.Components, ",") {
		name := strings.TrimPrefix(strings.TrimSpace(component), "file://")
		if !strings.HasPrefix(name, "component_keyring_") {
			continue
		}
		var config struct {
			Local bool   `json:"read_local_config"`
			Path  string `json:"path"`
		}
		path := filepath.Join(f.Variables["plugin_dir"], name+".cnf")
		if !readJSON(path, &config) {
			continue
		}
		l.add(respaldo.KeyringRole, path)
		if config.Local {
			path = filepath.Join(l.datadir, name+".cnf")
			if !readJSON(path, &config) {
				continue
			}
			l.add(respaldo.KeyringRole, path)
		}
		if strings.HasSuffix(name, "_file") {
			l.add(respaldo.KeyringRole, config.Path)
		} else {
			f.KeyringElsewhere = name
		}
	}
}

func readJSON(path string, into any) bool {
	content, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(content, into) == nil
}
