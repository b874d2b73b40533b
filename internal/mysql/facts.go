package mysql

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// Facts is everything about a server that a backup depends on, as of one look.
type Facts struct {
	Version   respaldo.Version
	Vendor    string            // "MySQL", "MariaDB", "Percona Server", or what else the server calls itself
	Cluster   string            // "Galera", "Group Replication", "NDB Cluster"; empty for a server on its own
	Variables map[string]string // all global variables, names in lower case; passwords read "***"
	Layout    respaldo.Layout

	BinlogOn        bool
	BinlogEncrypted bool
	// BinlogDir is the absolute folder of the binlogs and BinlogBase their name without
	// the number; empty when the binlog is off.
	BinlogDir, BinlogBase string
	BinlogIndex           string // the index file, absolute
	// BinlogElsewhere tells that the binlogs do not lie in the data directory, or on a
	// filesystem mounted below it, so that an image needs their tail (OpenBinlogTail).
	BinlogElsewhere bool

	// Coverage is for whoever knows the volume to fill in, before ChooseLock.
	Coverage *Coverage

	// Engines of user tables, the largest first. What SQL did not show us (SeesAllTables)
	// is completed from the data directory's file names.
	Engines []EngineUse
	// SeesAllTables tells that the account may see every table, so that Engines is
	// certain. FilesSeen tells that the data directory could be read.
	SeesAllTables bool
	FilesSeen     bool

	Encrypted     bool     // something in the data needs a key
	EncryptedWhat []string // what, for people: "3 tablespaces", "redo log", "binlog"
	// KeyringElsewhere names a key store that is no file on this machine (Vault, KMS).
	KeyringElsewhere string

	Replica  bool // configured as one, whether running or not
	Upstream []respaldo.Upstream
	Lost     []string // what no snapshot can hold: contents of MEMORY tables…
	Warnings []string // what a person should know, but does not stop a backup

	Process     Process
	OptionFiles []string // that the server read, as far as they exist; includes among them
	// Long are the statements and LOCK TABLES that would stand in the way of the lightest
	// lock now.
	Long []Statement

	refused []error

	// For the choice of an image without a lock.
	account      string           // whom we are logged in as, quoted
	backupAdmin  bool             // may LOCK INSTANCE FOR BACKUP
	redoLogState string           // "ON", "OFF"; empty where it cannot be switched off
	preparedXA   int              // XA transactions that were prepared
	xaHidden     bool             // they could not be seen
	counters     map[string]int64 // of statements, before the engines were looked at
}

// EngineUse is how much a storage engine is used by user tables.
type EngineUse struct {
	Engine        string // as the server spells it: "InnoDB", "MyISAM"
	Tables        int
	Transactional bool
	Examples      []string // up to three, "db.table"
}

// Facts looks at everything: variables, tables, files and process. It changes nothing and
// takes no lock that anybody would wait for. A server whose process or files cannot be
// proved to be on this machine is an error of kind Refused.
func (s *Server) Facts(ctx context.Context) (*Facts, error) {
	vars, err := queryRows(ctx, s.db, "SHOW GLOBAL VARIABLES")
	if err != nil {
		return nil, s.explain(err, "reading the server's variables")
	}
	f := &Facts{Version: s.version, Variables: readVariables(vars), account: s.account}
	if f.Variables["gtid_executed"] != "" { // SHOW cuts values at 1024 characters
		full, err := queryRows(ctx, s.db, "SELECT @@GLOBAL.gtid_executed AS gtid")
		if err != nil {
			return nil, s.explain(err, "reading the server's GTIDs")
		}
		f.Variables["gtid_executed"] = oneLine(full[0]["gtid"])
	}
	f.Vendor = vendorOf(s.version, s.comment)
	if f.Process, err = s.findProcess(ctx, f.Variables); err != nil {
		return nil, err
	}
	if f.Cluster, err = s.cluster(ctx, f.Variables); err != nil {
		return nil, s.explain(err, "looking for a cluster")
	}
	if f.Upstream, err = readUpstream(ctx, s.db, s.version); err != nil {
		return nil, s.explain(err, "reading the replica's status")
	}
	f.Replica = len(f.Upstream) > 0
	if f.SeesAllTables, err = s.seesAllTables(ctx); err != nil {
		return nil, s.explain(err, "reading our privileges")
	}
	status, err := queryRows(ctx, s.db, "SHOW GLOBAL STATUS")
	if err == nil {
		f.counters, err = statementCounters(status)
	}
	if err != nil {
		return nil, s.explain(err, "reading the server's status")
	}
	f.redoLog(status)
	files := lookAtFiles(f.Process.DataDir)
	f.FilesSeen = files.seen
	if err := s.engines(ctx, s.db, f, files); err != nil {
		return nil, s.explain(err, "reading the list of tables")
	}
	f.OptionFiles = serverOptionFiles(f.Process)
	spaces, err := s.tablespaces(ctx)
	if err != nil {
		return nil, s.explain(err, "reading the list of tablespaces")
	}
	f.layOut(spaces, files)
	if err := s.encryption(ctx, f); err != nil {
		return nil, s.explain(err, "looking for encrypted tables")
	}
	if f.preparedXA, f.xaHidden, err = s.preparedXA(ctx, s.db); err != nil {
		return nil, s.explain(err, "looking for prepared XA transactions")
	}
	if f.backupAdmin, err = s.hasBackupAdmin(ctx, s.db); err != nil {
		return nil, s.explain(err, "reading our privileges")
	}
	mode, _ := lightestStop(f)
	if f.Long, _, err = s.blockers(ctx, s.db, mode); err != nil {
		return nil, s.explain(err, "looking at running statements")
	}
	f.remark()
	return f, nil
}

