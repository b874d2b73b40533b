//go:build guest

package main

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestSystemd runs where systemd is the first process and udevd opens every device that
// appears, as on a real host. The server is a unit, as a package sets it up; its data moves
// from the root to a volume, which goes back to a snapshot and comes up again at the next boot.
func TestSystemd(t *testing.T) {
	h := &machine{stand: &stand{t: t, whole: t, dir: "/srv/stand", config: "/etc/respaldo/respaldo.toml"}, kind: os.Getenv("LAB_KIND")}
	if os.Getenv("LAB_BOOT") == "0" {
		h.install(t)
		h.prepare(t)
		h.besideUdev(t)
		h.rollBack(t)
		h.rollBackGivenUp(t)
		return
	}
	h.afterReboot(t)
}

// machine is a stand in which systemd stops and starts the server.
type machine struct {
	*stand
	kind string // as for prepare --kind
}

const sumsFile = "/srv/stand/sums.json"

func (h *machine) install(t *testing.T) {
	h.server = guest.InstallUnit(t)
	guest.Configure(t, filepath.Dir(h.config), h.server, h.dir+"/repository", `max_lock = "20s"`)
	h.server.Exec(t, "CREATE DATABASE shop",
		"CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(100)) ENGINE=InnoDB",
		"CREATE TABLE shop.notes (id INT PRIMARY KEY, note TEXT) ENGINE=MyISAM",
		"INSERT INTO shop.customers SELECT seq, CONCAT('customer ', seq) FROM shop.seq_1_to_2000",
		"INSERT INTO shop.notes VALUES (1, 'not transactional')")
	h.ok("init")
}

// prepare moves the data directory onto a volume; the server is up all but a moment.
func (h *machine) prepare(t *testing.T) {
	sums, pid := guest.Checksums(t, h.server.DB), h.mainPID()
	h.ok("prepare", "--device", guest.Disk(0), "--kind", h.kind, "--yes")
	if now := guest.Checksums(t, h.server.DB); !maps.Equal(now, sums) {
		t.Errorf("the tables were %v and are %v", sums, now)
	}
	if h.mainPID() == pid {
		t.Error("the server was not restarted, or not by systemd")
	}
}

// mainPID is that of the unit's server: 0 if it does not run.
func (h *machine) mainPID() string {
	h.t.Helper()
	return strings.TrimSpace(guest.Run(h.t, "systemctl", "show", "--property=MainPID", "--value", guest.Unit))
}

