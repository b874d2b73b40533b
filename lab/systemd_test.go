//go:build lab

package lab_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

// TestSystemd is a real host: systemd and udevd, a server that is a unit. The second boot
// finds the disks and the root as the first one has left them.
func TestSystemd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	spec := lab.Spec{Systemd: true, Respaldo: true, Memory: 1536, Deadline: 10 * time.Minute, Root: lab.Disk{Path: filepath.Join(dir, "root"), Bytes: 2 << 30}}
	for i, d := range twoDisks {
		spec.Disks = append(spec.Disks, lab.Disk{Path: filepath.Join(dir, fmt.Sprint("disk", i)), Bytes: d.Bytes})
	}
	for boot := range 2 {
		t.Run(fmt.Sprint("boot ", boot), func(t *testing.T) {
			spec.Env = []string{fmt.Sprint("LAB_BOOT=", boot)}
			lab.RunTests(t, spec, "./cmd/respaldo", "^TestSystemd$")
		})
	}
}
