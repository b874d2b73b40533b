package mysql

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// Applier is what applies one source's transactions on a replica: the SQL thread, with its
// workers where it has some.
type Applier struct {
	Channel string // "" for the one without a name
	Running bool
	// GTID tells that the replica would go on from its GTIDs, whatever file and position say.
	GTID bool
	// Until tells that it was started with UNTIL, which starting it again would forget.
	Until bool
}

// longStop is how many seconds the server must wait for a STOP at least; the default is a year.
const longStop = 86400

// replication looks at how a replica applies and where it keeps its position.
func (s *Server) replication(ctx context.Context, f *Facts) error {
	channels, err := queryRows(ctx, s.db, replicaStatusStatement(s.version))
	if err != nil {
		return err
	}
	f.Upstream, f.Appliers = upstreamOf(channels), appliersOf(channels)
	if f.Replica = len(f.Upstream) > 0; !f.Replica {
		return nil
	}
	if f.mayPause, err = s.mayPause(ctx, s.db); err != nil {
		return err
	}
	if old := !s.version.AtLeast(respaldo.MySQL, 5, 6, 23) && s.version.Flavor == respaldo.MySQL; old && !f.mayPause {
		f.refused = append(f.refused, &respaldo.Error{Kind: respaldo.Refused,
			What: "a replica before MySQL 5.6.23 may hang for ever under a lock while it applies (MySQL bug 70307), and the account may not stop its applier for the instant",
			Hint: s.asUs(PauseGrant(s.version))})
	}
	status, err := queryRows(ctx, s.db, "SHOW GLOBAL STATUS WHERE Variable_name IN ('Slave_open_temp_tables', 'Replica_open_temp_tables')")
	if err != nil {
		return err
	}
	for _, row := range status {
		f.tempOpen, _ = strconv.Atoi(row["value"])
	}
	return nil
}

func appliersOf(channels []row) (found []Applier) {
	for _, c := range channels {
		if c.first("source_host", "master_host") == "" {
			continue // Group Replication's own
		}
		using := c["using_gtid"]
		found = append(found, Applier{
			Channel: c.first("channel_name", "connection_name"),
			Running: c.first("replica_sql_running", "slave_sql_running") == "Yes",
			GTID:    c["auto_position"] == "1" || using != "" && using != "No",
			Until:   c["until_condition"] != "" && c["until_condition"] != "None",
		})
	}
	return found
}

// pausePrivilege is what STOP and START of an applier need.
func pausePrivilege(v respaldo.Version) string {
	switch {
	case v.AtLeast(respaldo.MySQL, 8, 0, 0):
		return "REPLICATION_SLAVE_ADMIN"
	case v.AtLeast(respaldo.MariaDB, 10, 5, 2):
		return "REPLICATION SLAVE ADMIN"
	}
	return "SUPER"
}

// PauseGrant lets the account stop a replica's appliers for the instant of a snapshot, and
// start them again.
func PauseGrant(v respaldo.Version) string {
	return "GRANT " + pausePrivilege(v) + " ON *.* TO " + grantee
}

