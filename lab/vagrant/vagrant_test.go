package vagrant_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/lab/vagrant"
)

var scripts = []string{"packaging/vagrant/provision.sh"}

// Debian's vagrant accepts the Vagrantfile, names the Debian and the server it installs, and
// finds what is wrong with one that is not good.
func TestVagrantfile(t *testing.T) {
	said, err := vagrant.Validate(t.Context(), "../../Vagrantfile", scripts...)
	if err != nil || !strings.Contains(said, "Vagrantfile validated successfully.") {
		t.Errorf("%v\n%s", err, said)
	}
	text, err := os.ReadFile("../../Vagrantfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Debian 12 (" + vagrant.Release + ")", "MariaDB 10.11", `"debian/` + vagrant.Release + `64"`} {
		if !strings.Contains(string(text), name) {
			t.Errorf("the Vagrantfile does not name %s", name)
		}
	}
	bad := filepath.Join(t.TempDir(), "Vagrantfile")
	if err := os.WriteFile(bad, []byte(strings.Replace(string(text), "vm.box", "vm.bx", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if said, err := vagrant.Validate(t.Context(), bad); err == nil || !strings.Contains(said, "bx") || !strings.Contains(said, "provision.sh") {
		t.Errorf("a mistake in the Vagrantfile and a missing script are not found: %v\n%s", err, said)
	}
}

// A shell can read the machine's scripts.
func TestScripts(t *testing.T) {
	found, _ := filepath.Glob("../../packaging/*/*.sh")
	more, _ := filepath.Glob("../../packaging/scripts/*")
	found = append(found, more...)
	if len(found) < 5 {
		t.Fatalf("found %q only", found)
	}
	for _, script := range found {
		if out, err := exec.Command("sh", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}
