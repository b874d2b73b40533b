package volume

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/respaldo-backup/respaldo"
)

func TestFstab(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fstab")
	text := "# a comment\n/dev/vg0/data /srv/my\\040data ext4 noatime,errors=remount-ro 0 2\n/dev/vg0/other /srv/other/ xfs\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string][]string{
		"/srv/my data": {"/dev/vg0/data", "/srv/my data", "ext4", "noatime,errors=remount-ro", "0", "2"},
		"/srv/other":   {"/dev/vg0/other", "/srv/other", "xfs", "defaults"},
		"/srv":         nil,
	} {
		if got, err := fstabLine(path, at); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", at, got, err)
		}
	}
	if got, err := fstabLine(path+".none", "/srv"); got != nil || err != nil {
		t.Errorf("without a file: %q, %v", got, err)
	}
}

// What would mount something else after a rollback is refused, or warned of.
func TestJudgeFstab(t *testing.T) {
	lv, sub := respaldo.Volume{Kind: respaldo.LVMThin, Name: "vg0/data"}, respaldo.Volume{Kind: respaldo.Btrfs, Name: "mysql"}
	for _, c := range []struct {
		volume         respaldo.Volume
		spec, options  string
		warns, refuses string
	}{
		{lv, "/dev/vg0/data", "defaults", "", ""},
		{lv, "UUID=1234", "defaults", "UUID=1234", ""},
		{lv, "/dev/disk/by-label/data", "defaults", "by-label", ""},
		{sub, "UUID=1234", "subvol=mysql,noatime", "", ""},
		{sub, "/dev/sdb", "noatime,subvolid=256", "", "subvolid=256"},
		{sub, "/dev/sdb", "noatime", "", "default subvolume"},
	} {
		warnings, err := judgeFstab([]string{c.spec, "/srv", "x", c.options}, c.volume, "/mysql")
		if said := strings.Join(warnings, " "); !strings.Contains(said, c.warns) || c.warns == "" && said != "" {
			t.Errorf("%s %s: warns %q", c.spec, c.options, said)
		}
		if c.refuses == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.refuses) || respaldo.KindOf(err) != respaldo.Refused) {
			t.Errorf("%s %s: %v", c.spec, c.options, err)
		}
	}
}

func TestKernelOptions(t *testing.T) {
	m := &mountinfo.Info{FSType: "btrfs", Options: "rw,noatime", VFSOptions: "rw,seclabel,space_cache=v2,subvolid=256,subvol=/mysql"}
	if got := kernelOptions(m, "/mysql"); got != "rw,noatime,space_cache=v2,subvol=/mysql" {
		t.Error(got)
	}
}

func TestMergeProgress(t *testing.T) {
	var seen []int64
	m := &mergeOutput{progress: func(p respaldo.Progress) { seen = append(seen, p.Done) }}
	for _, text := range []string{"  Merging of volume vg0/s started.\n  vg0/data: Mer", "ged: 12.50%\n  vg0/data: Merged: 100.00%\n"} {
		m.Write([]byte(text))
	}
	if !slices.Equal(seen, []int64{125, 1000}) {
		t.Error(seen)
	}
}
