package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// queryer is a pool or one pinned connection.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// row is one row of a SHOW statement, whose columns differ between versions: names in
// lower case, NULL as "".
type row map[string]string

func queryRows(ctx context.Context, q queryer, query string, args ...any) ([]row, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	values := make([]sql.NullString, len(columns))
	into := make([]any, len(columns))
	for i := range columns {
		columns[i] = strings.ToLower(columns[i])
		into[i] = &values[i]
	}
	var found []row
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		r := make(row, len(columns))
		for i, c := range columns {
			r[c] = values[i].String
		}
		found = append(found, r)
	}
	return found, rows.Err()
}

// first returns the first of the columns that the row has and that is not empty.
func (r row) first(columns ...string) string {
	for _, c := range columns {
		if r[c] != "" {
			return r[c]
		}
	}
	return ""
}

// binlogStatusStatement is the dialect for "where does the binlog end". MySQL 8.2 brought
// the new name and 8.4 removed the old one, MariaDB has its own since 10.5.2.
func binlogStatusStatement(v respaldo.Version) string {
	switch {
	case v.AtLeast(respaldo.MySQL, 8, 2, 0):
		return "SHOW BINARY LOG STATUS"
	case v.AtLeast(respaldo.MariaDB, 10, 5, 2):
		return "SHOW BINLOG STATUS"
	}
	return "SHOW MASTER STATUS"
}

// replicaStatusStatement lists every channel: MySQL's statement does, MariaDB's wants ALL.
func replicaStatusStatement(v respaldo.Version) string {
	switch {
	case v.Flavor == respaldo.MariaDB:
		return "SHOW ALL SLAVES STATUS"
	case v.AtLeast(respaldo.MySQL, 8, 0, 22):
		return "SHOW REPLICA STATUS"
	}
	return "SHOW SLAVE STATUS"
}

// Coordinates reads where the server stands now. Without a lock the parts need not
// belong to one moment.
func (s *Server) Coordinates(ctx context.Context) (respaldo.Coordinates, error) {
	at, err := readCoordinates(ctx, s.db, s.version, true)
	return at, s.explain(err, "reading the binlog coordinates")
}

// Upstream reads how far a replica has applied each of its sources; nil for a server that
// is none.
func (s *Server) Upstream(ctx context.Context) ([]respaldo.Upstream, error) {
	found, err := readUpstream(ctx, s.db, s.version)
	return found, s.explain(err, "reading the replica's status")
}

// readCoordinates does without the upstream positions when replica is false: under a
// lock every statement counts.
func readCoordinates(ctx context.Context, q queryer, v respaldo.Version, replica bool) (respaldo.Coordinates, error) {
	var at respaldo.Coordinates
	status, err := queryRows(ctx, q, binlogStatusStatement(v))
	if err != nil {
		return at, err
	}
	gtid := ""
	if len(status) > 0 { // none while the binlog is off
		at.File = status[0]["file"]
		if at.Position, err = strconv.ParseUint(status[0]["position"], 10, 64); err != nil {
			return at, fmt.Errorf("%s: %w", binlogStatusStatement(v), err)
		}
		gtid = status[0]["executed_gtid_set"]
	}
	if gtid == "" {
		variable := "@@GLOBAL.gtid_executed" // the session form is empty on 5.6
		if v.Flavor == respaldo.MariaDB {
			variable = "@@GLOBAL.gtid_binlog_pos"
		}
		set, err := queryRows(ctx, q, "SELECT "+variable+" AS gtid")
		if err != nil {
			return at, err
		}
		gtid = set[0]["gtid"]
	}
	at.GTIDSet = oneLine(gtid)
	if replica {
		at.Upstream, err = readUpstream(ctx, q, v)
	}
	return at, err
}

func oneLine(s string) string {
	return strings.NewReplacer("\n", "", "\r", "", " ", "").Replace(s)
}

// readUpstream is empty for a server that is no replica. Positions are those of the
// last event *applied*, not of the last one fetched.
func readUpstream(ctx context.Context, q queryer, v respaldo.Version) ([]respaldo.Upstream, error) {
	channels, err := queryRows(ctx, q, replicaStatusStatement(v))
	return upstreamOf(channels), err
}

func upstreamOf(channels []row) (found []respaldo.Upstream) {
	for _, c := range channels {
		u := respaldo.Upstream{
			Channel: c.first("channel_name", "connection_name"),
			Host:    c.first("source_host", "master_host"),
			File:    c.first("relay_source_log_file", "relay_master_log_file"),
			GTIDSet: oneLine(c.first("executed_gtid_set", "gtid_slave_pos")),
		}
		if u.Host == "" { // Group Replication's own channels have none
			continue
		}
		u.Port, _ = strconv.Atoi(c.first("source_port", "master_port"))
		u.Position, _ = strconv.ParseUint(c.first("exec_source_log_pos", "exec_master_log_pos"), 10, 64)
		found = append(found, u)
	}
	return found
}
