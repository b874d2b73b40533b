//go:build lab

package lab_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

func TestZZ(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []lab.Spec{
		{Name: "plain", Memory: 1536, Disks: twoDisks, Deadline: 10 * time.Minute},
		{Name: "systemd", Systemd: true, Memory: 1024, Deadline: 10 * time.Minute, Disks: twoDisks, Root: lab.Disk{Path: filepath.Join(dir, "root"), Bytes: 2 << 30}},
	} {
		t.Run(s.Name, func(t *testing.T) { lab.RunTests(t, s, "./internal/volume", "^(TestVolumeConformance|TestGroupShared|TestKilledCommand)$") })
	}
}
