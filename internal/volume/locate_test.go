package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// fakeSys makes a sysfs of block devices: "252:3" → its files; a file "slaves" names the
// devices below.
func fakeSys(t *testing.T, devices map[string]map[string]string) *System {
	t.Helper()
	root := t.TempDir()
	for dev, files := range devices {
		dir := filepath.Join(root, "dev/block", dev)
		for name, content := range files {
			path := filepath.Join(dir, name)
			if name == "slaves" {
				for below := range strings.FieldsSeq(content) {
					put(t, filepath.Join(dir, "slaves", below, "dev"), below+"\n")
				}
				continue
			}
			put(t, path, content+"\n")
		}
	}
	return &System{sysfs: root}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

const lvUUID = "LVM-4CPG47ZH2dPdBRu3ixRkFUoE5AlD6w2BkLLsghzoCHfZ2z28XdnCgj1fMugOHkSv"

func lvDevice(below string) map[string]string {
	return map[string]string{"uevent": "MAJOR=254\nDEVNAME=dm-0\nDEVTYPE=disk", "dm/name": "my--vg-da--ta", "dm/uuid": lvUUID, "slaves": below}
}

// What lies below a filesystem is told apart, and named in the refusal.
func TestRefusals(t *testing.T) {
	disk := map[string]string{"uevent": "DEVNAME=sda\nDEVTYPE=disk"}
	partition := map[string]string{"uevent": "DEVNAME=sda1\nDEVTYPE=partition", "partition": "1"}
	for name, c := range map[string]struct {
		devices map[string]map[string]string
		fs      string
		source  string
		says    []string // nothing: it can be snapshotted
	}{
		"LV":                        {map[string]map[string]string{"9:9": lvDevice("8:1"), "8:1": partition}, "ext4", "", nil},
		"LV on RAID":                {map[string]map[string]string{"9:9": lvDevice("9:0"), "9:0": {"uevent": "DEVNAME=md0", "md/level": "raid1"}}, "xfs", "", nil},
		"LV on LUKS":                {map[string]map[string]string{"9:9": lvDevice("254:5"), "254:5": {"uevent": "DEVNAME=dm-5", "dm/name": "luks", "dm/uuid": "CRYPT-LUKS2-x-luks"}}, "ext4", "", nil},
		"LV with an odd filesystem": {map[string]map[string]string{"9:9": lvDevice("8:1")}, "reiserfs", "", []string{"reiserfs"}},
		"LUKS on LV":                {map[string]map[string]string{"9:9": {"uevent": "DEVNAME=dm-1", "dm/name": "secret", "dm/uuid": "CRYPT-LUKS2-abc-secret", "slaves": "254:0"}, "254:0": lvDevice("8:1")}, "ext4", "", []string{"dm-crypt mapping secret", "LVM logical volume my-vg/da-ta"}},
		"RAID on LVs":               {map[string]map[string]string{"9:9": {"uevent": "DEVNAME=md0", "md/level": "raid1", "slaves": "254:0 254:1"}}, "ext4", "", []string{"md RAID array md0"}},
		"partition":                 {map[string]map[string]string{"9:9": partition}, "ext4", "", []string{"partition sda1"}},
		"whole disk":                {map[string]map[string]string{"9:9": disk}, "xfs", "", []string{"disk sda"}},
		"multipath":                 {map[string]map[string]string{"9:9": {"uevent": "DEVNAME=dm-2", "dm/name": "mpatha", "dm/uuid": "mpath-360", "slaves": "8:0 8:16"}}, "xfs", "", []string{"multipath device mpatha"}},
		"loop":                      {map[string]map[string]string{"9:9": {"uevent": "DEVNAME=loop0", "loop/backing_file": "/srv/disk.img"}}, "ext4", "", []string{"loop device loop0", "/srv/disk.img"}},
		"tmpfs":                     {nil, "tmpfs", "tmpfs", []string{"tmpfs"}},
		"overlay":                   {nil, "overlay", "overlay", []string{"overlay"}},
		"NFS":                       {nil, "nfs4", "nas:/db", []string{"nas:/db"}},
		"ZFS":                       {nil, "zfs", "tank/db", []string{"ZFS", "tank/db"}},
	} {
		t.Run(name, func(t *testing.T) {
			loc := Location{Path: "/srv/db", FSType: c.fs, Source: c.source}
			if c.devices != nil {
				loc.Stack = fakeSys(t, c.devices).stack("9:9")
			}
			err := refuseLocation(loc)
			if c.says == nil {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				if l := loc.Stack[0]; l.Name != "my-vg/da-ta" || l.Node != "/dev/mapper/my--vg-da--ta" || len(loc.Stack) < 2 {
					t.Errorf("stack %v", loc.Stack)
				}
				return
			}
			if respaldo.KindOf(err) != respaldo.Refused || err == nil || len(respaldo.HintsOf(err)) == 0 {
				t.Fatalf("not refused with a hint: %v", err)
			}
			for _, s := range append(c.says, "/srv/db") {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

// A path is found through links; whose mount it is, the kernel says.
func TestLocate(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	s := &System{}
	loc, err := s.Locate(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	real, _ := filepath.EvalSymlinks(dir)
	if loc.Path != link || loc.Real != real || !strings.HasPrefix(real, loc.MountPoint) || loc.FSType == "" || !strings.HasSuffix(loc.Inner, filepath.Base(real)) {
		t.Errorf("%+v", loc)
	}
	proc, err := s.Locate(t.Context(), "/proc/self/status")
	if err != nil || proc.FSType != "proc" || proc.MountPoint != "/proc" || len(proc.Stack) != 0 || proc.Inner != proc.Real[len("/proc"):] {
		t.Errorf("/proc: %+v, %v", proc, err)
	}
	if _, err := s.Locate(t.Context(), filepath.Join(dir, "nothing")); respaldo.KindOf(err) != respaldo.NotFound || err == nil {
		t.Errorf("a path that is not there: %v", err)
	}
	if _, err := s.Find(t.Context(), "/proc"); respaldo.KindOf(err) != respaldo.Refused || err == nil {
		t.Errorf("/proc can be snapshotted: %v", err)
	}
	if nested, err := s.Nested(t.Context(), dir); err != nil || len(nested) != 0 {
		t.Errorf("nested below an empty folder: %v, %v", nested, err)
	}
	nested, err := s.Nested(t.Context(), "/")
	if err != nil || !contains(nested, "/proc") {
		t.Errorf("mounts below /: %v, %v", nested, err)
	}
}

// TestHolders sees ourselves: a file open, by its path and by the folder's.
func TestHolders(t *testing.T) {
	dir, _ := filepath.EvalSymlinks(t.TempDir())
	f, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	s := &System{}
	holders, err := s.Holders(dir)
	if err != nil || len(holders) != 1 || holders[0].PID != os.Getpid() || !strings.Contains(holders[0].String(), f.Name()) {
		t.Errorf("holders %v, %v", holders, err)
	}
	f.Close()
	if holders, err = s.Holders(dir); err != nil || len(holders) != 0 {
		t.Errorf("after the close: %v, %v", holders, err)
	}
	if err := s.Unmount(t.Context(), filepath.Join(dir, "never")); err != nil {
		t.Errorf("unmounting what is not there: %v", err)
	}
	if points, err := s.MountsUnder(dir); err != nil || len(points) != 0 {
		t.Errorf("mounts %v, %v", points, err)
	}
}

func contains(list []string, one string) bool {
	for _, s := range list {
		if s == one {
			return true
		}
	}
	return false
}
