//go:build guest

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// cutMachine is a machine whose power is cut again and again, and what a boot of it must
// know of those before.
type cutMachine struct {
	*machine `json:"-"`
	Cuts     int               // so far
	Tables   map[string]string // checksums when the power was cut
	Then     map[string]string // and at the snapshot
	Snapshot string            // that the rollback was to
	Before   guest.State       // once the machine was prepared
}

const (
	cutFile = "/srv/stand/cut.json"
	// hurry has systemd not wait for a device that will not come, for a minute and a half.
	hurry = "/etc/systemd/system.conf.d/hurry.conf"
)

// TestSystemdPower is what a host does from one boot to the next power cut: it has come up by
// itself, its server has all rows, and the operation that was cut off can be led to its end.
// The lab's TestSystemdPower boots it and cuts the power. LAB_STEPS are the points at which
// that happens, in order, LAB_BOOT counts the boots from 0.
func TestSystemdPower(t *testing.T) {
	h := &cutMachine{machine: &machine{stand: &stand{t: t, whole: t, dir: "/srv/stand", config: "/etc/respaldo/respaldo.toml"}, kind: os.Getenv("LAB_KIND")}}
	steps := strings.Fields(os.Getenv("LAB_STEPS"))
	if len(steps) == 0 {
		t.Fatal("nobody would cut the power: TestSystemdPower of ./lab drives this test")
	}
	if os.Getenv("LAB_BOOT") == "0" {
		h.install(t)
	} else {
		h.recall()
		h.cameUp(steps[h.Cuts])
		h.Cuts++
	}
	if h.Cuts < len(steps) {
		h.cut(steps[h.Cuts])
	}
}

// cut begins the operation that a point belongs to, and waits there for the end.
func (h *cutMachine) cut(point string) {
	args := h.prepareArgs()
	if rolls(point) {
		if h.Before == nil {
			h.prepared()
		}
		h.Snapshot, h.Then = h.take().Snapshot.Name, guest.Checksums(h.t, h.server.DB)
		h.server.Exec(h.t, "UPDATE shop.customers SET name = 'changed' WHERE id < 100", "DELETE FROM shop.notes", fmt.Sprintf("CREATE DATABASE after_%d", h.Cuts),
			fmt.Sprintf("CREATE TABLE after_%d.later (id INT) ENGINE=InnoDB", h.Cuts))
		if point == rollbackMerging {
			h.server.Exec(h.t, "CREATE TABLE shop.large ENGINE=InnoDB SELECT seq, REPEAT('x', 1000) FROM shop.seq_1_to_100000")
		}
		args = []string{"rollback", h.Snapshot, "--yes", "--prove", "none"}
	}
	if point == "rollback.renamed.away" {
		h.writeDeep(hurry, "[Manager]\nDefaultDeviceTimeoutSec=5s\n")
	}
	h.server.Exec(h.t, "FLUSH TABLES") // a table of MyISAM is as durable as its pages
	h.Tables = guest.Checksums(h.t, h.server.DB)
	text, err := json.Marshal(h)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(cutFile, 0o600, string(text))
	unix.Sync() // what the test itself needs is not what it tests
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // the lab waits for LAB-AT there
	if point == rollbackMerging {
		go h.sayMerging()
	} else {
		cmd.Env = append(cmd.Env, "RESPALDO_FAULT=stop:"+point)
	}
	h.t.Fatalf("respaldo ended before %s: %v", point, cmd.Run())
}

// rollbackMerging is no point of respaldo's: LVM is at work.
const rollbackMerging = "rollback.merging"

// sayMerging calls for the power cut when LVM copies a thick snapshot back. If it never does,
// respaldo ends, and the test with it.
func (h *cutMachine) sayMerging() {
	guest.Eventually(h.t, 2*time.Minute, func() error {
		attr, err := guest.Try("lvs", "--noheadings", "-o", "lv_attr,data_percent", "mysql/mysql")
		if err == nil && !strings.HasPrefix(strings.TrimSpace(attr), "O") {
			err = errors.New("the volume does not merge: " + attr)
		}
		if err == nil {
			fmt.Println("LAB-AT", rollbackMerging, strings.TrimSpace(attr))
		}
		return err
	}, func(err error) { h.t.Error(err) })
}

func rolls(point string) bool { return strings.HasPrefix(point, "rollback.") }

func (h *cutMachine) prepareArgs() []string {
	return []string{"prepare", "--device", guest.Disk(0), "--kind", h.kind, "--yes"}
}

