// Labnode is what a second machine of the lab runs: OpenSSH's server, until the power goes.
// The programs of a database server are installed, and room is on /srv.
package main

import (
	"fmt"
	"os/exec"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

func main() {
	guest.Main(func(t guest.T) {
		guest.KnowEachOther(t)
		guest.InstallPrograms(t, guest.UnitServer)
		guest.NewFolder(t, 0, "/srv")
		out, err := exec.Command("/usr/sbin/sshd", "-D", "-e").CombinedOutput()
		t.Fatal(fmt.Sprintf("sshd has ended: %v: %s", err, out))
	})
}