// readVariables leaves out what must not be told.
func readVariables(shown []row) map[string]string {
	variables := make(map[string]string, len(shown))
	for _, v := range shown {
		name := strings.ToLower(v["variable_name"])
		variables[name] = withoutSecret(name, v["value"])
	}
	return variables
}

// redoLog refuses a server whose redo log was switched off for a bulk load: not even the
// server itself can be started after a crash then.
func (f *Facts) redoLog(status []row) {
	if f.redoLogState = redoLogState(status); strings.EqualFold(f.redoLogState, "OFF") {
		f.refused = append(f.refused, &respaldo.Error{Kind: respaldo.Refused, What: "InnoDB's redo log is disabled: an image could not be recovered",
			Hint: "ALTER INSTANCE ENABLE INNODB REDO_LOG"})
	}
}

// redoLogState is "ON" or "OFF"; empty before MySQL 8.0.21, where it cannot be switched off.
func redoLogState(status []row) string {
	for _, s := range status {
		if strings.EqualFold(s["variable_name"], "Innodb_redo_log_enabled") {
			return s["value"]
		}
	}
	return ""
}

// On reads a boolean variable: ON, 1, YES, TRUE.
func (f *Facts) On(variable string) bool {
	switch strings.ToUpper(f.Variables[variable]) {
	case "ON", "1", "YES", "TRUE":
		return true
	}
	return false
}

// numberOf is the first of the variables that the server has, 0 if none.
func numberOf(variables map[string]string, names ...string) int64 {
	for _, name := range names {
		if n, err := strconv.ParseInt(variables[name], 10, 64); err == nil {
			return n
		}
	}
	return 0
}

// vendorOf reads @@version_comment, where every build names its maker.
func vendorOf(v respaldo.Version, comment string) string {
	text := strings.ToLower(v.Text + " " + comment)
	switch {
	case strings.Contains(text, "percona xtradb cluster"):
		return "Percona XtraDB Cluster"
	case strings.Contains(text, "percona"):
		return "Percona Server"
	case v.Flavor == respaldo.MariaDB:
		return "MariaDB"
	case strings.Contains(text, "mysql") || strings.Contains(text, "debian") || strings.Contains(text, "ubuntu") || strings.Contains(text, "source distribution"):
		return "MySQL"
	}
	return comment
}

func (s *Server) cluster(ctx context.Context, vars map[string]string) (string, error) {
	if provider := vars["wsrep_provider"]; strings.EqualFold(vars["wsrep_on"], "ON") && provider != "" && !strings.EqualFold(provider, "none") {
		return "Galera", nil
	}
	if vars["group_replication_group_name"] != "" {
		members, err := queryRows(ctx, s.db, "SELECT MEMBER_STATE AS state FROM performance_schema.replication_group_members WHERE MEMBER_STATE NOT IN ('OFFLINE', '')")
		if errorNumber(err) == errTableAccessDenied || err == nil && len(members) > 0 {
			// An account that may not look gets the careful answer.
			return "Group Replication", nil
		}
		if err != nil {
			return "", err
		}
	}
	if strings.EqualFold(vars["ndbcluster"], "ON") || vars["ndb_connectstring"] != "" && strings.Contains(strings.ToLower(vars["version"]), "cluster") {
		return "NDB Cluster", nil
	}
	return "", nil
}