func (h *machine) rollBack(t *testing.T) {
	sums := guest.Checksums(t, h.server.DB)
	name := h.take().Snapshot.Name
	h.server.Exec(t, "UPDATE shop.customers SET name = 'nobody'", "DROP TABLE shop.notes", "CREATE DATABASE blog")
	h.ok("rollback", name, "--yes")
	if now := guest.Checksums(t, h.server.DB); !maps.Equal(now, sums) {
		t.Errorf("rolled back to %v, at the snapshot %v", now, sums)
	}
	if pid := h.mainPID(); pid == "0" {
		t.Error("systemd does not run the server")
	}
	if failed := guest.Run(t, "systemctl", "list-units", "--failed", "--no-legend", "--plain"); failed != "" {
		t.Errorf("units that failed:\n%s", failed)
	}
	h.ok("status") // the volume is another, and the same to whoever looks
	h.server.Exec(t, "INSERT INTO shop.notes VALUES (2, 'after the rollback')")
	text, err := json.Marshal(guest.Checksums(t, h.server.DB))
	if err == nil {
		err = os.WriteFile(sumsFile, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// rollBackGivenUp goes back with a server whose files are damaged, and which systemd has
// tried to start so often that it does so no more.
func (h *machine) rollBackGivenUp(t *testing.T) {
	name := h.take().Snapshot.Name
	guest.Run(t, "mkdir", "-p", "/run/systemd/system/"+guest.Unit+".d")
	if err := os.WriteFile("/run/systemd/system/"+guest.Unit+".d/limit.conf", []byte("[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "systemctl", "daemon-reload")
	guest.Run(t, "systemctl", "stop", guest.Unit)
	guest.Run(t, "truncate", "--size=100K", h.server.DataDir+"/ibdata1")
	tried := func() string { // when it was, at last
		guest.Run(t, "sh", "-c", "! systemctl start "+guest.Unit)
		return guest.Run(t, "systemctl", "show", "--property=ExecMainStartTimestampMonotonic", guest.Unit)
	}
	tried()
	if before, after := tried(), tried(); before != after {
		t.Fatalf("systemd has not given up: %s, then %s", before, after)
	}
	h.ok("rollback", name, "--yes", "--prove", "none")
	if pid := h.mainPID(); pid == "0" {
		t.Error("systemd does not run the server")
	}
	sums := savedSums(t)
	if now := guest.Checksums(t, h.server.DB); !maps.Equal(now, sums) {
		t.Errorf("rolled back to %v, at the snapshot %v", now, sums)
	}
}

// savedSums are the checksums that rollBack has left.
func savedSums(t *testing.T) (sums map[string]string) {
	t.Helper()
	text, err := os.ReadFile(sumsFile)
	if err == nil {
		err = json.Unmarshal(text, &sums)
	}
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// afterReboot finds the server up on its volume, mounted by fstab, and removes all snapshots.
func (h *machine) afterReboot(t *testing.T) {
	sums := savedSums(t)
	h.server = guest.OpenUnit(t)
	if now := guest.Checksums(t, h.server.DB); !maps.Equal(now, sums) {
		t.Errorf("after the reboot %v, before it %v", now, sums)
	}
	for _, k := range h.snapshots() {
		h.ok("snapshot", "remove", k.Snapshot.Name)
	}
	h.ok("check")
	guest.Run(t, "udevadm", "settle")
	for _, left := range []string{guest.Run(t, "lvs", "--noheadings", "-o", "lv_name", "--select", "lv_tags=respaldo"), guest.Run(t, "dmsetup", "ls")} {
		if strings.Contains(left, "respaldo") {
			t.Errorf("snapshots are left:\n%s", left)
		}
	}
}

// besideUdev takes and removes snapshots while others look at the devices that appear.
func (h *machine) besideUdev(t *testing.T) {
	before := guest.Look(t)
	rounds := 1
	if os.Getenv("RESPALDO_SOAK") != "" {
		rounds = 20
	}
	for range rounds {
		name := h.take("--ttl", "1h").Snapshot.Name
		guest.Run(t, "udevadm", "trigger", "--subsystem-match=block") // udev opens every disk, while
		h.ok("snapshot", "remove", name)
	}
	held := curious(t)
	name := h.take("--ttl", "1h").Snapshot.Name
	if h.kind != "btrfs" {
		guest.Eventually(t, testLimit, func() error { return held(name) })
	}
	h.ok("snapshot", "remove", name)
	h.unitsRun(t)
	guest.Run(t, "udevadm", "settle")
	before.NothingLeft(t, "/sbin/dmeventd") // which the first snapshot started
}

// unitsRun has systemd run the package's units, which call /usr/bin/respaldo.
func (h *machine) unitsRun(t *testing.T) {
	guest.Run(t, "sh", "-c", "ln -sf \"$(command -v respaldo)\" /usr/bin/respaldo && cp /src/packaging/systemd/* /etc/systemd/system/ && systemctl daemon-reload")
	for _, unit := range []string{"respaldo-backup@main", "respaldo-cleanup@main", "respaldo-status"} {
		guest.Run(t, "systemctl", "start", unit+".service") // waits for a oneshot, and fails with it
	}
	if timers := guest.Run(t, "systemctl", "show", "--property=TimersMonotonic", "respaldo-cleanup@main.timer"); !strings.Contains(timers, "OnBootUSec=1min") {
		t.Errorf("nothing ends a rollback after a boot: %s", timers)
	}
	var list []respaldo.Backup
	if h.into(&list, "list"); len(list) != 1 || !list[0].Manifest.Proof.OK {
		t.Errorf("after the units ran there is %+v", list)
	}
}

// curious makes udev start something that keeps every new logical volume open for a while, as
// those do that look for filesystems to offer. It returns whether a volume is or was held.
func curious(t *testing.T) func(lv string) error {
	t.Helper()
	const program, rule, log = "/run/look-at-device", "/run/udev/rules.d/99-look.rules", "/run/looked-at"
	for path, text := range map[string]string{
		program: "#!/bin/sh\n{ echo \"$2\" >>" + log + "; sleep 3; } <\"$1\" || exit 0 # it is gone already\n",
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
