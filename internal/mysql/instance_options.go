package mysql

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// carried are the origin's variables that its files need to be opened, recovered and
// understood in the same way. Everything else keeps the server's default: what is not
// here cannot harm. The names are those of all versions; a server is told those that the
// origin had.
var carried = []string{
	"basedir", "lc_messages_dir", "character_sets_dir", "plugin_dir",
	"lower_case_table_names",

	"innodb_page_size", "innodb_data_file_path", "innodb_file_per_table", "innodb_autoextend_increment",
	"innodb_log_file_size", "innodb_log_files_in_group", "innodb_redo_log_capacity", "innodb_log_block_size",
	"innodb_undo_tablespaces", "innodb_undo_logs", "innodb_rollback_segments",
	"innodb_checksum_algorithm", "innodb_log_checksums", "innodb_log_checksum_algorithm",
	"innodb_doublewrite", "innodb_doublewrite_files", "innodb_doublewrite_pages",
	"innodb_flush_method", "innodb_support_xa",
	"innodb_file_format", "innodb_large_prefix", "innodb_default_row_format", "innodb_strict_mode",
	"innodb_compression_algorithm", "innodb_compression_default", "innodb_compression_level",
	"innodb_encrypt_tables", "innodb_encrypt_log", "innodb_encrypt_temporary_tables", "innodb_default_encryption_key_id",
	"innodb_redo_log_encrypt", "innodb_undo_log_encrypt", "default_table_encryption",

	"aria_block_size", "aria_log_file_size", "aria_encrypt_tables", "myisam_data_pointer_size",
	"ft_min_word_len", "ft_max_word_len",

	"binlog_format", "binlog_checksum", "binlog_row_image", "log_slave_updates", "log_replica_updates",
	"gtid_mode", "enforce_gtid_consistency", "gtid_domain_id",
	"binlog_gtid_simple_recovery", "simplified_binlog_gtid_recovery",
	// MySQL's binlog_encryption is not among them: files say themselves that they are
	// encrypted, and under its own UUID the instance would add a master key to the keyring.
	"encrypt_binlog", "log_bin_compress",
	"master_info_repository", "relay_log_info_repository",

	"character_set_server", "collation_server", "sql_mode", "old_mode",
	"explicit_defaults_for_timestamp", "max_allowed_packet", "log_bin_trust_function_creators",
}

// carriedDirs are carried too, but lead somewhere: only where the image has a copy.
var carriedDirs = []string{
	"innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "innodb_doublewrite_dir", "aria_log_dir_path",
}

// keyVariables belong to the key plugins whose files travel with an image, by the prefix
// of their names. A variable of a plugin is there only while it is loaded.
var keyVariables = []struct{ prefix, load string }{
	{"file_key_management_", "--plugin-load-add=file_key_management"},
	{"keyring_file_", "--early-plugin-load=keyring_file.so"},
}

// readers are MariaDB's plugins without which some tables cannot be read. Loaded where
// the origin has them: they do nothing by themselves. Others, in mysql.plugin or not, stay
// out: they may write files (server_audit) or talk to the network.
var readers = []string{
	"ha_archive", "ha_blackhole",
	"provider_bzip2", "provider_lz4", "provider_lzma", "provider_lzo", "provider_snappy",
}

