package mysql

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// What a replica's settings mean for the applier, for the lock, and for what check says.
func TestReplicaIsJudgedByWhereItsPositionIs(t *testing.T) {
	const none, backup, global = respaldo.LockNone, respaldo.LockBackup, respaldo.LockGlobal
	for _, c := range []struct {
		name, version, variables string
		applier                  Applier
		table                    string // a file of mysql/
		engine                   string // of some user table, if not InnoDB
		paused                   []respaldo.LockMode
		// Where the account may not stop the applier:
		needsLock bool                // an image without a lock would not be exact
		inexact   []respaldo.LockMode // nor one in these modes
	}{
		{name: "table", version: "5.7.44", variables: "relay_log_info_repository=TABLE slave_parallel_workers=0"},
		{name: "file", version: "5.7.44", variables: "relay_log_info_repository=FILE", paused: []respaldo.LockMode{none, global}, needsLock: true, inexact: []respaldo.LockMode{none}},
		{name: "file, GTIDs", version: "5.7.44", variables: "relay_log_info_repository=FILE", applier: Applier{GTID: true}},
		{name: "stopped", version: "5.7.44", variables: "relay_log_info_repository=FILE", applier: Applier{Running: false}},
		{name: "MyISAM table", version: "5.6.51", variables: "relay_log_info_repository=TABLE", table: "slave_relay_log_info.MYI", paused: []respaldo.LockMode{none, global}, needsLock: true, inexact: []respaldo.LockMode{none}},
		{name: "SHOW SLAVE STATUS hangs", version: "5.6.22", variables: "relay_log_info_repository=TABLE", paused: []respaldo.LockMode{global}, inexact: []respaldo.LockMode{global}},
		{name: "parallel", version: "8.0.40", variables: "replica_parallel_workers=4 replica_preserve_commit_order=OFF", paused: []respaldo.LockMode{none, global}, inexact: []respaldo.LockMode{none, global}},
		{name: "parallel in order", version: "8.4.3", variables: "replica_parallel_workers=4 replica_preserve_commit_order=ON", paused: []respaldo.LockMode{none, global}, inexact: []respaldo.LockMode{none, global}},
		{name: "parallel in order, GTIDs", version: "8.4.3", variables: "replica_parallel_workers=4 replica_preserve_commit_order=ON", applier: Applier{GTID: true}, paused: []respaldo.LockMode{global}},
		{name: "MyISAM data", version: "8.4.3", variables: "replica_parallel_workers=0", applier: Applier{GTID: true}, engine: "MyISAM", paused: []respaldo.LockMode{global}, inexact: []respaldo.LockMode{global}},
		{name: "MariaDB, position", version: "10.11.11-MariaDB", paused: []respaldo.LockMode{none, backup, global}, needsLock: true, inexact: []respaldo.LockMode{none}},
		{name: "MariaDB, GTIDs", version: "11.8.2-MariaDB", applier: Applier{GTID: true}},
		{name: "MariaDB, GTIDs in Aria", version: "11.8.2-MariaDB", applier: Applier{GTID: true}, table: "gtid_slave_pos.MAI", paused: []respaldo.LockMode{none, backup, global}, needsLock: true, inexact: []respaldo.LockMode{none}},
		{name: "MariaDB, parallel", version: "10.5.28-MariaDB", variables: "slave_parallel_threads=4", applier: Applier{GTID: true}, paused: []respaldo.LockMode{backup, global}, inexact: []respaldo.LockMode{backup, global}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.table != "" {
				if err := os.MkdirAll(filepath.Join(dir, "mysql"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "mysql", c.table), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c.applier.Running = c.name != "stopped"
			f := &Facts{Version: version(t, c.version), Variables: map[string]string{"relay_log_recovery": "ON"}, Replica: true, Appliers: []Applier{c.applier}, Process: Process{DataDir: dir}, mayPause: true}
			for setting := range strings.FieldsSeq(c.variables) {
				name, value, _ := strings.Cut(setting, "=")
				f.Variables[name] = value
			}
			if c.engine != "" {
				f.Engines = []EngineUse{{Engine: c.engine, Tables: 1}}
			}
			modes := []respaldo.LockMode{none, backup, global}
			if f.Version.Flavor == respaldo.MySQL {
				modes = []respaldo.LockMode{none, global}
			}
			var paused, inexact []respaldo.LockMode
			for _, mode := range modes {
				if f.pauseReason(mode) != "" {
					paused = append(paused, mode)
				}
				if why := f.inexactUpstream(mode); why != "" {
					t.Errorf("%s is inexact although the applier may be stopped: %s", mode, why)
				}
			}
			if c := f.positionWithoutLock(); !c.OK {
				t.Errorf("it needs a lock although the applier may be stopped: %s", c.Why)
			}
			f.mayPause = false
			for _, mode := range modes {
				if f.pausing(mode) && c.name != "stopped" {
					t.Errorf("%s: the applier would be stopped without the privilege", mode)
				}
				if f.inexactUpstream(mode) != "" {
					inexact = append(inexact, mode)
				}
			}
			if !slices.Equal(paused, c.paused) || !slices.Equal(inexact, c.inexact) || f.positionWithoutLock().OK == c.needsLock {
				t.Errorf("paused in %v, want %v; without the privilege inexact in %v, want %v, needs no lock: %+v", paused, c.paused, inexact, c.inexact, f.positionWithoutLock())
			}
		})
	}
}

// An applier is not stopped where it might stay so.
func TestWhichAppliersAreNotStopped(t *testing.T) {
	for _, c := range []struct {
		name      string
		applier   Applier
		variables map[string]string
		may       bool
		want      string // "" if it is stopped
	}{
		{"all is well", Applier{Running: true}, map[string]string{"rpl_stop_replica_timeout": "31536000"}, true, ""},
		{"a MariaDB server has no such limit", Applier{Running: true}, nil, true, ""},
		{"UNTIL", Applier{Running: true, Until: true}, nil, true, "UNTIL"},
		{"STOP gives up", Applier{Running: true}, map[string]string{"rpl_stop_slave_timeout": "30"}, true, "30 s"},
		{"no privilege", Applier{Running: true}, nil, false, "may not stop"},
	} {
		f := &Facts{Version: version(t, "5.7.44"), Variables: map[string]string{"relay_log_info_repository": "FILE"}, Replica: true, Appliers: []Applier{c.applier}, mayPause: c.may}
		for name, value := range c.variables {
			f.Variables[name] = value
		}
		if ok, why := f.pausable(); ok != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: stopped: %t (%s)", c.name, ok, why)
		}
		if c.want != "" && f.pausing(respaldo.LockGlobal) {
			t.Errorf("%s: it is stopped", c.name)
		}
	}
}
