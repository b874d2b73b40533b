package mysql

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// Coordinates are where the origin's history ends in the recovered image: File and
// Position are the end of the last complete group in the last of the origin's binlogs
// (the instance itself writes to a new one), GTIDSet is what the instance states.
// Without binlogs they are zero. The upstream of a replica is not among them.
func (i *Instance) Coordinates(ctx context.Context) (respaldo.Coordinates, error) {
	var at respaldo.Coordinates
	b := i.image.binlogs
	if !b.on {
		return at, nil
	}
	own, err := readCoordinates(ctx, i.db, i.request.Manifest.Version, false)
	if err != nil {
		return at, i.asking("its coordinates", err)
	}
	at.GTIDSet = own.GTIDSet
	if at.File = b.last(); at.File == "" {
		return at, nil
	}
	scan, err := i.scan(at.File, 0)
	if err != nil {
		return at, err
	}
	at.Position = uint64(scan.End)
	if scan.Encrypted {
		at.Position, err = i.listedSize(ctx, at.File)
		at.Position -= min(at.Position, uint64(scan.Header))
	}
	return at, err
}

func (i *Instance) scan(name string, from int64) (binlogScan, error) {
	root, err := os.OpenRoot(i.image.binlogs.local)
	if err != nil {
		return binlogScan{}, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return binlogScan{}, err
	}
	defer f.Close()
	scan, err := scanBinlog(f, from)
	if err != nil {
		return scan, fmt.Errorf("reading binlog %s of the image: %w", name, err)
	}
	return scan, nil
}

// listedSize asks the server for the size of a binlog that we cannot read.
func (i *Instance) listedSize(ctx context.Context, name string) (uint64, error) {
	logs, err := queryRows(ctx, i.db, "SHOW BINARY LOGS")
	if err != nil {
		return 0, i.asking("its binlogs", err)
	}
	for _, l := range logs {
		if l["log_name"] == name {
			return strconv.ParseUint(l["file_size"], 10, 64)
		}
	}
	return 0, fmt.Errorf("the instance does not list the origin's binlog %s", name)
}

func (i *Instance) asking(what string, err error) error {
	return fmt.Errorf("asking the instance for %s: %w", what, err)
}

// compare tells in which ways the recovered image is not at the coordinates of the lock.
//
// Equal means that no transaction lies between the two. Bytes may: under the lock a server
// still notes binlog checkpoints (MariaDB), and a clean shutdown after it writes a stop
// event.
func (i *Instance) compare(ctx context.Context, at respaldo.Coordinates) ([]string, error) {
	if !i.image.binlogs.on {
		return nil, nil
	}
	var problems []string
	lost, err := i.lostCommits()
	if err != nil {
		return nil, err
	}
	if lost > 0 {
		problems = append(problems, fmt.Sprintf("not exact: InnoDB lacks the last %d transaction(s) of the binlog; with innodb_flush_log_at_trx_commit=%s the server had not written them yet",
			lost, i.request.Manifest.Variables["innodb_flush_log_at_trx_commit"]))
	}
	want := i.request.Manifest.Quiesced.Coordinates
	if want.File == "" {
		return problems, nil
	}
	elsewhere, err := i.compareFiles(want, at)
	if err != nil {
		return nil, err
	}
	problems = append(problems, elsewhere...)
	equal, err := i.sameSet(ctx, want.GTIDSet, at.GTIDSet)
	if err != nil {
		return nil, err
	}
	if !equal {
		problems = append(problems, fmt.Sprintf("not exact: the lock had GTID set %s, the recovered image has %s", want.GTIDSet, at.GTIDSet))
	}
	return problems, nil
}

func (i *Instance) compareFiles(want, at respaldo.Coordinates) (problems []string, err error) {
	notExact := func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf("not exact: the lock was at %s, ", want)+fmt.Sprintf(format, args...))
	}
	files := i.image.binlogs.files
	first := slices.Index(files, want.File)
	if first < 0 {
		notExact("the image ends at %s and does not have that binlog", at)
		return problems, nil
	}
	groups := 0
	for n, name := range files[first:] {
		from := int64(0)
		if n == 0 {
			from = int64(want.Position)
		}
		scan, err := i.scan(name, from)
		if err != nil {
			return nil, err
		}
		switch {
		case scan.Encrypted: // only the sizes can be compared
			if at.File != want.File || at.Position != want.Position {
				notExact("the image is at %s", at)
			}
			return problems, nil
		case n == 0 && scan.End < from:
			notExact("the image's binlog ends at %d", scan.End)
		case n == 0 && !scan.Boundary:
			notExact("which is inside a transaction of the image's binlog")
		}
		groups += scan.Groups
	}
	if groups > 0 {
		notExact("the image goes on to %s, %d transaction(s) later", at, groups)
	}
	own, err := i.ownGroups()
	if own > 0 {
		notExact("recovery itself wrote %d statement(s) to a new binlog (an interrupted ALTER or DROP TABLE was finished)", own)
	}
	return problems, err
}

