package mysql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// Binlog is one file of a server's binlog.
type Binlog struct {
	Name  string
	Path  string
	Bytes int64
}

// Binlogs lists a server's binlogs as its index does, the oldest first, from what its
// variables say and without asking it: it may not run. None where the binlog is off.
func Binlogs(version respaldo.Version, datadir string, variables map[string]string) ([]Binlog, error) {
	f := &Facts{Version: version, Variables: variables, Process: Process{DataDir: datadir}}
	if f.BinlogOn = f.On("log_bin"); !f.BinlogOn {
		return nil, nil
	}
	f.binlogs(newLayouter(datadir))
	index, err := os.ReadFile(f.BinlogIndex)
	if err != nil {
		return nil, err
	}
	var found []Binlog
	for line := range strings.Lines(string(index)) {
		path := strings.TrimSpace(line)
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(datadir, path)
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // purged just now
		}
		if err != nil {
			return nil, err
		}
		found = append(found, Binlog{Name: filepath.Base(path), Path: path, Bytes: info.Size()})
	}
	return found, nil
}

// BinlogsSince are those from the coordinates' file on. Complete is false where that file
// is not among them any more, and so some that came after it may not be either.
func BinlogsSince(all []Binlog, at respaldo.Coordinates) (since []Binlog, complete bool) {
	for i, b := range all {
		if b.Name == at.File {
			return all[i:], true
		}
	}
	return all, false
}

// CountTransactions reads binlogs, the first of them from a position on, and counts the
// complete groups. Known is false for encrypted ones. It also says where the last one's last
// complete group ends.
func CountTransactions(ctx context.Context, binlogs []Binlog, from uint64) (count int, end uint64, known bool, err error) {
	for _, b := range binlogs {
		if ctx.Err() != nil {
			return 0, 0, false, context.Cause(ctx)
		}
		scan, err := scanFile(b.Path, int64(from))
		if err != nil {
			return 0, 0, false, fmt.Errorf("reading binlog %s: %w", b.Path, err)
		}
		if scan.Encrypted {
			return 0, 0, false, nil
		}
		count, end, from = count+scan.Groups, uint64(scan.End), 0
	}
	return count, end, true, nil
}

func scanFile(path string, from int64) (binlogScan, error) {
	f, err := os.Open(path)
	if err != nil {
		return binlogScan{}, err
	}
	defer f.Close()
	return scanBinlog(f, from)
}

// Since is what a server has executed after other coordinates, as a GTID set, and how many
// transactions that is; -1 where GTIDs do not tell.
func (s *Server) Since(ctx context.Context, then, now string) (set string, count int, err error) {
	if then == "" || now == "" {
		return "", -1, nil
	}
	if s.version.Flavor == respaldo.MariaDB {
		set, count = mariaSince(then, now)
		return set, count, nil
	}
	if err := s.db.QueryRowContext(ctx, "SELECT GTID_SUBTRACT(?, ?)", now, then).Scan(&set); err != nil {
		return "", -1, s.explain(err, "comparing GTID sets")
	}
	set = oneLine(set)
	return set, countGTIDs(set), nil
}

// countGTIDs counts a MySQL set: "uuid:1-5:7,uuid:tag:3"; -1 for what it cannot read.
func countGTIDs(set string) int {
	count := int64(0)
	for source := range strings.SplitSeq(set, ",") {
		words := strings.Split(strings.TrimSpace(source), ":")
		for _, interval := range words[min(1, len(words)):] {
			first, last, isRange := strings.Cut(interval, "-")
			from, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				continue // a tag
			}
			to := from
			if isRange {
				if to, err = strconv.ParseInt(last, 10, 64); err != nil {
					return -1
				}
			}
			count += to - from + 1
		}
	}
	return int(count)
}

// mariaSince compares MariaDB's "0-1-42": a domain's last number.
func mariaSince(then, now string) (set string, count int) {
	before := byDomain(then)
	var changed []string
	for domain, gtid := range byDomain(now) {
		number := func(gtid string) int64 {
			n, _ := strconv.ParseInt(gtid[strings.LastIndex(gtid, "-")+1:], 10, 64)
			return n
		}
		if more := number(gtid) - number(before[domain]); more > 0 {
			count += int(more)
			changed = append(changed, gtid)
		}
	}
	slices.Sort(changed)
	return strings.Join(changed, ","), count
}

