//go:build lab

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

// TestSystemd is a real host: systemd and udevd, a server that is a unit. The second boot
// finds the disks and the root as the first one has left them.
func TestSystemd(t *testing.T) {
	t.Parallel()
	kinds := []string{"lvm-thin"}
	if os.Getenv(lab.SoakEnv) != "" {
		kinds = []string{"lvm-thin", "lvm-thick", "btrfs"}
		t.Run("pause", func(t *testing.T) { // with udev and the distribution's lvm.conf
			lab.RunTests(t, lab.Spec{Name: "pause", Systemd: true, Memory: 1024, Deadline: 10 * time.Minute, Disks: twoDisks,
				Root: lab.Disk{Path: filepath.Join(t.TempDir(), "root"), Bytes: 2 << 30}}, "./internal/volume", "^TestPause$")
		})
	}
	for _, kind := range kinds {
		dir := t.TempDir()
		spec := lab.Spec{Name: "systemd", Systemd: true, Respaldo: true, Memory: 1536, Deadline: 10 * time.Minute,
			Root: lab.Disk{Path: filepath.Join(dir, "root"), Bytes: 2 << 30}, Disks: []lab.Disk{{Path: filepath.Join(dir, "disk"), Bytes: 4 << 30}}}
		for boot := range 2 {
			t.Run(fmt.Sprintf("%s/%d", kind, boot), func(t *testing.T) {
				spec.Env = []string{"LAB_KIND=" + kind, fmt.Sprint("LAB_BOOT=", boot)}
				lab.RunTests(t, spec, "./cmd/respaldo", "^TestSystemd$")
			})
		}
	}
}
