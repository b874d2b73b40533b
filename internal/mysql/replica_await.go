package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// patienceToConnect is how long a replica may fail to reach its source before that is
// called a failure: the first try may come too early.
const patienceToConnect = 45 * time.Second

// patienceToApply is how long a replica may stand still. A large transaction takes its time.
const patienceToApply = 10 * time.Minute

// AwaitFollowing returns when the replica at a socket runs and has applied everything up to
// where its source stood. It waits as long as it gets on; what stops the replica is an error.
func AwaitFollowing(ctx context.Context, socket string, a Account, v respaldo.Version, until respaldo.Coordinates) error {
	db, err := openAt("unix", socket, a)
	if err != nil {
		return err
	}
	defer db.Close()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	begun, moved, at := time.Now(), time.Now(), ""
	for {
		state, err := lookAtReplica(ctx, db, v, until)
		if err != nil {
			return &respaldo.Error{Kind: respaldo.Failed, What: "the server runs, and cannot be asked whether it follows", Err: err,
				Hint: "the account " + a.User + " needs REPLICATION CLIENT (MariaDB: SLAVE MONITOR); look with SHOW REPLICA STATUS"}
		}
		switch {
		case state.follows:
			return nil
		case state.trouble != "" && state.stopped, (state.trouble != "" || state.stopped) && time.Since(begun) > patienceToConnect:
			if state.trouble == "" {
				state.trouble = "its threads do not run, and it does not say why; its log may (" + state.at + ")"
			}
			return &respaldo.Error{Kind: respaldo.Failed, What: "the server runs, and does not follow the origin", Err: errors.New(state.trouble),
				Hint: "look with SHOW REPLICA STATUS; the copy itself is complete"}
		case state.at != at:
			moved, at = time.Now(), state.at
		case time.Since(moved) > patienceToApply:
			return &respaldo.Error{Kind: respaldo.Failed, What: "the server runs, and does not get on with following the origin", Err: fmt.Errorf("for %s it has been at: %s", patienceToApply, at),
				Hint: "look with SHOW REPLICA STATUS; the copy itself is complete"}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type replicaState struct {
	follows, stopped bool
	trouble          string
	at               string // what it does, and how far it is, for people
}

func lookAtReplica(ctx context.Context, db *sql.DB, v respaldo.Version, until respaldo.Coordinates) (replicaState, error) {
	var s replicaState
	rows, err := queryRows(ctx, db, replicaStatusStatement(v))
	if err != nil {
		return s, err
	}
	if len(rows) == 0 {
		return s, errors.New("it is no replica")
	}
	r := rows[0]
	fetching, applying := r.first("replica_io_running", "slave_io_running"), r.first("replica_sql_running", "slave_sql_running")
	s.trouble = r.first("last_io_error", "last_sql_error", "last_error")
	s.stopped = fetching == "No" || applying == "No"
	s.at = fmt.Sprintf("fetching %s up to %s, applying %s up to %s:%s (%s)", fetching, r.first("read_source_log_pos", "read_master_log_pos"), applying,
		r.first("relay_source_log_file", "relay_master_log_file"), r.first("exec_source_log_pos", "exec_master_log_pos"), r.first("replica_io_state", "slave_io_state"))
	if fetching != "Yes" || applying != "Yes" {
		return s, nil
	}
	switch {
	case v.Flavor == respaldo.MariaDB && r["using_gtid"] != "" && r["using_gtid"] != "No":
		at, err := queryRows(ctx, db, "SELECT @@GLOBAL.gtid_slave_pos AS gtid")
		if err != nil {
			return s, err
		}
		s.follows = reached(at[0]["gtid"], until.GTIDSet)
	case r["auto_position"] == "1":
		at, err := queryRows(ctx, db, "SELECT GTID_SUBSET("+quoteText(until.GTIDSet)+", @@GLOBAL.gtid_executed) AS holds")
		if err != nil {
			return s, err
		}
		s.follows = at[0]["holds"] == "1"
	default:
		file := r.first("relay_source_log_file", "relay_master_log_file")
		position, _ := strconv.ParseUint(r.first("exec_source_log_pos", "exec_master_log_pos"), 10, 64)
		s.follows = file > until.File && len(file) >= len(until.File) || file == until.File && position >= until.Position
	}
	return s, nil
}

// reached compares MariaDB's positions, one GTID for each domain.
func reached(have, want string) bool {
	sequence := func(gtid string) uint64 {
		n, _ := strconv.ParseUint(gtid[strings.LastIndex(gtid, "-")+1:], 10, 64)
		return n
	}
	there := byDomain(have)
	for domain, gtid := range byDomain(want) {
		if sequence(there[domain]) < sequence(gtid) {
			return false
		}
	}
	return true
}