// Replica is a server that reads this one's binlog.
type Replica struct {
	Host string `json:"host"` // as it has registered, or from where it is connected
	Port string `json:"port,omitempty"`
	ID   string `json:"server_id,omitempty"`
}

// String is what a person looks for: "db2:3306 (server_id 2)".
func (r Replica) String() string {
	text := r.Host
	if r.Port != "" && r.Port != "0" {
		text += ":" + r.Port
	}
	if r.ID != "" {
		text += " (server_id " + r.ID + ")"
	}
	return text
}

// Replicas lists who has registered as a replica, and the connections that read the binlog
// of those who have not told their host.
func (s *Server) Replicas(ctx context.Context) ([]Replica, error) {
	statement := "SHOW SLAVE HOSTS"
	if s.version.AtLeast(respaldo.MySQL, 8, 0, 22) {
		statement = "SHOW REPLICAS"
	}
	rows, err := queryRows(ctx, s.db, statement)
	if err != nil {
		return nil, s.explain(err, "asking for the replicas")
	}
	var connected []string
	threads, err := queryRows(ctx, s.db, lookStatement)
	if err != nil {
		return nil, s.explain(err, "asking for the replicas")
	}
	for _, t := range threads {
		if strings.HasPrefix(t["command"], "Binlog Dump") {
			host := t["host"]
			if i := strings.LastIndex(host, ":"); i > 0 {
				host = host[:i]
			}
			connected = append(connected, host)
		}
	}
	var found []Replica
	for i, r := range rows {
		replica := Replica{Host: r["host"], Port: r["port"], ID: r["server_id"]}
		if replica.Host == "" && i < len(connected) {
			replica.Host = connected[i]
		}
		found = append(found, replica)
	}
	for _, host := range connected[min(len(rows), len(connected)):] { // mysqlbinlog and the like
		found = append(found, Replica{Host: host})
	}
	return found, nil
}

// SameHistory tells in which way a server, which has just been started on an image, is not
// where that image's lock was: its binlog must go on from there. Empty where it is, or where
// nobody can tell, as the server has purged that binlog when it started.
func (s *Server) SameHistory(ctx context.Context, m respaldo.Manifest) (string, error) {
	rows, err := queryRows(ctx, s.db, "SHOW GLOBAL VARIABLES")
	if err != nil {
		return "", s.explain(err, "reading the server's variables")
	}
	v := readVariables(rows)
	if uuid := firstOf(v["server_uuid"], v["server_uid"]); m.ServerUUID != "" && uuid != m.ServerUUID {
		return fmt.Sprintf("it has the UUID %s, and the snapshot was taken of %s", uuid, m.ServerUUID), nil
	}
	at := m.Quiesced.Coordinates
	if at.File == "" {
		return "", nil
	}
	all, err := Binlogs(s.version, filepath.Clean(v["datadir"]), v)
	if err != nil {
		return "", err
	}
	since, complete := BinlogsSince(all, at)
	if !complete && len(all) > 0 && directlyAfter(all[0].Name, at.File) {
		now, err := s.Coordinates(ctx)
		if err != nil {
			return "", err
		}
		lacks, _, err := s.Since(ctx, now.GTIDSet, at.GTIDSet)
		if err != nil || lacks == "" {
			return "", err
		}
		return "it lacks the transactions " + lacks, nil
	}
	if !complete {
		var names []string
		for _, b := range all {
			names = append(names, b.Name)
		}
		return fmt.Sprintf("its binlog does not have %s, but %q", at.File, names), nil
	}
	count, end, known, err := CountTransactions(ctx, since[:1], at.Position) // it writes to a new file since it was started
	switch {
	case err != nil || !known:
		return "", err
	case end < at.Position:
		return fmt.Sprintf("its binlog %s ends at %d, and the snapshot was taken at %d", at.File, end, at.Position), nil
	case count > 0:
		return fmt.Sprintf("its binlog %s has %d transactions that came after %s", at.File, count, at), nil
	}
	return "", nil
}

// directlyAfter tells whether a binlog is the next one after another: binlog.000042 after
// binlog.000041.
func directlyAfter(name, before string) bool {
	parse := func(name string) (base string, number int, err error) {
		dot := strings.LastIndexByte(name, '.')
		number, err = strconv.Atoi(name[dot+1:])
		return name[:max(0, dot)], number, err
	}
	base, number, err := parse(name)
	lastBase, last, lastErr := parse(before)
	return err == nil && lastErr == nil && base == lastBase && number == last+1
}
