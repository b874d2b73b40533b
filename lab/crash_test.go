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
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// crashSpec is the guest in which operations are made to die.
var crashSpec = lab.Spec{Disks: twoDisks, Memory: 1536, Deadline: 30 * time.Minute, Respaldo: true}

// TestCrash kills respaldo at every step, sends it signals, and kills its volume commands.
func TestCrash(t *testing.T) {
	t.Parallel()
	lab.RunTests(t, crashSpec, "./cmd/respaldo", "^TestCrash$")
}

// cutEvery is how many steps there are to one at which the power is cut; TestCrash kills at each.
const cutEvery = 3

// TestCrashPower cuts the power at a sample of the steps, one guest after the other on the
// same disks, on thin volumes at others than on thick ones; at every step on every kind of
// volume and server when soaking.
func TestCrashPower(t *testing.T) {
	t.Parallel()
	stands := []string{"thick-ext4 mysql-5.6", "thin-ext4 mariadb-10.11"}
	soak := os.Getenv(lab.SoakEnv) != ""
	if soak {
		stands = nil
		for _, server := range servers.Names {
			stands = append(stands, "thick-ext4 "+server, "thin-ext4 "+server, "btrfs-on-lv "+server)
		}
	}
	var swept []string
	for _, stand := range stands {
		t.Run(stand, func(t *testing.T) {
			if soak {
				cutSteps(t, stand, 1, nil)
			} else {
				swept = append(swept, cutSteps(t, stand, cutEvery, swept)...)
			}
		})
	}
}

// cutSteps boots guests on the same disks until no step is left, and returns the steps at
// which the power was cut: one of every so many, without those that were swept before.
func cutSteps(t *testing.T, stand string, every int, before []string) []string {
	dir := t.TempDir()
	spec := crashSpec
	spec.Deadline = 10 * time.Minute // of each boot
	spec.Disks = nil
	for i, d := range twoDisks {
		spec.Disks = append(spec.Disks, lab.Disk{Path: filepath.Join(dir, fmt.Sprint("disk", i)), Bytes: d.Bytes})
	}
	var swept []string
	step := ""
	spec.OnLine = func(line string) {
		if _, s, ok := strings.Cut(line, "LAB-STEP "); ok {
			step = s
		}
	}
	for boot := 0; ; boot++ {
		from := step
		spec.Name = fmt.Sprint("cut-", boot)
		spec.Env = []string{"LAB_STAND=" + stand, fmt.Sprint("LAB_EVERY=", every), "LAB_SWEPT=" + strings.Join(before, ","), fmt.Sprint("LAB_BOOT=", boot)}
		start := time.Now()
		cut := lab.CutPower(t, spec, "./cmd/respaldo", "^TestPowerCut$", "LAB-AT ")
		t.Logf("repaired after the cut at %q, then %q, in %s", from, step, time.Since(start).Round(time.Second))
		if !cut {
			break
		}
		swept = append(swept, step)
	}
	if step != "none" || len(swept) == 0 {
		t.Errorf("not every step was swept: %q, then %q", swept, step)
	}
	return swept
}
