//go:build guest

package volume

import (
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// What the ioctl says is what dmsetup says, word for word.
func TestStatusIsThatOfDmsetup(t *testing.T) {
	guest.NewVolume(t, guest.VolumeSpec{Kind: "thin-ext4", Bytes: 128 << 20})
	devices := 0
	for line := range strings.Lines(guest.Run(t, "dmsetup", "status", "--noflush")) {
		name, _, _ := strings.Cut(line, ":")
		status, err := dmStatus(name)
		if err != nil || strings.TrimSpace(status) != strings.TrimSpace(line) {
			t.Errorf("dmsetup: %q, ioctl: %q (%v)", line, status, err)
		}
		devices++
	}
	if devices < 4 { // the volume, its pool, and the pool's two halves
		t.Errorf("%d devices only", devices)
	}
	if status, err := dmStatus("no-such-device"); status != "" || err != nil {
		t.Errorf("a device that is not there: %q %v", status, err)
	}
}
