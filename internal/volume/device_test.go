package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// A device is known by what does not change with its name, a partition by its disk and
// where it lies, and one that has nothing of the kind only until the machine starts again.
func TestDeviceIdentity(t *testing.T) {
	s := &System{sysfs: t.TempDir()}
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(s.sysfs, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(name, number, wwid string) {
		t.Helper()
		dir := "devices/pci/" + name
		write(dir+"/size", "2048")
		write(dir+"/dev", number)
		if wwid != "" {
			write(dir+"/device/wwid", wwid)
		}
		if err := os.MkdirAll(s.sysfs+"/dev/block", 0o755); err != nil {
			t.Fatal(err)
		}
		os.Remove(s.sysfs + "/dev/block/" + number)
		if err := os.Symlink("../../"+dir, s.sysfs+"/dev/block/"+number); err != nil {
			t.Fatal(err)
		}
	}
	of := func(number string) string { return s.identity(s.sysfs + "/dev/block/" + number) }
	disk("sdb", "8:16", "naa.5000")
	disk("sdc", "8:32", "naa.6000")
	disk("vdb", "254:16", "")
	was := of("8:16")
	m := Making{Device: "/dev/sdb", Group: "mysql", Wipe: []string{"ext4"}, Identity: was}
	disk("sdb", "8:16", "naa.6000") // the machine has started, and they have changed places
	disk("sdc", "8:32", "naa.5000")
	if of("8:32") != was || of("8:16") == was {
		t.Errorf("%s is neither %s nor %s", was, of("8:16"), of("8:32"))
	}
	if err := m.sameDevice(of("8:16")); respaldo.KindOf(err) != respaldo.Refused || m.sameDevice(of("8:32")) != nil {
		t.Errorf("another disk of the same name: %v", err)
	}
	if err := m.sameDevice(""); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a disk that is gone: %v", err)
	}
	if boot := strings.TrimSpace(readFile("/proc/sys/kernel/random/boot_id")); !strings.Contains(of("254:16"), boot) {
		t.Errorf("a disk without a number of its own is known by %s", of("254:16"))
	}
	write("devices/pci/sdb/sdb1/partition", "1")
	write("devices/pci/sdb/sdb1/start", "64")
	write("devices/pci/sdb/sdb1/size", "1024")
	if part := s.identity(s.sysfs + "/devices/pci/sdb/sdb1"); part != "device/wwid naa.6000 partition 1 at 64, 1024 sectors" {
		t.Errorf("a partition is known by %q", part)
	}
	for _, c := range []struct {
		d     Device
		may   []string
		allow bool
	}{
		{Device{}, nil, true},
		{Device{Signatures: []string{"ext4"}}, m.Wipe, true},
		{Device{Signatures: []string{"ext4", "gpt"}}, m.Wipe, false},
		{Device{Signatures: []string{"ext4"}}, nil, false}, // wiped already, and filled by another
		{Device{Signatures: []string{physicalVolume}, Group: "mysql"}, []string{physicalVolume}, true},
		{Device{Signatures: []string{physicalVolume}, Group: "others"}, []string{physicalVolume}, false},
	} {
		if err := m.onlyHolds(c.d, c.may); (err == nil) != c.allow {
			t.Errorf("a device with %+v, of which it may hold %q: %v", c.d, c.may, err)
		}
	}
}
