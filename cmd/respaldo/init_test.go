package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/config"
)

// The package's configuration names no repository: init writes it there, once, and nothing
// into one that has a repository.
func TestInitCompletesTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "respaldo.toml")
	packaged, err := os.ReadFile("../../packaging/respaldo.toml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(packaged), "format = 1", "format = 1\nstate_dir = \""+dir+"/state\"\ncache_dir = \""+dir+"/cache\"", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"init", "--config", path, "--repository", dir + "/repo", "--password-file", dir + "/password"}
	if r := respaldoRuns(t, args...); r.code != 0 || !strings.Contains(r.stdout, "Wrote the configuration to "+path) {
		t.Fatalf("%+v", r)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Server("")
	if err != nil || s.Repository != (config.Repository{URL: dir + "/repo", PasswordFile: dir + "/password"}) || s.Keep.Daily != 7 {
		t.Errorf("%+v %v", s, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	before, _ := os.ReadFile(path)
	args[4] = dir + "/another"
	if r := respaldoRuns(t, args...); r.code != 0 || strings.Contains(r.stdout, "Wrote the configuration") {
		t.Errorf("%+v", r)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Errorf("a configuration with a repository was changed:\n%s", after)
	}
}