// mayPause looks at the privileges granted to the account itself. What it has by a role
// only is not counted.
func (s *Server) mayPause(ctx context.Context, q queryer) (bool, error) {
	rows, err := queryRows(ctx, q, "SHOW GRANTS")
	if err != nil {
		return false, err
	}
	for _, row := range rows {
		for _, grant := range row {
			for _, one := range globalPrivileges(grant) {
				if one == "ALL PRIVILEGES" || one == pausePrivilege(s.version) || one == "SUPER" && s.version.Flavor == respaldo.MySQL {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// workers is how many threads apply in parallel; 0 where the SQL thread does it itself.
func (f *Facts) workers() int64 {
	if f.Version.Flavor == respaldo.MariaDB {
		return numberOf(f.Variables, "slave_parallel_threads")
	}
	return numberOf(f.Variables, "replica_parallel_workers", "slave_parallel_workers")
}

func (f *Facts) commitsInOrder() bool {
	return f.On("replica_preserve_commit_order") || f.On("slave_preserve_commit_order")
}

// positionTable is the table in which a replica commits its position together with what
// it applies, and whether it can: only InnoDB does both or neither.
func (f *Facts) positionTable() (name string, transactional bool) {
	name = "slave_relay_log_info"
	if f.Version.Flavor == respaldo.MariaDB {
		name = "gtid_slave_pos"
	}
	for _, suffix := range []string{".MYI", ".MAI"} {
		if _, err := os.Stat(filepath.Join(f.Process.DataDir, "mysql", name+suffix)); err == nil {
			return "mysql." + name, false
		}
	}
	return "mysql." + name, true
}

// unsettled says why the upstream position of an image would not be that of its data
// although nothing but the appliers runs; "" if it would be. helps tells that under a lock
// the server itself would say the right one.
//
// The position is exact where it is committed together with the data, and by one thread:
// measured and read in docs/replicas.md.
func (f *Facts) unsettled() (why string, helps bool) {
	table, transactional := f.positionTable()
	for _, a := range f.Appliers {
		switch {
		case !a.Running:
		case f.Version.Flavor == respaldo.MariaDB && !transactional:
			return "its position is kept in " + table + ", which is not InnoDB and not committed together with the data", true
		case a.GTID:
		case f.Version.Flavor == respaldo.MariaDB:
			return "it follows by file and position, which MariaDB keeps in a file that is written after each commit", true
		case f.workers() > 0:
			return fmt.Sprintf("it applies in parallel (%d workers) and follows by file and position, of which the server keeps a low-water mark only", f.workers()), false
		case strings.EqualFold(f.Variables["relay_log_info_repository"], "FILE"):
			return "it follows by file and position, which are kept in a file that is written after each commit (relay_log_info_repository=FILE)", true
		case !transactional:
			return "its position is kept in " + table + ", which is not InnoDB and not committed together with the data", true
		}
	}
	return "", true
}

// contends says why a lock and running appliers do not go together, "" if they do; and
// whether what the server says under that lock may not be exact because of it.
func (f *Facts) contends(mode respaldo.LockMode) (why string, inexact bool) {
	if mode == respaldo.LockNone || len(f.applying()) == 0 {
		return "", false
	}
	for _, e := range f.Engines {
		if !e.Transactional {
			return fmt.Sprintf("what it applies to tables of %s (%s) and its position are not committed together", e.Engine, e.names()), true
		}
	}
	v := f.Version
	switch {
	case v.Flavor == respaldo.MySQL && !v.AtLeast(respaldo.MySQL, 5, 6, 23):
		return "SHOW SLAVE STATUS may hang under FLUSH TABLES WITH READ LOCK while it applies (MySQL bug 70307)", true
	case f.workers() == 0:
	case v.Flavor == respaldo.MariaDB:
		// MDEV-7818: FLUSH TABLES WITH READ LOCK deadlocked with workers that commit in order.
		// MDEV-36025: to avoid that, they let go of what BACKUP STAGE BLOCK_COMMIT waits for.
		return "its parallel workers may commit under a lock, or wait for each other because of it (MDEV-36025, MDEV-7818)", true
	case f.commitsInOrder():
		return "its parallel workers commit in order, and may wait for each other because of the lock until that is given up (MySQL bug 87489)", false
	}
	return "", false
}

// applying are the channels of a replica whose appliers run.
func (f *Facts) applying() (channels []string) {
	for _, a := range f.Appliers {
		if a.Running {
			channels = append(channels, a.Channel)
		}
	}
	return channels
}

// pauseReason says why a replica's appliers should stand still while an image is taken in
// this mode: its upstream position would not be exact otherwise, or a lock and they might
// wait for each other. "" if they may run on, or the server is no replica.
func (f *Facts) pauseReason(mode respaldo.LockMode) string {
	why, _ := f.unsettled()
	contends, _ := f.contends(mode)
	return firstOf(why, contends)
}

// pausing tells that the appliers are to stand still around the snapshot: because there is a
// reason and they may be stopped, or because they do so anyway.
func (f *Facts) pausing(mode respaldo.LockMode) bool {
	if len(f.applying()) == 0 {
		return f.Replica
	}
	may, _ := f.pausable()
	return may && f.pauseReason(mode) != ""
}

// Standstill says, for people, that the appliers are stopped around a snapshot in this
// mode, and why; "" if they are not.
func (f *Facts) Standstill(mode respaldo.LockMode) string {
	if len(f.applying()) == 0 || !f.pausing(mode) {
		return ""
	}
	return "the replica's applier stands still for the instant: " + f.pauseReason(mode)
}

// pausable tells whether the appliers can be stopped for the instant of a
// snapshot, and if not, why.
func (f *Facts) pausable() (ok bool, why string) {
	for _, a := range f.Appliers {
		if a.Running && a.Until {
			return false, "it was started with UNTIL, which starting it again would forget"
		}
	}
	if seconds := numberOf(f.Variables, "rpl_stop_replica_timeout", "rpl_stop_slave_timeout"); seconds > 0 && seconds < longStop {
		// The server then gives the STOP up, and stops the applier later all the same.
		return false, fmt.Sprintf("a STOP may be left half-done after %d s, and the applier stopped for good (rpl_stop_replica_timeout, rpl_stop_slave_timeout)", seconds)
	}
	if !f.mayPause {
		return false, "the account may not stop and start it: " + PauseGrant(f.Version)
	}
	return true, ""
}

// positionWithoutLock fails where a running replica's position would be exact under a lock
// only, and its applier may not be stopped instead.
func (f *Facts) positionWithoutLock() Condition {
	c := Condition{What: "replica's position needs no lock", OK: true}
	why, helps := f.unsettled()
	may, _ := f.pausable()
	switch {
	case len(f.applying()) == 0:
		c.Why = "its applier does not run"
	case why == "":
		c.Why = "it is recovered with the data"
	case may:
		c.Why = "the applier stands still for the instant"
	case helps:
		c.OK, c.Why = false, "the server is a replica: "+why
	default:
		c.Why = "it is not exact under any: " + why
	}
	return c
}

// inexactUpstream says why a replica's position would not be exact although the lightest
// way to make it so is gone; "" if it would be.
func (f *Facts) inexactUpstream(mode respaldo.LockMode) string {
	if may, _ := f.pausable(); may {
		return ""
	}
	why, helps := f.unsettled()
	if why != "" && (!helps || mode == respaldo.LockNone) {
		return why
	}
	if why, inexact := f.contends(mode); inexact {
		return why
	}
	return ""
}

// judgeUpstream leaves in a replica's upstream, as it was told under the lock while the
// appliers ran, what is exact, and notes why the rest is not.
func (f *Facts) judgeUpstream(mode respaldo.LockMode, told []respaldo.Upstream) []respaldo.Upstream {
	inexact := f.inexactUpstream(mode)
	for n := range told {
		u := &told[n]
		u.Inexact = inexact
		if f.workers() > 0 && u.GTIDSet != "" && slices.ContainsFunc(f.Appliers, func(a Applier) bool { return a.GTID && a.Channel == u.Channel }) {
			u.File, u.Position = "", 0 // a low-water mark, which nobody needs
		}
	}
	return told
}

// remarkReplica notes what a person who backs up a replica should know.
func (f *Facts) remarkReplica() {
	if !f.Replica {
		return
	}
	warn := func(format string, args ...any) { f.Warnings = append(f.Warnings, fmt.Sprintf(format, args...)) }
	mode, _ := lightestLock(f)
	if why := f.inexactUpstream(mode); why != "" {
		_, cannot := f.pausable()
		warn("the replica's position in its source's binlog will not be exact: %s; and the applier cannot be stopped for the instant: %s", why, cannot)
	}
	if f.tempOpen > 0 {
		warn("the replica's applier has %s open, which no image holds: a replica made from one may stop at a statement that uses them; use binlog_format=ROW at the source",
			plural(f.tempOpen, "temporary table"))
	}
	if f.Version.Flavor == respaldo.MySQL && !f.On("relay_log_recovery") && f.byPosition() {
		// Where the IO thread stands is written every 10000 events only, and not together
		// with the relay log: it would fetch again what the relay log has already.
		warn("relay_log_recovery is OFF: a restored image that is started as a replica again must have it ON, or it may apply transactions twice")
	}
	if f.Version.Flavor == respaldo.MariaDB && f.byPosition() {
		warn("the replica follows by file and position, which a crash of it makes inexact, as a restored image's own relay-log.info is: use CHANGE MASTER TO MASTER_USE_GTID=slave_pos")
	}
}

func (f *Facts) byPosition() bool {
	for _, a := range f.Appliers {
		if !a.GTID {
			return true
		}
	}
	return false
}
