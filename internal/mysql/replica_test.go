package mysql

import (
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
	if _, err := followStatements(t.Context(), nil, source, respaldo.Manifest{}); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("an origin without binlogs: %v", err)
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
