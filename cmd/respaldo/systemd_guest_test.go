//go:build guest

package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestSystemd runs where systemd is the first process and udevd opens every device that
// appears or was written to, as on a real host. The server is a unit of systemd.
func TestSystemd(t *testing.T) {
	kind := os.Getenv("LAB_KIND")
	s := &stand{t: t, whole: t, dir: "/srv/stand", config: "/etc/respaldo/respaldo.toml", before: guest.Look(t)}
	if os.Getenv("LAB_BOOT") == "0" {
		s.installed(t)
		s.byHand(t, kind)
		s.besideUdev(t)
		s.rolledBack(t)
		return
	}
	s.rebooted(t)
}

// installed sets the server up as a package does, with data.
func (s *stand) installed(t *testing.T) {
	s.server = guest.InstallUnit(t)
	guest.Configure(t, filepath.Dir(s.config), s.server, s.dir+"/repository", `max_lock = "20s"`)
	s.server.Exec(t, "CREATE DATABASE shop", "CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(100)) ENGINE=InnoDB",
		"CREATE TABLE shop.notes (id INT PRIMARY KEY, note TEXT) ENGINE=MyISAM",
		"INSERT INTO shop.customers SELECT seq, CONCAT('customer ', seq) FROM shop.seq_1_to_2000",
		"INSERT INTO shop.notes VALUES (1, 'not transactional')")
	s.ok("init")
}

func (s *stand) byHand(t *testing.T, kind string) {
	guest.Run(t, "systemctl", "stop", "mariadb")
	guest.Run(t, "pvcreate", "-qq", "/dev/ubdb")
	guest.Run(t, "vgcreate", "-qq", "vg0", "/dev/ubdb")
	if kind == "thin" {
		guest.Run(t, "lvcreate", "-qq", "--type", "thin-pool", "-L", "2g", "-n", "pool", "vg0")
		guest.Run(t, "lvcreate", "-qq", "-V", "1g", "--thinpool", "pool", "-n", "mysql", "vg0")
	} else {
		guest.Run(t, "lvcreate", "-qq", "-L", "1g", "-n", "mysql", "vg0")
	}
	guest.Run(t, "mkfs.ext4", "-q", "/dev/vg0/mysql")
	guest.Run(t, "mv", "/var/lib/mysql", "/var/lib/mysql.old")
	guest.Run(t, "mkdir", "/var/lib/mysql")
	guest.Run(t, "sh", "-c", "echo '/dev/vg0/mysql /var/lib/mysql ext4 defaults 0 2' >>/etc/fstab; systemctl daemon-reload; mount /var/lib/mysql")
	guest.Run(t, "sh", "-c", "cp -a /var/lib/mysql.old/. /var/lib/mysql/; rmdir /var/lib/mysql/lost+found; systemctl start mariadb")
}

func (s *stand) rolledBack(t *testing.T) {
	sums := guest.Checksums(t, s.server.DB)
	name := s.take().Snapshot.Name
	s.server.Exec(t, "UPDATE shop.customers SET name='nobody'", "DROP TABLE shop.notes", "CREATE DATABASE blog")
	o := s.run(nil, "rollback", name, "--yes")
	t.Log(guest.Run(t, "sh", "-c", "cat /var/lib/mysql/mysql-bin.index; ls -l /var/lib/mysql; mysql -e 'show binary logs; show variables like \"log_bin%\"'; findmnt; cat /root/.respaldo* /var/lib/respaldo/snapshots/*.json | head -c 3000; journalctl --no-pager -o cat -u mariadb | tail -30"))
	t.Log(o.stdout, o.stderr)
	if now := guest.Checksums(t, s.server.DB); !maps.Equal(now, sums) {
		t.Errorf("rolled back to %v, not %v", now, sums)
	}
	guest.Run(t, "systemctl", "is-active", "mariadb")
	t.Log(guest.Run(t, "lvs", "-a"), guest.Run(t, "findmnt", "/var/lib/mysql"), guest.Run(t, "systemctl", "--no-pager", "list-units", "--failed", "--all"))
}

func (s *stand) rebooted(t *testing.T) {
	s.server = guest.OpenUnit(t)
	t.Log(guest.Run(t, "lvs", "-a"), guest.Run(t, "findmnt", "/var/lib/mysql"))
	t.Log(guest.Checksums(t, s.server.DB))
	for _, k := range s.snapshots() {
		s.ok("snapshot", "remove", k.Snapshot.Name)
	}
	t.Log(guest.Run(t, "lvs", "-a"), guest.Run(t, "dmsetup", "ls"))
}

// besideUdev takes and removes snapshots while others look at the devices that appear.
func (s *stand) besideUdev(t *testing.T) {
	before := guest.Look(t)
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
	if os.Getenv("LAB_KIND") != "btrfs" {
		guest.Eventually(t, testLimit, func() error { return held(name) })
	}
	s.ok("snapshot", "remove", name)
	s.backup()
	guest.Run(t, "udevadm", "settle")
	before.NothingLeft(t, "/sbin/dmeventd") // which the first snapshot started
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
