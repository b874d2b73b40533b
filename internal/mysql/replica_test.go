package mysql

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// Each release has words of its own for whom to follow, and from where.
func TestFollowStatements(t *testing.T) {
	source := Source{Host: "db1", Port: 3307, User: "repl", Password: `it's a "\"`}
	at := respaldo.Coordinates{File: "binlog.000007", Position: 4711, GTIDSet: "uuid:1-5"}
	const login8 = `SOURCE_HOST='db1', SOURCE_PORT=3307, SOURCE_USER='repl', SOURCE_PASSWORD='it''s a "\\"'`
	login := strings.ReplaceAll(login8, "SOURCE_", "MASTER_")
	for _, c := range []struct {
		major, minor, patch int
		gtid                string
		tls                 bool
		want                []string
	}{
		{5, 6, 24, "OFF", false, []string{"RESET SLAVE ALL", "CHANGE MASTER TO " + login + ", MASTER_LOG_FILE='binlog.000007', MASTER_LOG_POS=4711"}},
		{5, 7, 44, "ON", true, []string{"RESET SLAVE ALL", "CHANGE MASTER TO " + login + ", MASTER_SSL=1, MASTER_AUTO_POSITION=1"}},
		{8, 0, 19, "ON", false, []string{"RESET SLAVE ALL", "CHANGE MASTER TO " + login + ", GET_MASTER_PUBLIC_KEY=1, MASTER_AUTO_POSITION=1"}},
		{8, 4, 3, "OFF", false, []string{"RESET REPLICA ALL", "CHANGE REPLICATION SOURCE TO " + login8 + ", GET_SOURCE_PUBLIC_KEY=1, SOURCE_LOG_FILE='binlog.000007', SOURCE_LOG_POS=4711"}},
		{9, 7, 0, "ON", true, []string{"RESET REPLICA ALL", "CHANGE REPLICATION SOURCE TO " + login8 + ", SOURCE_SSL=1, SOURCE_AUTO_POSITION=1"}},
	} {
		m := respaldo.Manifest{Version: respaldo.Version{Flavor: respaldo.MySQL, Major: c.major, Minor: c.minor, Patch: c.patch}, Variables: map[string]string{"gtid_mode": c.gtid}}
		m.Quiesced.Coordinates = at
		source.TLS = c.tls
		got, err := followStatements(t.Context(), nil, source, m)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s, GTIDs %s:\n got %q, %v\nwant %q", m.Version, c.gtid, got, err, c.want)
		}
	}
}

func TestReached(t *testing.T) {
	for _, c := range []struct {
		have, want string
		reached    bool
	}{
		{"0-1-10", "0-1-10", true}, {"0-1-9", "0-1-10", false}, {"0-2-11,5-1-3", "5-1-3,0-1-10", true},
		{"0-1-10", "0-1-10,5-1-1", false}, {"", "", true}, {"", "0-1-1", false},
	} {
		if got := reached(c.have, c.want); got != c.reached {
			t.Errorf("%q has reached %q: %v", c.have, c.want, got)
		}
	}
}

