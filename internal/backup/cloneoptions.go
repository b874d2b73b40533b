package backup

import (
	"fmt"
	"hash/fnv"
	"os"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// alike are the origin's settings that decide what statements mean and how the binlog is
// written: a server on its data that is to go on as the origin would has them too.
var alike = []string{
	"character_set_server", "collation_server", "sql_mode", "explicit_defaults_for_timestamp", "max_allowed_packet",
	"gtid_mode", "enforce_gtid_consistency", "gtid_domain_id", "gtid_strict_mode", "binlog_format", "binlog_row_image", "binlog_checksum",
	"log_slave_updates", "log_replica_updates", "log_bin_trust_function_creators",
	"innodb_log_file_size", "innodb_log_files_in_group", "innodb_redo_log_capacity", "innodb_strict_mode", "innodb_default_row_format",
	"ft_min_word_len", "ft_max_word_len",
}

// programDirs belong to the program, and hold where that is the origin's.
var programDirs = []string{"basedir", "lc_messages_dir", "character_sets_dir", "plugin_dir"}

// optionFileHead begins each option file of ours.
const optionFileHead = "# Written by respaldo for a clone"

// ruled are the options that have flags, or that the rest relies on.
var ruled = map[string]string{
	"socket": "--socket says where it is", "port": "--port says which", "bind_address": "--bind says which",
	"datadir": "it is DIR", "pid_file": "it is in DIR", "log_error": "it is DIR.err", "relay_log": "it is in DIR", "relay_log_index": "it is in DIR",
}

// checkOptions refuses lines that are no options, or not the user's to set. A server takes
// the beginning of a name for the name.
func (c CloneServer) checkOptions() error {
	for _, line := range c.Options {
		name := optionName(line)
		if name == "" || strings.ContainsAny(name, "[]!#; ") || strings.ContainsAny(line, "\r\n") {
			return &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("--set %q is no line of an option file", line), Hint: "it has the form NAME=VALUE"}
		}
		for other, instead := range ruled {
			if strings.HasPrefix(other, name) {
				return &respaldo.Error{Kind: respaldo.Usage, What: "--set cannot set " + other, Hint: instead}
			}
		}
	}
	return nil
}

// optionName is what a line sets, in the one of its spellings that the variable has.
func optionName(line string) string {
	name, _, _ := strings.Cut(line, "=")
	return strings.TrimPrefix(strings.ReplaceAll(strings.TrimSpace(name), "-", "_"), "loose_")
}

// cloneOptions is the option file of a clone's server.
func cloneOptions(a arrival, d mysql.Daemon) string {
	m := a.Manifest
	lines := []string{
		fmt.Sprintf(optionFileHead+" of server %s on %s, as of %s (%s).", m.Server, m.Host, m.Taken.UTC().Format(time.RFC3339), m.Quiesced.Coordinates),
		"# It is yours to change: a refresh leaves it as it is.",
		"[mysqld]",
	}
	set := map[string]bool{}
	add := func(line string) {
		if name := optionName(line); !set[name] {
			set[name] = true
			lines = append(lines, line)
		}
	}
	for _, line := range a.Server.Options { // the user's come first, and win
		add(line)
	}
	add("socket=" + d.Socket)
	add(fmt.Sprintf("port=%d", a.Server.Port))
	add("bind_address=" + a.Server.Bind)
	add("pid_file=mysqld.pid")
	add("log_error=" + d.Log)
	add(fmt.Sprintf("server_id=%d", cloneServerID(m, d.DataDir)))
	for _, line := range optionsFor(m, a.Targets) {
		add(line)
	}
	for _, name := range programDirs {
		if value := m.Variables[name]; value != "" && exists(value) {
			add(name + "=" + value)
		}
	}
	for _, name := range alike {
		if value, known := m.Variables[name]; known && (value != "" || name == "sql_mode") {
			add("loose_" + name + "=" + value)
		}
	}
	if zone := m.Variables["time_zone"]; zone != "" {
		add("default_time_zone=" + zone)
	}
	// The origin's events have run at the origin.
	add("event_scheduler=OFF")
	if m.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		add("loose_mysqlx=OFF")
		add("persisted_globals_load=OFF")
	}
	if m.Version.AtLeast(respaldo.MySQL, 5, 7, 6) {
		// The server does not start where its default is no directory.
		if dir := m.Variables["secure_file_priv"]; dir != "" && exists(dir) {
			add("secure_file_priv=" + dir)
		} else {
			add("secure_file_priv=NULL")
		}
	}
	if a.Replica != nil {
		add("read_only=ON")
		if _, known := m.Variables["super_read_only"]; known {
			add("super_read_only=ON")
		}
		add("relay_log=" + mysql.RelayLog)
		// With it, 5.6 does not start a replica that has not applied anything yet.
		if m.Version.Flavor == respaldo.MariaDB || m.Version.AtLeast(respaldo.MySQL, 5, 7, 0) {
			add("relay_log_recovery=ON")
		}
		if host, err := os.Hostname(); err == nil {
			add("report_host=" + host)
		}
	} else if len(m.Quiesced.Coordinates.Upstream) > 0 {
		// It would resume the origin's own replication.
		if m.Version.AtLeast(respaldo.MySQL, 8, 0, 26) {
			add("skip_replica_start=ON")
		} else {
			add("skip_slave_start")
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// cloneServerID differs from the origin's, and is the same for the same place each time.
func cloneServerID(m respaldo.Manifest, dir string) uint32 {
	host, _ := os.Hostname()
	sum := fnv.New32a()
	fmt.Fprintf(sum, "%s %s %s", m.ServerID, host, dir)
	for {
		id := 1<<31 | sum.Sum32()>>1
		if fmt.Sprint(id) != m.Variables["server_id"] {
			return id
		}
		sum.Write([]byte{0})
	}
}
