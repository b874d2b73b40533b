package guest

import (
	"fmt"
	"os"
	"path/filepath"
)

// Password opens the repositories that Configure sets up.
const Password = "lab-password"

// Configure writes a configuration of respaldo into dir (respaldo.toml, password and the
// server's credentials) for one server and a repository in a folder, and returns its path.
// The extra lines go to its end, into the section of the server.
func Configure(t T, dir string, s *Server, repository string, extra ...string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path, password := filepath.Join(dir, "respaldo.toml"), filepath.Join(dir, "password")
	text := fmt.Sprintf("format = 1\n\n[repository]\nurl = \"file://%s\"\npassword_file = %q\n\n[server.main]\ndefaults_file = %q\n", repository, password, s.OptionFile)
	for _, line := range extra {
		text += line + "\n"
	}
	for file, content := range map[string]string{path: text, password: Password + "\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// NewFolder makes a plain ext4 filesystem on a whole disk and mounts it until the end of
// the test: room that is not in memory, for a repository or a restore.
func NewFolder(t T, disk int, path string) {
	t.Helper()
	device := Disk(disk)
	Run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", device)
	(&Volume{Path: path, Device: device, FSType: "ext4"}).mount(t, "")
}