// An origin whose binlog lacks something cannot be followed.
func TestFollowable(t *testing.T) {
	upstream := []respaldo.Upstream{{Host: "db0"}}
	for _, c := range []struct {
		what      string
		at        respaldo.Coordinates
		variables map[string]string
		can       bool
	}{
		{"without binlogs", respaldo.Coordinates{}, nil, false},
		{"a source", respaldo.Coordinates{File: "bin.1"}, map[string]string{"log_slave_updates": "OFF"}, true},
		{"a replica that hands on", respaldo.Coordinates{File: "bin.1", Upstream: upstream}, map[string]string{"log_slave_updates": "ON"}, true},
		{"a replica that does not", respaldo.Coordinates{File: "bin.1", Upstream: upstream}, map[string]string{"log_slave_updates": "OFF"}, false},
		{"a new replica that does not", respaldo.Coordinates{File: "bin.1", Upstream: upstream}, map[string]string{"log_replica_updates": "OFF", "log_slave_updates": "OFF"}, false},
	} {
		m := respaldo.Manifest{Variables: c.variables}
		m.Quiesced.Coordinates = c.at
		err := Followable(m)
		if (err == nil) != c.can || err != nil && (respaldo.KindOf(err) != respaldo.Refused || len(respaldo.HintsOf(err)) == 0) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// Whoever answers must be the origin, as far as it can be known.
func TestNotOrigin(t *testing.T) {
	m := respaldo.Manifest{ServerUUID: "u1", Version: respaldo.Version{Flavor: respaldo.MySQL, Major: 8, Minor: 0, Patch: 36}, Variables: map[string]string{"server_id": "1", "hostname": "db1"}}
	old := m
	old.ServerUUID = ""
	for _, c := range []struct {
		what string
		m    respaldo.Manifest
		vars map[string]string
		want string // in what it says
	}{
		{"itself", m, map[string]string{"server_uuid": "u1", "server_id": "1", "hostname": "renamed", "version": "8.0.36"}, ""},
		{"updated since", m, map[string]string{"server_uuid": "u1", "server_id": "1", "version": "8.0.40"}, ""},
		{"another", m, map[string]string{"server_uuid": "u2", "server_id": "1", "version": "8.0.36"}, "u2"},
		{"one without a UUID", m, map[string]string{"server_id": "1", "hostname": "db1", "version": "8.0.36"}, "UUID"},
		{"a copy with the UUID", m, map[string]string{"server_uuid": "u1", "server_id": "2", "version": "8.0.36"}, "server_id=2"},
		{"neither has a UUID", old, map[string]string{"server_id": "1", "hostname": "db1", "version": "8.0.36"}, ""},
		{"another machine's", old, map[string]string{"server_id": "1", "hostname": "db2", "version": "8.0.36"}, "hostname=db2"},
		{"another series", m, map[string]string{"server_uuid": "u1", "server_id": "1", "version": "8.4.3"}, "8.4.3"},
		{"another kind", m, map[string]string{"server_uid": "u1", "server_id": "1", "version": "10.11.6-MariaDB"}, "MariaDB"},
	} {
		if got := notOrigin(c.vars, c.m); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", c.what, got)
		}
	}
}

func TestMayReplicate(t *testing.T) {
	for grant, may := range map[string]bool{
		"GRANT REPLICATION SLAVE ON *.* TO 'r'@'%'":                       true,
		"GRANT SELECT, REPLICATION SLAVE, RELOAD ON *.* TO `r`@`%`":       true,
		"GRANT ALL PRIVILEGES ON *.* TO 'r'@'%' WITH GRANT OPTION":        true,
		"GRANT `replicators`@`%` TO `r`@`%`":                              true,
		"GRANT replicators TO 'r'@'%'":                                    true,
		"GRANT REPLICATION SLAVE ADMIN ON *.* TO 'r'@'%'":                 false,
		"GRANT USAGE ON *.* TO 'REPLICATION SLAVE'@'%'":                   false,
		"GRANT ALL PRIVILEGES ON `shop`.* TO 'r'@'%'":                     false,
		"GRANT REPLICATION CLIENT, REPLICATION_APPLIER ON *.* TO 'r'@'%'": false,
	} {
		if got := mayReplicate([]string{grant}); got != may {
			t.Errorf("%s: %v", grant, got)
		}
	}
}

// A server repeats a statement as it was written, with the password quoted.
func TestPasswordIsNotRepeated(t *testing.T) {
	s := Source{Password: `it's \ "secret"`}
	for _, said := range []string{"near " + quoteText(s.Password) + " at line 1", "near '" + s.Password + "'"} {
		if got := s.redacted(errors.New(said)).Error(); strings.Contains(got, "secret") || !strings.Contains(got, "near") {
			t.Errorf("%s: %s", said, got)
		}
	}
}

// Programs are looked for, and none is taken that the data are not for.
func TestFindProgram(t *testing.T) {
	dir := t.TempDir()
	program := func(name, says string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+path+"  Ver "+says+" for Linux on x86_64'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	m := respaldo.Manifest{Version: respaldo.Version{Flavor: respaldo.MySQL, Major: 8, Minor: 0, Patch: 36}}
	for _, c := range []struct {
		name, says, want string // want is in the refusal
	}{
		{"same", "8.0.36", ""}, {"newer", "8.0.40", ""},
		{"older", "8.0.35", "older MySQL 8.0.35"}, {"next", "8.4.3", "is MySQL 8.4.3"}, {"other", "10.11.6-MariaDB", "MariaDB 10.11.6"},
	} {
		path := program(c.name, c.says)
		got, err := FindProgram(t.Context(), []string{path}, m)
		if c.want == "" {
			if err != nil || !slices.Equal(got.Argv, []string{path}) {
				t.Errorf("%s: %v, %v", c.says, got, err)
			}
		} else if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), c.want) || len(respaldo.HintsOf(err)) == 0 {
			t.Errorf("%s: %v", c.says, err)
		}
	}
	m.Binary.Argv = []string{filepath.Join(dir, "same")}
	if got, err := FindProgram(t.Context(), nil, m); err != nil || !slices.Equal(got.Argv, m.Binary.Argv) {
		t.Errorf("the origin's own: %v, %v", got, err)
	}
	if _, err := FindProgram(t.Context(), []string{filepath.Join(dir, "missing")}, m); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "no server program") {
		t.Errorf("a missing one: %v", err)
	}
}
