package mysql

import (
	"fmt"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// DumpHead is what stands at the head of a dump, as SQL comments: what it is of, and the
// statements that make a server on which it was loaded a replica of the origin. The
// coordinates are the image's; those of the private server that was dumped mean nothing. If
// they are inexact, the head says why instead.
func DumpHead(m respaldo.Manifest, what, program, inexact string) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		text := strings.TrimRight(fmt.Sprintf(format, args...), " ")
		b.WriteString(strings.TrimRight("-- "+strings.NewReplacer("\n", " ", "\r", " ").Replace(text), " ") + "\n")
	}
	at := m.Quiesced.Coordinates
	if inexact != "" {
		at = respaldo.Coordinates{}
	}
	line("Logical dump of server %s on %s, %s, by respaldo %s", m.Server, m.Host, m.Version.Text, program)
	line("Image: %s, taken %s", what, m.Taken.UTC().Format(time.RFC3339))
	line("")
	switch {
	case inexact != "":
		line("There are no coordinates to replicate from. %s", inexact)
	case at.File == "":
		line("The origin wrote no binlogs: there are no coordinates to replicate from.")
	default:
		line("As of %s. Statements that let a server with these data replicate from the", at)
		line("origin, by file and position:")
		line("")
		line("%s", sourceStatement(m.Version, respaldo.Upstream{File: at.File, Position: at.Position}))
	}
	if at.GTIDSet != "" {
		line("")
		line("or by GTID:")
		line("")
		for _, statement := range gtidStatements(m.Version, at.GTIDSet) {
			line("%s", statement)
		}
	}
	for _, u := range at.Upstream {
		if u.File == "" && u.GTIDSet == "" {
			continue // nobody has asked
		}
		line("")
		line("The origin is itself a replica. To replicate from its own source in its stead:")
		line("")
		if u.File == "" {
			line("%s", gtidStatements(m.Version, u.GTIDSet)[0])
		}
		line("%s", sourceStatement(m.Version, u))
	}
	b.WriteString("\n")
	return b.String()
}

// sourceStatement is CHANGE MASTER TO, or what it is called since MySQL 8.0.23. Host and
// port are left to who uses it, unless they are known. Without a file it goes by GTIDs.
func sourceStatement(v respaldo.Version, at respaldo.Upstream) string {
	verb, prefix, channel := "CHANGE MASTER TO ", "MASTER_", ""
	if v.AtLeast(respaldo.MySQL, 8, 0, 23) {
		verb, prefix = "CHANGE REPLICATION SOURCE TO ", "SOURCE_"
	}
	if at.Channel != "" {
		if v.Flavor == respaldo.MariaDB {
			verb = strings.Replace(verb, " TO", " "+quoteText(at.Channel)+" TO", 1)
		} else {
			channel = " FOR CHANNEL " + quoteText(at.Channel)
		}
	}
	host := ""
	if at.Host != "" {
		host = fmt.Sprintf("%sHOST=%s, %sPORT=%d, ", prefix, quoteText(at.Host), prefix, at.Port)
	}
	position := fmt.Sprintf("%sLOG_FILE=%s, %sLOG_POS=%d", prefix, quoteText(at.File), prefix, at.Position)
	switch {
	case at.File != "":
	case v.Flavor == respaldo.MariaDB:
		position = "MASTER_USE_GTID=slave_pos"
	default:
		position = prefix + "AUTO_POSITION=1"
	}
	return verb + host + position + channel + ";"
}

func gtidStatements(v respaldo.Version, set string) []string {
	switch {
	case v.Flavor == respaldo.MariaDB:
		return []string{"SET GLOBAL gtid_slave_pos=" + quoteText(set) + ";", "CHANGE MASTER TO MASTER_USE_GTID=slave_pos;"}
	case v.AtLeast(respaldo.MySQL, 8, 0, 23):
		return []string{"SET @@GLOBAL.gtid_purged=" + quoteText(set) + ";", "CHANGE REPLICATION SOURCE TO SOURCE_AUTO_POSITION=1;"}
	}
	return []string{"SET @@GLOBAL.gtid_purged=" + quoteText(set) + ";", "CHANGE MASTER TO MASTER_AUTO_POSITION=1;"}
}
