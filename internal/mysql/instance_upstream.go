package mysql

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// upstream is how far the image, a replica's, had applied its sources, as recovery left it;
// nil for one of a server that is no replica. It is exact where the replica committed its
// position together with the data: MySQL's table mysql.slave_relay_log_info, the GTIDs of
// both. Where it did not, and the image was taken while the appliers ran, Inexact says so.
// Replication need not, and must not, have been started in the instance.
func (i *Instance) upstream(ctx context.Context) ([]respaldo.Upstream, error) {
	v := i.request.Manifest.Version
	channels, err := queryRows(ctx, i.db, replicaStatusStatement(v))
	if err != nil {
		return nil, i.asking("what it is a replica of", err)
	}
	found := upstreamOf(channels)
	if v.Flavor == respaldo.MariaDB {
		for n := range found {
			i.judgeMariaDB(&found[n])
		}
		return found, nil
	}
	gtids := ""
	if gtidOn(i.request.Manifest) {
		own, err := queryRows(ctx, i.db, "SELECT @@GLOBAL.gtid_executed AS gtid")
		if err != nil {
			return nil, i.asking("its GTIDs", err)
		}
		gtids = oneLine(own[0]["gtid"])
	}
	sources, err := queryRows(ctx, i.db, "SELECT * FROM mysql.slave_master_info")
	if err != nil {
		return nil, i.asking("its sources", err)
	}
	applied, err := queryRows(ctx, i.db, "SELECT * FROM mysql.slave_relay_log_info")
	if err != nil {
		return nil, i.asking("how far it has applied them", err)
	}
	found = mergeSources(found, sources)
	for n := range found {
		u := &found[n]
		u.GTIDSet = gtids
		auto := false
		for _, s := range sources {
			auto = auto || s["channel_name"] == u.Channel && s["enabled_auto_position"] == "1"
		}
		for _, c := range channels {
			auto = auto || c["channel_name"] == u.Channel && c["auto_position"] == "1"
		}
		inTable := false
		for _, a := range applied {
			if a["channel_name"] == u.Channel {
				inTable = true
				u.File = a.first("master_log_name", "source_log_name")
				u.Position, _ = strconv.ParseUint(a.first("master_log_pos", "source_log_pos"), 10, 64)
			}
		}
		i.judgeMySQL(u, inTable, auto)
	}
	return found, nil
}

// mergeSources adds the channels that only the table of sources has: a server that cannot
// open a channel's relay logs may not list it.
func mergeSources(found []respaldo.Upstream, sources []row) []respaldo.Upstream {
	for _, s := range sources {
		known := s["host"] == ""
		for _, u := range found {
			known = known || u.Channel == s["channel_name"]
		}
		if !known {
			port, _ := strconv.Atoi(s["port"])
			found = append(found, respaldo.Upstream{Channel: s["channel_name"], Host: s["host"], Port: port})
		}
	}
	return found
}

func (i *Instance) judgeMySQL(u *respaldo.Upstream, inTable, auto bool) {
	workers := numberOf(i.request.Manifest.Variables, "replica_parallel_workers", "slave_parallel_workers")
	switch {
	case inTable && workers == 0:
		// committed with the data
	case auto && u.GTIDSet != "":
		u.File, u.Position = "", 0
	case workers > 0:
		u.Inexact = fmt.Sprintf("the replica applied in parallel (%d workers), so its position is a low-water mark", workers)
	default:
		u.Inexact = "the replica kept its position in a file, which it wrote after each commit"
	}
}

// judgeMariaDB keeps the GTIDs, which are in a table, and drops the position, which is
// written to a file after each commit.
func (i *Instance) judgeMariaDB(u *respaldo.Upstream) {
	if strings.TrimSpace(u.GTIDSet) != "" {
		u.File, u.Position = "", 0
		return
	}
	u.Inexact = "the replica kept its position in a file, which it wrote after each commit, and knows no GTIDs"
}