// Refusals are the reasons why this server cannot be backed up, each of kind Refused
// with a hint; nil when it can.
func (f *Facts) Refusals() []error {
	refused := append([]error(nil), f.refused...)
	refuse := func(what, hint string) {
		refused = append(refused, &respaldo.Error{Kind: respaldo.Refused, What: what, Hint: hint})
	}
	if f.Cluster != "" {
		refuse("the server is a node of "+f.Cluster+", which is not supported yet", "back up an asynchronous replica of the cluster")
	}
	v := f.Version
	if !v.AtLeast(respaldo.MySQL, 5, 6, 0) && !v.AtLeast(respaldo.MariaDB, 10, 2, 0) {
		refuse(v.String()+" is too old", "MySQL 5.6 and MariaDB 10.2 are the oldest that are supported")
	}
	if f.Variables["innodb_flush_log_at_trx_commit"] == "0" {
		// Measured on all five servers: under the lock, up to a second of acknowledged
		// transactions is in the binlog and not yet in the redo log. FLUSH ENGINE LOGS
		// does not help on MariaDB 10.5 and 10.11.
		refuse("innodb_flush_log_at_trx_commit is 0: even under a lock, the last second's transactions would be missing from an image",
			"SET GLOBAL innodb_flush_log_at_trx_commit = 2 (or 1), also in the server's option file")
	}
	if engine := f.Variables["binlog_storage_engine"]; engine != "" {
		refuse("the binlog is kept in the storage engine "+engine+", which is not supported yet", "unset binlog_storage_engine")
	}
	if f.Encrypted && f.KeyringElsewhere != "" {
		refuse(fmt.Sprintf("the data is encrypted (%s) with keys from %s, which are no files that a backup could carry", strings.Join(f.EncryptedWhat, ", "), f.KeyringElsewhere),
			"only keys in files (file_key_management, keyring_file, component_keyring_file) are supported yet")
	}
	if f.Encrypted && f.KeyringElsewhere == "" && len(f.Layout.Of(respaldo.KeyringRole)) == 0 {
		refuse(fmt.Sprintf("the data is encrypted (%s), but the key files were not found", strings.Join(f.EncryptedWhat, ", ")),
			"a backup without its keys could never be read: run as root, and see that the keyring's configuration is where the server reads it")
	}
	return refused
}

// remark notes what a person should know.
func (f *Facts) remark() {
	if f.Process.Replaced {
		f.Warnings = append(f.Warnings, "the server's program was replaced since it started (an upgrade?): a proof would use the new one; restart the server soon")
	}
	if !f.SeesAllTables {
		f.Warnings = append(f.Warnings, "the account does not see all tables; engines were completed from the names of files")
	}
	if !f.FilesSeen {
		f.Warnings = append(f.Warnings, "the data directory cannot be read by us: symbolic links in it would go unnoticed")
	}
	if f.Replica && f.Version.Flavor == respaldo.MySQL && !f.On("gtid_mode") &&
		numberOf(f.Variables, "replica_parallel_workers", "slave_parallel_workers") > 1 {
		f.Warnings = append(f.Warnings, "the replica applies in parallel and without GTIDs: its position in the source's binlog is a low-water mark, after which some transactions are in the backup already; set gtid_mode=ON, or stop its SQL thread for the backup")
	}
	if c := f.doublewrite(); !c.OK {
		f.Warnings = append(f.Warnings, c.Why+": a page that is being written while the snapshot is taken may be torn in it, above all on Btrfs, and no lock prevents that")
	}
	if !f.BinlogOn {
		f.Warnings = append(f.Warnings, "the binlog is off: backups have no coordinates and cannot be rolled forward")
	}
	if f.Cluster == "" && f.Vendor != "MySQL" && f.Vendor != "MariaDB" && f.Vendor != "Percona Server" {
		f.Warnings = append(f.Warnings, fmt.Sprintf("the server calls itself %q, which respaldo is not tested with", f.Vendor))
	}
	sort.Strings(f.Lost)
}
