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
// Without binlogs they are empty. Upstream is how far a replica had applied its source, where
// the image was taken without a lock and nobody could say it then.
func (i *Instance) Coordinates(ctx context.Context) (respaldo.Coordinates, error) {
	var at respaldo.Coordinates
	b, m := i.image.binlogs, i.request.Manifest
	if m.Quiesced.FromImage {
		var err error
		if at.Upstream, err = readUpstream(ctx, i.db, m.Version); err != nil {
			return at, i.asking("its position as a replica", err)
		}
		for n, u := range at.Upstream {
			if u.GTIDSet != "" && (m.Version.Flavor == respaldo.MariaDB || gtidOn(m)) { // it is committed with the data; a position need not be (relay-log.info), or is a low-water mark
				at.Upstream[n].File, at.Upstream[n].Position = "", 0
			}
		}
	}
	if !b.on {
		return at, nil
	}
	own, err := readCoordinates(ctx, i.db, m.Version, false)
	if err != nil {
		return at, i.asking("its coordinates", err)
	}
	at.GTIDSet = own.GTIDSet
	name, end, err := b.end(ctx)
	if err != nil || name == "" {
		return at, err
	}
	at.File, at.Position = name, uint64(end.End)
	if end.Encrypted {
		at.Position, err = i.listedSize(ctx, at.File)
		at.Position -= min(at.Position, uint64(end.Header))
	}
	return at, err
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

// compare tells in which ways the recovered image is not at the coordinates of the lock; or,
// where there was none, at those that were read in the image before it was started.
//
// Equal means that no transaction lies between the two. Bytes may: under the lock a server
// still notes binlog checkpoints (MariaDB), and a clean shutdown after it writes a stop
// event.
func (i *Instance) compare(ctx context.Context, at respaldo.Coordinates) ([]string, error) {
	if !i.image.binlogs.on {
		return nil, nil
	}
	var problems []string
	lost, err := i.lostCommits(ctx)
	if err != nil {
		return nil, err
	}
	if lost > 0 {
		problem := fmt.Sprintf("not exact: InnoDB lacks the last %d transaction(s) of the binlog", lost)
		if lax := i.request.Manifest.Variables["innodb_flush_log_at_trx_commit"]; lax == "0" || lax == "2" {
			problem += "; with innodb_flush_log_at_trx_commit=" + lax + " the server had not written them yet"
		}
		problems = append(problems, problem)
	}
	want := i.request.Manifest.Quiesced.Coordinates
	if want.File == "" {
		return problems, nil
	}
	elsewhere, err := i.compareFiles(ctx, want, at)
	if err != nil {
		return nil, err
	}
	problems = append(problems, elsewhere...)
	same, err := i.sameSet(ctx, want.GTIDSet, at.GTIDSet)
	if err != nil {
		return nil, err
	}
	if !same {
		problems = append(problems, fmt.Sprintf("not exact: %s had GTID set %s, the recovered image has %s", i.noted(), want.GTIDSet, at.GTIDSet))
	}
	return problems, nil
}

// noted is who had the coordinates that the recovered image is compared with.
func (i *Instance) noted() string {
	if i.request.Manifest.Quiesced.FromImage {
		return "before it was started the image"
	}
	return "the lock"
}

func (i *Instance) compareFiles(ctx context.Context, want, at respaldo.Coordinates) (problems []string, err error) {
	notExact := func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf("not exact: %s was at %s, ", i.noted(), want)+fmt.Sprintf(format, args...))
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
		scan, err := i.image.binlogs.scan(ctx, name, from)
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
	own, err := i.ownGroups(ctx)
	if own > 0 {
		notExact("recovery itself wrote %d statement(s) to a new binlog (an interrupted ALTER or DROP TABLE was finished)", own)
	}
	return problems, err
}

// ownGroups counts what the instance wrote into binlogs of its own. MariaDB finishes an
// interrupted DDL statement and logs it there: the origin logs the same statement later
// and elsewhere.
func (i *Instance) ownGroups(ctx context.Context) (int, error) {
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
		scan, err := i.image.binlogs.scan(ctx, name, 0)
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
// not tell. An image that was taken without a lock is asked whatever the setting: it is
// the one thing that confirms the binlog's end from the data's side.
func (i *Instance) lostCommits(ctx context.Context) (int, error) {
	v, b := i.request.Manifest.Variables, i.image.binlogs
	switch v["innodb_flush_log_at_trx_commit"] {
	case "0", "2":
	default:
		if !i.request.Manifest.Quiesced.FromImage {
			return 0, nil // on disk before it was in the binlog
		}
	}
	if i.request.Manifest.Version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		return 0, nil // it does not tell
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
		scan, err := i.image.binlogs.scan(ctx, name, from)
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
	m := i.request.Manifest
	if want == "" || want == have {
		return true, nil
	}
	if m.Version.Flavor == respaldo.MariaDB {
		return maps.Equal(byDomain(want), byDomain(have)), nil
	}
	compare, args := "SELECT GTID_SUBSET(?, ?) AND GTID_SUBSET(?, ?)", []any{want, have, have, want}
	if m.Quiesced.FromImage && firstOf(m.Variables["log_replica_updates"], m.Variables["log_slave_updates"]) == "OFF" {
		// What it applied of its source's is in a table and in no binlog of its own, so the
		// instance knows more; what the binlogs say must still be among that.
		compare, args = "SELECT GTID_SUBSET(?, ?)", args[:2]
	}
	var same bool
	err := i.db.QueryRowContext(ctx, compare, args...).Scan(&same)
	if err != nil {
		return false, i.asking("a comparison of GTID sets", err)
	}
	return same, nil
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