// recall finds what the boot before has noted.
func (h *cutMachine) recall() {
	text, err := os.ReadFile(cutFile)
	if err == nil {
		err = json.Unmarshal(text, h)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	os.Remove(hurry)
}

// cameUp sees to it that the machine and its rows are what they must be after the cut.
func (h *cutMachine) cameUp(point string) {
	if rolls(point) {
		h.repaired(point)
		return
	}
	h.failedUnits()
	h.isUp("after the boot")
	h.sameAs(h.Tables)
	h.server.Exec(h.t, fmt.Sprintf("INSERT INTO shop.customers VALUES (%d, 'after %s')", 10_000+h.Cuts, point)) // where it is, is the present
}

// isUp waits for the server, which systemd has started at boot.
func (h *cutMachine) isUp(when string) {
	h.t.Helper()
	if h.mainPID() == "0" {
		h.t.Errorf("%s the server does not run:\n%s", when, guest.Run(h.t, "sh", "-c", "systemctl status "+guest.Unit+"; journalctl -b --no-pager -u "+guest.Unit+" | tail -30; cat /etc/fstab /proc/mounts"))
		guest.Run(h.t, "systemctl", "start", guest.Unit)
	}
	h.server = guest.OpenUnit(h.t)
}

func (h *cutMachine) failedUnits() {
	h.t.Helper()
	if failed := guest.Run(h.t, "systemctl", "list-units", "--failed", "--no-legend", "--plain"); failed != "" {
		h.t.Errorf("units that failed:\n%s", failed)
	}
}

func (h *cutMachine) sameAs(want map[string]string) {
	h.t.Helper()
	if now := guest.Checksums(h.t, h.server.DB); !maps.Equal(now, want) {
		h.t.Errorf("the tables are %v, and were %v", now, want)
	}
}

// prepared goes on with prepare to its end.
func (h *cutMachine) prepared() {
	h.Tables = guest.Checksums(h.t, h.server.DB)
	h.ok(h.prepareArgs()...)
	h.sameAs(h.Tables)
	if o := h.ok(h.prepareArgs()...); !strings.Contains(o.stdout, "prepared") {
		h.t.Errorf("again:\n%s", o.stdout)
	}
	h.ok("check")
	h.failedUnits()
	h.Before = guest.Look(h.t)
}

// repaired: a cleanup has the server run on its volume again, with all rows as they were or
// all as at the snapshot, and says which; and nothing is left behind but what should stay.
func (h *cutMachine) repaired(point string) {
	found, written := h.writtenSinceBoot()
	if point == "rollback.renamed.away" {
		if found != nil {
			h.t.Error("the server runs without its volume")
		}
		guest.Run(h.t, "systemctl", "start", "--no-block", guest.Unit) // somebody tries, and waits for the volume
	}
	var swept backup.Swept
	h.into(&swept, "cleanup")
	h.t.Logf("%s: cleanup says %q; the server ran before it: %v", point, swept.Rollbacks, found != nil)
	if point == "rollback.renamed.away" {
		guest.Run(h.t, "systemctl", "start", guest.Unit) // returns when that start is through
	}
	h.isUp("after the cleanup")
	want := h.Tables
	if strings.Contains(strings.Join(swept.Rollbacks, ""), "finished") {
		want = h.Then
	} else if point == "rollback.renamed.away" {
		h.t.Errorf("the rollback was not finished: %q", swept.Rollbacks)
	}
	if found != nil {
		if !maps.Equal(found, want) {
			h.t.Errorf("the machine came up with %v, and the cleanup says %q: that would be %v", found, swept.Rollbacks, want)
		}
		want = written
	}
	h.sameAs(want)
	h.failedUnits()
	if again := h.ok("cleanup"); !strings.Contains(again.stdout, "Nothing was left behind") {
		h.t.Errorf("a second cleanup had something to do:\n%s", again.stdout)
	}
	if noted, err := ledger.Peek("/var/lib/respaldo", "main"); err != nil || len(noted) > 0 {
		h.t.Errorf("the ledger still notes %v, %v", noted, err)
	}
	for _, left := range h.snapshots() {
		if left.Manifest == nil || !left.Snapshot.Kept {
			h.t.Errorf("left: %+v", left)
		}
		h.ok("snapshot", "remove", left.Snapshot.Name)
	}
	h.ok("check")
	guest.Run(h.t, "udevadm", "settle")
	h.Before.Rebooted().NothingLeft(h.t, "process ", "subvolume "+guest.Disk(0)+" mysql")
}

// writtenSinceBoot: where the server has come up by itself, somebody works with it before the
// cleanup. It returns the tables before and after; nil if it did not come up.
func (h *cutMachine) writtenSinceBoot() (found, written map[string]string) {
	if h.mainPID() == "0" {
		return nil, nil
	}
	h.server = guest.OpenUnit(h.t)
	found = guest.Checksums(h.t, h.server.DB)
	h.server.Exec(h.t, fmt.Sprintf("INSERT INTO shop.customers VALUES (%d, 'before the cleanup')", 20_000+h.Cuts))
	return found, guest.Checksums(h.t, h.server.DB)
}

// writeDeep writes a file, and the directories above it.
func (h *cutMachine) writeDeep(path, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.write(path, 0o644, text)
}
