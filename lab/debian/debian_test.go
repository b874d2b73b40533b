package debian

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMirrors(t *testing.T) {
	for _, c := range []struct{ name, file, text, mirror, security string }{
		{"deb822", "debian.sources", "Types: deb\n# a comment\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n" +
			"Types: deb\nURIs: http://s.example/debian-security\nSuites: bookworm-security\nComponents: main\n",
			"http://m.example/debian", "http://s.example/debian-security"},
		{"one line", "debian.list", "# deb http://old.example/debian buster main\ndeb-src http://m.example/debian bookworm main\n" +
			"deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ bookworm main contrib\n",
			"http://m.example/debian/", "http://m.example/debian-security"},
		{"other archives first", "all.list", "deb https://node.example nodistro main\ndeb https://tool.example/apt tool-bookworm main\ndeb http://m.example/debian trixie main\n",
			"http://m.example/debian", "http://m.example/debian-security"},
		{"disabled", "debian.sources", "Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: sid\nComponents: main\n\nTypes: deb\nURIs:\n http://m.example/debian\nSuites: sid\nComponents: main\n",
			"http://m.example/debian", "http://m.example/debian-security"},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc := t.TempDir()
			if err := os.Mkdir(filepath.Join(etc, "sources.list.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(etc, "sources.list.d", c.file), []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			mirror, security, err := mirrors(etc)
			if err != nil {
				t.Fatal(err)
			}
			if mirror != c.mirror || security != c.security {
				t.Errorf("got %s and %s, want %s and %s", mirror, security, c.mirror, c.security)
			}
		})
	}
	if _, _, err := mirrors(t.TempDir()); err == nil {
		t.Error("a machine without apt sources is not noticed")
	}
}

func TestVersion(t *testing.T) {
	name, version := Version("/x/mariadb-server-core_1%3a10.11.18-0+deb12u1_amd64.deb")
	if name != "mariadb-server-core" || version != "1:10.11.18-0+deb12u1" {
		t.Errorf("got %s %s", name, version)
	}
}
