//go:build lab

package lab_test

import (
	"crypto/ed25519"
	"encoding/pem"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/respaldo-backup/respaldo/lab"
)

// node is what the other machine of a clone does: it has a filesystem and sshd.
const node = `set -e
mkdir -p /root/.ssh /srv/node
echo "$LAB_HOST_KEY" >/run/host_key; chmod 600 /run/host_key
echo "$LAB_CLIENT" >/root/.ssh/authorized_keys
mkfs.ext4 -q -F -E nodiscard /dev/ubdb
mount /dev/ubdb /srv/node
mkdir -m 755 /srv/node/small
mount -t tmpfs -o size=8m none /srv/node/small
exec /usr/sbin/sshd -D -e -h /run/host_key -o UsePAM=no -o PermitRootLogin=yes -o StrictModes=no -o PidFile=none`

// TestClone runs the tests of clone in a guest that reaches another one by ssh.
func TestClone(t *testing.T) {
	t.Parallel()
	hostKey, hostPublic := newKey(t)
	clientKey, clientPublic := newKey(t)
	left, right, err := lab.NewLink("10.9.0.1/24", "10.9.0.2/24")
	if err != nil {
		t.Fatal(err)
	}
	const deadline = 15 * time.Minute
	lab.RunTestsBeside(t,
		lab.Spec{Name: "origin", Disks: twoDisks, Memory: 2048, Link: left, Respaldo: true, Deadline: deadline,
			Env: []string{"LAB_CLIENT_KEY=" + clientKey, "LAB_KNOWN_HOST=10.9.0.2 " + hostPublic}},
		lab.Spec{Name: "node", Disks: []lab.Disk{{Bytes: 3 << 30}}, Memory: 1536, Link: right, Deadline: deadline, Argv: []string{"/usr/bin/bash", "-c", node},
			Env: []string{"LAB_HOST_KEY=" + hostKey, "LAB_CLIENT=" + clientPublic}},
		"./cmd/respaldo", "^TestClone$")
}

func newKey(t *testing.T) (private, public string) {
	t.Helper()
	publicKey, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(publicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), string(ssh.MarshalAuthorizedKey(line))
}
