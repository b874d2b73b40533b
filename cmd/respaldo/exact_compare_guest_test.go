//go:build guest

package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Rolled forward means: a server on the image as a user restores it is given everything
// that the origin's binlogs hold from the image's coordinates on, and stops at the first
// event that does not fit.

// contentsOf is all that a server holds and a user can see, by name: the rows of every
// table as a checksum, and every definition.
func contentsOf(s *guest.Server) (map[string]string, error) {
	found := map[string]string{}
	var names []string
	const users = " NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')"
	err := each(s.DB, "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA"+users, func(row []string) error {
		if name := "`" + row[0] + "`.`" + row[1] + "`"; row[2] != "VIEW" {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var table, sum, definition, rows sql.NullString
		if err := s.DB.QueryRow("SHOW CREATE TABLE "+name).Scan(&table, &definition); err != nil {
			return nil, err
		}
		if err := s.DB.QueryRow("CHECKSUM TABLE "+name).Scan(&table, &sum); err != nil {
			return nil, err
		}
		if err := s.DB.QueryRow("SELECT COUNT(*) FROM " + name).Scan(&rows); err != nil {
			return nil, err
		}
		found["rows of "+name] = rows.String + " with checksum " + sum.String
		found["table "+name] = nextID.ReplaceAllString(definition.String, "")
	}
	for what, query := range map[string]string{
		"database": "SELECT SCHEMA_NAME, DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA",
		"view":     "SELECT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME), VIEW_DEFINITION, DEFINER, SECURITY_TYPE, CHECK_OPTION FROM information_schema.VIEWS WHERE TABLE_SCHEMA" + users,
		"routine": "SELECT CONCAT(ROUTINE_SCHEMA, '.', ROUTINE_NAME), ROUTINE_TYPE, ROUTINE_DEFINITION, DEFINER, SQL_MODE, DTD_IDENTIFIER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA" +
			users,
		"trigger": "SELECT CONCAT(TRIGGER_SCHEMA, '.', TRIGGER_NAME), EVENT_OBJECT_TABLE, EVENT_MANIPULATION, ACTION_TIMING, ACTION_STATEMENT, DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA" +
			users,
		"event": "SELECT CONCAT(EVENT_SCHEMA, '.', EVENT_NAME), EVENT_DEFINITION, INTERVAL_VALUE, INTERVAL_FIELD, STARTS, STATUS, DEFINER FROM information_schema.EVENTS",
	} {
		err := each(s.DB, query, func(row []string) error {
			found[what+" "+row[0]] = strings.Join(row[1:], "|")
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, accounts(s, found)
}

// nextID is no content: an engine that keeps it in memory has forgotten those that were
// given to rows which are gone.
var nextID = regexp.MustCompile(` AUTO_INCREMENT=\d+`)

// accounts adds who there is, with what password, and what they may do.
func accounts(s *guest.Server, found map[string]string) error {
	secret := "authentication_string"
	if s.Name == "mysql-5.6" { // as in GRANTS of MariaDB
		secret = "password"
	}
	var names []string
	err := each(s.DB, "SELECT CONCAT('\\'', user, '\\'@\\'', host, '\\''), "+secret+" FROM mysql.user WHERE user <> ''", func(row []string) error {
		names = append(names, row[0])
		found["account "+row[0]] = row[1]
		return nil
	})
	for _, name := range names {
		if err != nil {
			break
		}
		var grants []string
		err = each(s.DB, "SHOW GRANTS FOR "+name, func(row []string) error {
			grants = append(grants, row[0])
			return nil
		})
		slices.Sort(grants)
		found["grants of "+name] = strings.Join(grants, "|")
	}
	return err
}

func each(db *sql.DB, query string, f func(row []string) error) error {
	rows, err := db.Query(query)
	if err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		row := make([]string, len(values))
		for i, v := range values {
			row[i] = v.String
		}
		if err := f(row); err != nil {
			return err
		}
	}
	return rows.Err()
}

// differences names what is not the same in both.
func differences(origin, image map[string]string) (list []string) {
	names := maps.Clone(origin)
	maps.Copy(names, image)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		want, there := origin[name]
		got, here := image[name]
		switch {
		case !here:
			list = append(list, name+" is missing")
		case !there:
			list = append(list, name+" is not at the origin: "+got)
		case want != got:
			list = append(list, fmt.Sprintf("%s is %s, at the origin %s", name, got, want))
		}
	}
	return list
}

// rollForward gives a server what the origin's binlogs hold from a position on, and returns
// the GTIDs of that, in order. None is passed over because it is known: what is there already
// does not fit.
func rollForward(target *guest.Server, binlogs []string, position uint64) (gtids []string, err error) {
	client := exec.Command(servers.Binary(target.Name, "mysql"), "--no-defaults", "-uroot", "-S"+target.Spec().Socket, "--binary-mode")
	var said bytes.Buffer
	client.Stderr, client.Stdout = &said, &said
	in, err := client.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := client.Start(); err != nil {
		return nil, err
	}
	to := bufio.NewWriterSize(in, 1<<16)
	readErr := readBinlogs(target.Name, binlogs, position, func(line, gtid string, _ int) error {
		if gtid != "" {
			gtids = append(gtids, gtid)
		}
		if strings.HasPrefix(line, "SET @@SESSION.GTID_NEXT=") {
			line = "SET @@SESSION.GTID_NEXT= 'AUTOMATIC'/*!*/;\n"
		}
		_, err := to.WriteString(line)
		return err
	})
	if readErr == nil {
		readErr = to.Flush()
	}
	in.Close()
	if err = client.Wait(); err != nil {
		text := strings.TrimSpace(said.String())
		err = fmt.Errorf("the binlogs do not fit onto the image: %w: %s", err, text[max(0, len(text)-1000):])
	}
	return gtids, errors.Join(readErr, err)
}

var (
	gtidNext  = regexp.MustCompile(`^SET @@SESSION\.GTID_NEXT= '([0-9a-fA-F-]+:\d+)'`)
	mariaGTID = regexp.MustCompile(`^#.*\tGTID (\d+-\d+-\d+)`)
	eventAt   = regexp.MustCompile(`^# at (\d+)\n`)
)

// readBinlogs has mysqlbinlog read binlogs from a position in the first of them on. f gets
// each line, with the GTID where one is set, and where in its file the event is.
func readBinlogs(server string, binlogs []string, position uint64, f func(line, gtid string, at int) error) error {
	args := append([]string{"--no-defaults", "--start-position=" + strconv.FormatUint(position, 10)}, binlogs...)
	reader := exec.Command(servers.Binary(server, "mysqlbinlog"), args...)
	var said bytes.Buffer
	reader.Stderr = &said
	out, err := reader.StdoutPipe()
	if err != nil {
		return err
	}
	if err := reader.Start(); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(out, 1<<16)
	for at := 0; err == nil; {
		var line, gtid string
		if line, err = lines.ReadString('\n'); err != nil {
			break
		}
		if m := eventAt.FindStringSubmatch(line); m != nil {
			at, _ = strconv.Atoi(m[1])
		}
		if m := gtidNext.FindStringSubmatch(line); m != nil {
			gtid = m[1]
		} else if m := mariaGTID.FindStringSubmatch(line); m != nil {
			gtid = m[1]
		}
		err = f(line, gtid, at)
	}
	io.Copy(io.Discard, out)
	if waitErr := reader.Wait(); waitErr != nil {
		return fmt.Errorf("mysqlbinlog: %w: %s", waitErr, strings.TrimSpace(said.String()))
	}
	if err == io.EOF {
		err = nil
	}
	return err
}

// groupStarts are the positions in a binlog at which a group of events begins.
func groupStarts(s *guest.Server, binlog string) (starts []int, err error) {
	err = readBinlogs(s.Name, []string{binlog}, 4, func(_, gtid string, at int) error {
		if gtid != "" {
			starts = append(starts, at)
		}
		return nil
	})
	return starts, err
}

// binlogsFrom are a server's binlogs from one of them on, or all.
func binlogsFrom(s *guest.Server, file string) ([]string, error) {
	all, err := filepath.Glob(filepath.Join(s.DataDir, "binlog.[0-9][0-9][0-9][0-9][0-9][0-9]"))
	slices.Sort(all)
	if file == "" {
		return all, err
	}
	from := slices.Index(all, filepath.Join(s.DataDir, file))
	if err == nil && from < 0 {
		err = fmt.Errorf("the origin has no binlog %s", file)
	}
	if err != nil {
		return nil, err
	}
	return all[from:], nil
}

// gtidProblems compares GTIDs: those of the recovered image are to be the coordinates', and
// together with those of the binlogs from there on the origin's, each once.
func gtidProblems(origin, image *guest.Server, at respaldo.Coordinates, recovered string, gtids []string) (problems []string, err error) {
	now, err := gtidSet(origin)
	if err != nil {
		return nil, err
	}
	if isMariaDB(origin) {
		if recovered != at.GTIDSet {
			problems = append(problems, fmt.Sprintf("GTID set %q of the recovered image, coordinates with %q", recovered, at.GTIDSet))
		}
		last := at.GTIDSet // one domain, one server
		for _, gtid := range gtids {
			if sequence(gtid) != sequence(last)+1 {
				problems = append(problems, fmt.Sprintf("GTID %s comes after %q", gtid, last))
			}
			last = gtid
		}
		if last != now {
			problems = append(problems, fmt.Sprintf("the binlogs end with GTID %q, the origin is at %q", last, now))
		}
		return problems, nil
	}
	var same, disjoint, complete bool
	rest := strings.Join(gtids, ",")
	err = image.DB.QueryRow("SELECT GTID_SUBSET(?, ?) AND GTID_SUBSET(?, ?), GTID_SUBTRACT(?, ?) = GTID_SUBTRACT(?, ''), GTID_SUBSET(?, CONCAT(?, ',', ?))",
		recovered, at.GTIDSet, at.GTIDSet, recovered, rest, at.GTIDSet, rest, now, at.GTIDSet, rest).Scan(&same, &disjoint, &complete)
	if !same {
		problems = append(problems, fmt.Sprintf("GTID set %q of the recovered image, coordinates with %q", recovered, at.GTIDSet))
	}
	if !disjoint || !complete {
		problems = append(problems, fmt.Sprintf("the GTID set %q of the coordinates and those of the binlogs from there on, %v, are not the origin's %q: disjoint %v, complete %v",
			at.GTIDSet, gtids[:min(5, len(gtids))], now, disjoint, complete))
	}
	return problems, err
}

func sequence(gtid string) int {
	n, _ := strconv.Atoi(gtid[strings.LastIndex(gtid, "-")+1:])
	return n
}

func gtidSet(s *guest.Server) (set string, err error) {
	variable := "@@GLOBAL.gtid_executed"
	if isMariaDB(s) {
		variable = "@@GLOBAL.gtid_binlog_pos"
	}
	err = s.DB.QueryRow("SELECT " + variable).Scan(&set)
	return strings.ReplaceAll(set, "\n", ""), err
}
