//go:build lab

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

// powerSteps are where the power goes while a server's data moves onto a volume, and while
// that volume goes back: where the machine comes up with half of it. Without soaking it is
// where the data is in two places, and where there is no volume by the name that fstab has.
var powerSteps = map[string][]string{
	"lvm-thin": {"prepare.fstab.done prepare.mount.done prepare.copied prepare.switched-1 prepare.options.done prepare.start.done",
		"rollback.copied rollback.unmounted rollback.copy.released rollback.renamed.away rollback.renamed rollback.state.kept rollback.mounted"},
	"lvm-thick": {"prepare.copied prepare.switched-1", "rollback.switching rollback.merging rollback.merge.begun rollback.switched"},
	"btrfs":     {"prepare.copied prepare.switched-1", "rollback.copied rollback.exchanged rollback.synced rollback.mounted"},
}

// TestSystemdPower cuts the power of a real host under prepare and rollback, and boots it
// again with the same root and disk.
func TestSystemdPower(t *testing.T) {
	t.Parallel()
	if os.Getenv(lab.SoakEnv) == "" {
		cutHost(t, "lvm-thin", "prepare.switched-1 rollback.renamed.away")
		return
	}
	for _, kind := range []string{"lvm-thin", "lvm-thick", "btrfs"} {
		t.Run(kind, func(t *testing.T) { cutHost(t, kind, strings.Join(powerSteps[kind], " ")) })
	}
}

// cutHost boots a host once for each step, and once more.
func cutHost(t *testing.T, kind, steps string) {
	dir := t.TempDir()
	spec := lab.Spec{Systemd: true, Respaldo: true, Memory: 1536, Deadline: 10 * time.Minute, // of each boot
		Root: lab.Disk{Path: filepath.Join(dir, "root"), Bytes: 2 << 30}, Disks: []lab.Disk{{Path: filepath.Join(dir, "disk"), Bytes: 4 << 30}}}
	var cut []string
	at := "" // with what the guest says of it
	spec.OnLine = func(line string) {
		if _, point, ok := strings.Cut(line, "LAB-AT "); ok {
			at = point
			point, _, _ = strings.Cut(point, " ")
			cut = append(cut, point)
		}
		if strings.Contains(line, "cleanup says") {
			t.Log(line)
		}
	}
	for boot := 0; boot <= len(strings.Fields(steps)); boot++ {
		spec.Name = fmt.Sprint("systemd-cut-", boot)
		spec.Env = []string{"LAB_KIND=" + kind, "LAB_STEPS=" + steps, fmt.Sprint("LAB_BOOT=", boot)}
		start := time.Now()
		if !lab.CutPower(t, spec, "./cmd/respaldo", "^TestSystemdPower$", "LAB-AT ") {
			t.Logf("at its end after %s", time.Since(start).Round(time.Second))
			break
		}
		t.Logf("the power was cut at %s, %s after the boot", at, time.Since(start).Round(time.Second))
	}
	if got := strings.Join(cut, " "); got != steps {
		t.Errorf("the power was cut at %q, not at %q", got, steps)
	}
}
