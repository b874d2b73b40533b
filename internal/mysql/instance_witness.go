package mysql

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// witness tells where the recovered server contradicts what we read in the image's binlogs.
// Reading them once more ourselves would repeat our own mistakes, so it asks two others:
// InnoDB, which remembers the position of its last commit, and the server's own reader.
func (i *Instance) witness(ctx context.Context, at respaldo.Coordinates) (problems []string, err error) {
	for _, ask := range []func(context.Context, respaldo.Coordinates) (string, error){i.askInnoDB, i.askReader} {
		problem, err := ask(ctx, at)
		if err != nil {
			return nil, err
		}
		if problem != "" {
			problems = append(problems, problem)
		}
	}
	return problems, nil
}

// askReader compares where our reading of the last binlog ends with what the server made of
// the same file, for an image of which nobody else has said it. MySQL has cut it off where it
// ended for it, before it began a new one; MariaDB has left it as it was, and tells which
// GTIDs come before a position.
func (i *Instance) askReader(ctx context.Context, at respaldo.Coordinates) (string, error) {
	if !i.request.Manifest.Quiesced.FromImage || at.File == "" {
		return "", nil
	}
	if i.request.Manifest.Version.Flavor == respaldo.MySQL {
		kept, err := i.listedSize(ctx, at.File)
		if err != nil || kept == at.Position {
			return "", err
		}
		return fmt.Sprintf("not exact: the image was read up to %s, and the recovered server kept %d bytes of that binlog", at, kept), nil
	}
	rows, err := queryRows(ctx, i.db, "SELECT BINLOG_GTID_POS(?, ?) AS gtid", at.File, at.Position)
	if err != nil {
		return "", i.asking("the GTIDs before "+at.String(), err)
	}
	if before := rows[0]["gtid"]; !maps.Equal(byDomain(before), byDomain(at.GTIDSet)) {
		return fmt.Sprintf("not exact: the image was read up to %s, where the recovered server has GTID set %s, and it has recovered %s", at, before, at.GTIDSet), nil
	}
	return "", nil
}

var (
	// MySQL up to 5.7 writes the position as the upper and the lower half of 64 bits.
	lastCommitMySQL   = regexp.MustCompile(`InnoDB: Last MySQL binlog file position (\d+) (\d+), file name (\S+)`)
	lastCommitMariaDB = regexp.MustCompile(`InnoDB: Last binlog file '(.+)', position (\d+)`)
	prepared          = regexp.MustCompile(`Found (\d+) prepared transaction\(s\)`)
)

// askInnoDB compares the binlog with the data: its last commit, which it tells at recovery,
// and the transactions that were prepared and committed by recovery must reach the end of
// the binlog, and not beyond. MySQL 8 does not tell.
//
// The binlog may be ahead: a server with innodb_flush_log_at_trx_commit=0 writes its redo log
// once a second, and neither FLUSH TABLES WITH READ LOCK nor BACKUP STAGE makes it do so at
// once (measured: hundreds of acknowledged rows were missing from an image whose binlog had
// them all, on every version). An image that was taken without a lock is asked whatever the
// setting.
func (i *Instance) askInnoDB(ctx context.Context, at respaldo.Coordinates) (string, error) {
	m := i.request.Manifest
	v, set := m.Version, m.Variables
	lax := set["innodb_flush_log_at_trx_commit"]
	switch {
	case !m.Quiesced.FromImage && lax != "0" && lax != "2":
		return "", nil // on disk before it was in the binlog, and the lock says where that ends
	case v.AtLeast(respaldo.MySQL, 8, 0, 0):
		return "", nil
	case set["binlog_order_commits"] == "OFF" || set["rocksdb_datadir"] != "":
		return "", nil // the last commit need not be InnoDB's latest
	}
	file, position, recovered := i.toldAtRecovery()
	if isAfter(file, position, at) {
		current, err := i.commitsBeyond(ctx, recovered)
		if err != nil || !current {
			return "", err
		}
		return fmt.Sprintf("not exact: InnoDB has committed up to %s:%d, and the image's binlog ends at %s", file, position, at), nil
	}
	if v.Flavor == respaldo.MariaDB && !v.AtLeast(respaldo.MariaDB, 10, 6, 0) {
		// It tells the position of some earlier commit (measured on 10.5: 136 transactions before
		// the last in an image that had them all; never so on 10.11 and 11.8).
		return "", nil
	}
	lost, err := i.lostCommits(ctx, file, position, recovered)
	if err != nil || lost == 0 {
		return "", err
	}
	problem := fmt.Sprintf("not exact: InnoDB lacks the last %d transaction(s) of the binlog", lost)
	if lax == "0" || lax == "2" {
		problem += "; with innodb_flush_log_at_trx_commit=" + lax + " the server had not written them yet"
	}
	return problem, nil
}

// isAfter tells whether a place in a binlog comes after other coordinates: in a later file of
// the same name, or later in the same file.
func isAfter(file string, position int64, at respaldo.Coordinates) bool {
	base := func(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) }
	switch {
	case at.File == "" || base(file) != base(at.File):
		return false
	case file == at.File:
		return uint64(position) > at.Position
	}
	return byNumber(file, at.File) > 0
}

// undoSlots is in how many places MariaDB notes the position of a commit, one after another.
const undoSlots = 128

// commitsBeyond tells whether the binlogs have so many commits that InnoDB's position must be
// of one of them. RESET MASTER leaves the position of before in its pages until later
// commits overwrite it.
func (i *Instance) commitsBeyond(ctx context.Context, recovered int) (bool, error) {
	need := recovered
	if i.request.Manifest.Version.Flavor == respaldo.MariaDB {
		need += undoSlots
	}
	for _, name := range slices.Backward(i.image.binlogs.files) {
		scan, err := i.image.binlogs.scan(ctx, name, 0)
		if err != nil {
			return false, err
		}
		if need -= scan.Commits; need < 0 {
			return true, nil
		}
	}
	return false, nil
}

// lostCommits counts the transactions that the binlog has and InnoDB has not.
func (i *Instance) lostCommits(ctx context.Context, file string, position int64, recovered int) (int, error) {
	b := i.image.binlogs
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
		scan, err := b.scan(ctx, name, from)
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
