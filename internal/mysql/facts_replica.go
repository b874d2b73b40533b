package mysql

import (
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// replicaNeedsLock says why a replica's position would not be exact in an image that is
// taken without a lock; "" when it would.
func replicaNeedsLock(f *Facts) string {
	if f.Version.Flavor == respaldo.MariaDB {
		return "it is not known whether the replica's position is kept in InnoDB"
	}
	if strings.EqualFold(f.Variables["relay_log_info_repository"], "FILE") {
		return "the replica keeps its position in a file (relay_log_info_repository = FILE)"
	}
	// Committing in order does not help: the position is stored at checkpoints, and lags behind the
	// data between them (MySQL manual, Replication and Transaction Inconsistencies).
	if numberOf(f.Variables, "replica_parallel_workers", "slave_parallel_workers") > 0 && !f.On("gtid_mode") {
		return "the replica applies in parallel and without GTIDs: its position lags behind its data"
	}
	return ""
}