// options is the instance's command line after the program.
func (img *image) options(request InstanceRequest) ([]string, error) {
	m := request.Manifest
	o := &optionList{version: m.Version, newer: img.newer, variables: m.Variables, list: []string{"--no-defaults"}}
	scratch := filepath.Join(img.dataDir, scratchName)
	socket := filepath.Join(scratchName, socketName)
	if request.SocketDir != "" {
		socket = filepath.Join(scratchName, socketFolder, socketName)
	}
	if m.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		o.add("--persisted-globals-load=OFF") // mysqld-auto.cnf beats the command line otherwise
	}
	if img.uid == 0 {
		o.add("--user=root") // refused without
	}

	// Where it lives.
	o.add("--datadir="+img.dataDir,
		// Relative to the data directory, into which every version changes: a long path
		// would not fit into a socket address.
		"--socket="+socket,
		"--pid-file="+filepath.Join(scratch, "mysqld.pid"),
		"--log-error="+filepath.Join(scratch, InstanceLog),
		"--tmpdir="+filepath.Join(scratch, "tmp"),
		"--secure-file-priv="+filepath.Join(scratch, "files"),
		"--general-log=OFF", "--general-log-file="+filepath.Join(scratch, "general.log"),
		"--slow-query-log=OFF", "--slow-query-log-file="+filepath.Join(scratch, "slow.log"))
	o.set("log_error_verbosity", "3") // MySQL 8 is silent about recovery otherwise

	// What its files need.
	o.carry(carried...)
	if err := o.carryDirs(img); err != nil {
		return nil, err
	}
	if zone := m.Variables["time_zone"]; zone != "" {
		o.add("--default-time-zone=" + zone)
	}
	o.carryKeys()
	if m.Version.Flavor == respaldo.MariaDB {
		for _, plugin := range readers {
			if _, err := os.Stat(filepath.Join(m.Variables["plugin_dir"], plugin+".so")); err == nil {
				o.add("--plugin-load-add=" + plugin)
			}
		}
	}
	o.binlog(img)

	// What must not happen.
	o.relayLogs(img)
	o.silence()
	if request.Account == nil {
		o.add("--skip-grant-tables")
	}
	o.bound(request.Memory)
	return append(o.list, request.Options...), nil
}

type optionList struct {
	version   respaldo.Version
	newer     bool // the program, than version
	variables map[string]string
	list      []string
}

func (o *optionList) add(options ...string) { o.list = append(o.list, options...) }

// set gives a variable a value of ours, where the server has it.
func (o *optionList) set(name, value string) {
	if _, ok := o.variables[name]; ok {
		o.add("--loose-" + strings.ReplaceAll(name, "_", "-") + "=" + value)
	}
}

// carry repeats the origin's settings; loose, because not every variable is an option. A
// secret stays out: everybody may look at the list of processes.
func (o *optionList) carry(names ...string) {
	for _, name := range names {
		if value := withoutSecret(name, o.variables[name]); value != "" && value != hidden {
			o.add("--loose-" + strings.ReplaceAll(name, "_", "-") + "=" + value)
		}
	}
}

func (o *optionList) carryDirs(img *image) error {
	for _, name := range carriedDirs {
		dir := o.variables[name]
		if dir == "" {
			continue
		}
		if filepath.IsAbs(dir) {
			if !img.touches(filepath.Clean(dir)) {
				return refused(fmt.Sprintf("the image has no copy of %s (%s)", dir, name), "a server without it would not be the origin")
			}
		}
		o.carry(name)
	}
	// An unset home means the data directory; an empty one, which looks the same in the
	// variables, means that the paths of the files are whole.
	if o.variables["innodb_data_home_dir"] == "" && strings.Contains(";"+o.variables["innodb_data_file_path"], ";/") {
		o.add("--innodb-data-home-dir=")
	}
	var known []string
	for _, dir := range strings.Split(o.variables["innodb_directories"], ";") {
		if img.touches(filepath.Clean(dir)) {
			known = append(known, dir)
		}
	}
	if len(known) > 0 {
		o.add("--loose-innodb-directories=" + strings.Join(known, ";"))
	}
	for _, db := range strings.Split(o.variables["ignore_db_dirs"]+","+scratchName, ",") {
		switch {
		case db == "":
		case o.version.Flavor == respaldo.MariaDB:
			o.add("--ignore-db-dirs=" + db)
		case !o.version.AtLeast(respaldo.MySQL, 8, 0, 0):
			o.add("--loose-ignore-db-dir=" + db)
		}
	}
	return nil
}

// touches tells whether the image has the folder, or something in it: the place of MySQL's
// redo log is a folder of its own in the one that the variable names.
func (img *image) touches(dir string) bool {
	if _, ok := img.find(dir); ok {
		return true
	}
	for origin := range img.dirs {
		if isBelow(origin, dir) {
			return true
		}
	}
	return false
}

func (o *optionList) carryKeys() {
	for _, key := range keyVariables {
		loaded := false
		for name, value := range o.variables {
			if strings.HasPrefix(name, key.prefix) && value != "" {
				loaded = true
				o.carry(name)
			}
		}
		if loaded {
			o.add(key.load)
		}
	}
}