// ownGroups counts what the instance wrote into binlogs of its own. MariaDB finishes an
// interrupted DDL statement and logs it there: the origin logs the same statement later
// and elsewhere.
func (i *Instance) ownGroups() (int, error) {
	b := i.image.binlogs
	root, err := os.OpenRoot(b.local)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	present, err := binlogsIn(root, b.base)
	if err != nil {
		return 0, err
	}
	index, err := fs.ReadFile(root.FS(), b.base+".index")
	if err != nil {
		return 0, err
	}
	var listed []string
	for line := range strings.Lines(string(index)) {
		listed = append(listed, filepath.Base(strings.TrimSpace(line)))
	}
	groups := 0
	for _, name := range present {
		if slices.Contains(b.files, name) || !slices.Contains(listed, name) {
			continue
		}
		scan, err := i.scan(name, 0)
		if err != nil {
			return 0, err
		}
		groups += scan.Groups
	}
	return groups, nil
}

var (
	// MySQL up to 5.7 writes the position as the upper and the lower half of 64 bits.
	lastCommitMySQL   = regexp.MustCompile(`InnoDB: Last MySQL binlog file position (\d+) (\d+), file name (\S+)`)
	lastCommitMariaDB = regexp.MustCompile(`InnoDB: Last binlog file '(.+)', position (\d+)`)
	prepared          = regexp.MustCompile(`Found (\d+) prepared transaction\(s\)`)
)

// lostCommits counts the transactions that the binlog has and InnoDB has not. A server
// with innodb_flush_log_at_trx_commit=0 writes its redo log once a second, and neither
// FLUSH TABLES WITH READ LOCK nor BACKUP STAGE makes it do so at once (measured: hundreds
// of acknowledged rows were missing from an image whose binlog had them all, on every
// version). InnoDB's last commit, which it tells at recovery, and the transactions that
// were prepared and committed by recovery must reach the end of the binlog. MySQL 8 does
// not tell.
func (i *Instance) lostCommits() (int, error) {
	v, b := i.request.Manifest.Variables, i.image.binlogs
	switch v["innodb_flush_log_at_trx_commit"] {
	case "0", "2":
	default:
		return 0, nil // on disk before it was in the binlog
	}
	if v["binlog_order_commits"] == "OFF" || v["rocksdb_datadir"] != "" {
		return 0, nil // the last commit need not be InnoDB's latest
	}
	file, position, recovered := i.toldAtRecovery()
	if file == "" && len(b.files) > 0 && strings.HasSuffix(b.files[0], ".000001") && i.crashRecovered() {
		file = b.files[0] // all binlogs ever written are here, and InnoDB knows of none
	}
	first := slices.Index(b.files, file)
	if first < 0 {
		return 0, nil // recovery had nothing to do, or no commit since that file was purged
	}
	commits := 0
	for n, name := range b.files[first:] {
		from := int64(0)
		if n == 0 {
			from = position
		}
		scan, err := i.scan(name, from)
		if err != nil {
			return 0, err
		}
		commits += scan.Commits
	}
	return max(0, commits-recovered), nil
}

// toldAtRecovery reads InnoDB's last commit and the number of prepared transactions from
// the server's log.
func (i *Instance) toldAtRecovery() (file string, position int64, recovered int) {
	for _, line := range i.logLines() {
		if m := lastCommitMySQL.FindStringSubmatch(line); m != nil {
			upper, _ := strconv.ParseInt(m[1], 10, 64)
			lower, _ := strconv.ParseInt(m[2], 10, 64)
			file, position = filepath.Base(m[3]), upper<<32+lower
		}
		if m := lastCommitMariaDB.FindStringSubmatch(line); m != nil {
			file = filepath.Base(m[1])
			position, _ = strconv.ParseInt(m[2], 10, 64)
		}
		if m := prepared.FindStringSubmatch(line); m != nil {
			recovered, _ = strconv.Atoi(m[1])
		}
	}
	return file, position, recovered
}

// crashRecovered tells whether InnoDB had something to recover.
func (i *Instance) crashRecovered() bool {
	return slices.ContainsFunc(i.logLines(), func(line string) bool {
		return strings.Contains(line, "Starting crash recovery")
	})
}

// sameSet compares two GTID sets. An empty wanted one (GTIDs off, or not known) equals all.
func (i *Instance) sameSet(ctx context.Context, want, have string) (bool, error) {
	if want == "" || want == have {
		return true, nil
	}
	if i.request.Manifest.Version.Flavor == respaldo.MariaDB {
		return maps.Equal(byDomain(want), byDomain(have)), nil
	}
	var equal bool
	err := i.db.QueryRowContext(ctx, "SELECT GTID_SUBSET(?, ?) AND GTID_SUBSET(?, ?)", want, have, have, want).Scan(&equal)
	if err != nil {
		return false, i.asking("a comparison of GTID sets", err)
	}
	return equal, nil
}

// byDomain reads MariaDB's "0-1-42,5-2-7": a position in each domain, in any order.
func byDomain(set string) map[string]string {
	domains := map[string]string{}
	for gtid := range strings.SplitSeq(set, ",") {
		gtid = strings.TrimSpace(gtid)
		domain, _, _ := strings.Cut(gtid, "-")
		domains[domain] = gtid
	}
	return domains
}
