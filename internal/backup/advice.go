package backup

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// adviceFor is what stands between the restored files and a server on this machine that no
// option of ours changes. Root is "/" but for tests.
func adviceFor(root string, targets map[string]string) []string {
	advice := persistedSettings(filepath.Join(targets[dataName], "mysqld-auto.cnf"))
	dirs := slices.Sorted(maps.Values(targets))
	if _, err := os.Stat(filepath.Join(root, "sys/fs/selinux/enforce")); err == nil {
		advice = append(advice, "SELinux: restorecon -R "+strings.Join(dirs, " ")+
			"; a directory that its policy does not know needs first: semanage fcontext -a -t mysqld_db_t 'DIR(/.*)?'")
	}
	if profile := confinement(filepath.Join(root, "sys/kernel/security/apparmor/profiles")); profile != "" {
		elsewhere := slices.DeleteFunc(dirs, func(dir string) bool { return dir == usualDir || strings.HasPrefix(dir, usualDir+"/") })
		if len(elsewhere) > 0 {
			advice = append(advice, fmt.Sprintf("AppArmor's profile %s must allow %s: add the lines \"DIR/ r,\" and \"DIR/** rwk,\" for each to its file below /etc/apparmor.d/local, then systemctl reload apparmor",
				profile, strings.Join(elsewhere, ", ")))
		}
	}
	return advice
}

// usualDir is what the distributions' profiles allow.
const usualDir = "/var/lib/mysql"

// persistedSettings warns of what SET PERSIST has left in a MySQL 8 data directory: it is
// read last, so that it beats the option file, ours included.
func persistedSettings(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	names := map[string]bool{}
	var collect func(name string, v any)
	collect = func(name string, v any) {
		object, ok := v.(map[string]any)
		if !ok {
			return
		}
		if _, leaf := object["Value"]; leaf {
			names[name] = true
			return
		}
		for name, v := range object {
			collect(name, v)
		}
	}
	var document any
	if json.Unmarshal(text, &document) == nil {
		collect("", document)
	}
	if len(names) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("settings made with SET PERSIST beat the option file: %s; persisted_globals_load=OFF leaves them out",
		strings.Join(slices.Sorted(maps.Keys(names)), ", "))}
}

// confinement is the name of the AppArmor profile that is enforced on the server's
// program, "" when there is none.
func confinement(profiles string) string {
	text, _ := os.ReadFile(profiles)
	for line := range strings.Lines(string(text)) {
		name, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		if program := filepath.Base(name); (program == "mysqld" || program == "mariadbd") && mode == "(enforce)" {
			return name
		}
	}
	return ""
}