// binlog is on if and only if the origin's was. A transaction may be prepared in InnoDB
// and already in the binlog; recovery commits it only with the binlog in hand (without,
// MySQL silently rolls it back and MariaDB refuses to start). A server without binlogs
// has tc.log for that.
func (o *optionList) binlog(img *image) {
	if !img.binlogs.on {
		o.add("--skip-log-bin")
		return
	}
	o.add("--log-bin="+img.binlogs.option(img.dataDir),
		"--log-bin-index="+img.binlogs.index(img.dataDir), "--sync-binlog=0")
	o.set("expire_logs_days", "0")
	o.set("binlog_expire_logs_seconds", "0")
	o.set("binlog_expire_logs_auto_purge", "OFF")
	o.set("max_binlog_total_size", "0")
}

// silence keeps the instance to itself. Most of what could harm is off because
// --no-defaults says nothing of it; here is what is on by default.
func (o *optionList) silence() {
	o.add("--server-id="+strconv.FormatUint(uint64(ownServerID(o.variables["server_id"])), 10),
		"--skip-networking", "--skip-name-resolve", "--local-infile=OFF",
		"--event-scheduler=DISABLED")
	o.set("relay_log_recovery", "OFF")
	o.set("wsrep_on", "OFF")
	o.set("wsrep_provider", "none")
	o.set("innodb_dedicated_server", "OFF")
	o.set("innodb_buffer_pool_load_at_startup", "OFF")
	o.set("innodb_buffer_pool_dump_at_shutdown", "OFF")
	o.set("innodb_encryption_threads", "0")
	o.set("auto_generate_certs", "OFF")
	o.set("sha256_password_auto_generate_rsa_keys", "OFF")
	o.set("caching_sha2_password_auto_generate_rsa_keys", "OFF")
	if o.version.Flavor == respaldo.MySQL {
		o.add("--loose-mysqlx=OFF")
	}
	if o.version.AtLeast(respaldo.MySQL, 8, 0, 26) {
		o.add("--skip-replica-start")
	} else {
		o.add("--skip-slave-start")
	}
	// A newer release has to upgrade the data dictionary, and refuses to start when it may
	// not. These files are a copy.
	if o.version.AtLeast(respaldo.MySQL, 8, 0, 16) && !o.newer {
		o.add("--upgrade=NONE")
	}
}

// relayLogs are opened at start wherever replication was configured: those of the image,
// or none.
func (o *optionList) relayLogs(img *image) {
	base, index := o.variables["relay_log_basename"], o.variables["relay_log_index"]
	if _, ok := img.find(base); !ok {
		base, index = "respaldo-relay", ""
	}
	o.add("--relay-log=" + relativeTo(img.dataDir, base))
	if _, ok := img.find(index); ok {
		o.add("--relay-log-index=" + relativeTo(img.dataDir, index))
	}
}

// ownServerID differs from the origin's, and from everybody else's as far as chance goes.
func ownServerID(origin string) uint32 {
	for {
		id := 1<<31 + rand.Uint32N(1<<30)
		if strconv.FormatUint(uint64(id), 10) != origin {
			return id
		}
	}
}

// bound keeps the instance small: it shares the machine with the origin.
func (o *optionList) bound(memory int64) {
	if memory <= 0 {
		memory = memoryFor(redoBytes(o.variables), availableMemory())
	}
	pool := max(memory/2, 24<<20) &^ (8<<20 - 1)
	bytes := func(n int64) string { return strconv.FormatInt(n, 10) }
	o.add("--innodb-buffer-pool-size="+bytes(pool),
		"--key-buffer-size="+bytes(max(memory/32, 4<<20)),
		"--table-open-cache=400", "--table-definition-cache=400", "--max-connections=16",
		"--performance-schema=OFF",
		// Kernel AIO contexts are few, and the origin has the first claim.
		"--innodb-use-native-aio=OFF", "--innodb-read-io-threads=2", "--innodb-write-io-threads=2",
		"--innodb-flush-log-at-trx-commit=0")
	o.set("innodb_buffer_pool_size_max", bytes(pool)) // MariaDB reserves 8 TiB of addresses otherwise
	o.set("innodb_buffer_pool_chunk_size", bytes(8<<20))
	o.set("innodb_buffer_pool_instances", "1")
	o.set("innodb_purge_threads", "1")
	o.set("aria_pagecache_buffer_size", bytes(max(memory/32, 4<<20)))
	o.set("query_cache_size", "0")
	o.set("temptable_max_ram", bytes(max(memory/8, 16<<20)))
}
