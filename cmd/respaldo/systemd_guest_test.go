//go:build guest

package main

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestSystemd runs where systemd is the first process and udevd opens every device that
// appears or was written to, as on a real host.
func TestSystemd(t *testing.T) {
	kinds := []string{"thick-ext4"}
	if os.Getenv("RESPALDO_SOAK") != "" {
		kinds = []string{"thick-ext4", "thin-ext4", "thick-xfs", "btrfs-on-lv", "btrfs"}
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			s := newStand(t, kind, "mariadb-10.11", standOptions{})
			s.besideUdev(t)
		})
	}
}

// besideUdev takes and removes snapshots while others look at the devices that appear.
func (s *stand) besideUdev(t *testing.T) {
	rounds := 1
	if os.Getenv("RESPALDO_SOAK") != "" {
		rounds = 20
	}
	for range rounds {
		name := s.take("--ttl", "1h").Snapshot.Name
		guest.Run(t, "udevadm", "trigger", "--subsystem-match=block") // udev opens every disk, while
		s.ok("snapshot", "remove", name)
	}
	held := curious(t)
	name := s.take("--ttl", "1h").Snapshot.Name
	if s.volume.Group != "" && s.volume.FSType != "btrfs" {
		guest.Eventually(t, testLimit, func() error { return held(name) })
	}
	s.ok("snapshot", "remove", name)
	s.backup()
	guest.Run(t, "udevadm", "settle")
	s.before.NothingLeft(t, "/sbin/dmeventd") // which the first snapshot started
}

// curious makes udev start something that keeps every new logical volume open for a while, as
// those do that look for filesystems to offer. It returns whether a volume is or was held.
func curious(t *testing.T) func(lv string) error {
	t.Helper()
	const program, rule, log = "/run/look-at-device", "/run/udev/rules.d/99-look.rules", "/run/looked-at"
	for path, text := range map[string]string{
		program: "#!/bin/sh\nexec <\"$1\"\necho \"$2\" >>" + log + "\nexec sleep 3\n",
		rule:    `ACTION=="change", ENV{DM_LV_NAME}=="?*", RUN+="/usr/bin/systemd-run --no-block --quiet ` + program + ` $devnode $env{DM_LV_NAME}"` + "\n",
	} {
		if err := os.MkdirAll("/run/udev/rules.d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	guest.Run(t, "udevadm", "control", "--reload")
	t.Cleanup(func() {
		if err := os.Remove(rule); err != nil {
			t.Error(err)
		}
		guest.Run(t, "udevadm", "control", "--reload")
	})
	return func(lv string) error {
		text, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(text), lv+"\n") {
			err = errors.New("nobody looked at " + lv)
		}
		return err
	}
}
