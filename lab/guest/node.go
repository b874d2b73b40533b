package guest

import (
	"errors"
	"os"
	"strings"
)

// A second machine, reached over the network link by OpenSSH.

// What the two ends of a link are called in both guests.
const (
	HereAddress, HereName   = "10.9.0.1/24", "here"
	ThereAddress, ThereName = "10.9.0.2/24", "there"
)

// KnowEachOther sets root's OpenSSH up, on either end of a link, as those have it who log in
// from one machine to another by a key: names, the key, the other's host key. All guests have
// one image and so the same host key; it serves as root's key, too.
func KnowEachOther(t T) {
	t.Helper()
	const hostKey, dir = "/etc/ssh/ssh_host_ed25519_key", "/root/.ssh"
	private, err := os.ReadFile(hostKey)
	public, err2 := os.ReadFile(hostKey + ".pub")
	if err := errors.Join(err, err2, os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	hosts := "127.0.0.1 localhost\n"
	known := ""
	for address, name := range map[string]string{HereAddress: HereName, ThereAddress: ThereName} {
		ip, _, _ := strings.Cut(address, "/")
		hosts += ip + " " + name + "\n"
		known += name + "," + ip + " " + string(public)
	}
	for path, text := range map[string]string{
		"/etc/hosts":             hosts,
		dir + "/id_ed25519":      string(private),
		dir + "/authorized_keys": string(public),
		dir + "/known_hosts":     known,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod("/etc/hosts", 0o644); err != nil {
		t.Fatal(err)
	}
}
