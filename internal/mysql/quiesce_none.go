package mysql

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// ErrCrossed is in the chain of Quiesce's error when something happened across a snapshot
// that may have made it inexact: without a lock, or under one that does not stop it (BACKUP
// STAGE). It must be discarded; another may be taken at once. Nobody waited for us longer than
// the attempt took.
var ErrCrossed = errors.New("the image would not be exact")

func crossed(format string, args ...any) error {
	return &respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf(format, args...), Err: ErrCrossed,
		Hint: "run again, or with --lock=auto, which takes a stricter lock when this goes on"}
}

// watch sees what happens across a snapshot that is taken without a lock.
//
// Its order is what makes it sure: the counters, then the running statements, then the
// snapshot, then the counters again. A statement is counted when it begins and listed until
// it has ended, so that one which overlaps the snapshot is either listed before it or
// counted between the two readings.
type watch struct {
	s   *Server
	q   queryer
	f   *Facts
	ddl bool // nothing keeps DDL out, so it is watched, too
	// own: what writes to tables of the server's own that know no transactions is watched,
	// where not all DDL has to be. BACKUP STAGE BLOCK_DDL lets through what accounts, servers
	// and plugins are made and changed by, SET PASSWORD, ANALYZE, and DML on such a table
	// (tried on MariaDB 10.5, 10.11 and 11.8; a REVOKE was in an image before it was in the
	// binlog).
	own  bool
	seen happened
}

// happened is what moves when something crosses.
type happened struct {
	counters map[string]int64
	files    map[string]fileStamp // of the server's own tables that are not transactional
	redoLog  string               // as Facts.redoLogState
}

type fileStamp struct {
	size     int64
	modified time.Time
}

// Statements that must not cross a snapshot, by their counters. All of them are compared for
// equality: one that goes backwards was reset meanwhile. RESET removes the binlogs; XA
// PREPARE and XA COMMIT reach the binlog and the tables at different times.
var (
	alwaysWatched = regexp.MustCompile(`^(com_reset|com_xa_(prepare|commit|rollback))$`)
	ddlCounters   = regexp.MustCompile(`^com_((alter|create|drop|rename|install|uninstall|grant|revoke|import)(_.*)?|truncate|optimize|repair|analyze|set_password|clone)$`)
	resetCounter  = regexp.MustCompile(`^com_reset$`)
	temporary     = regexp.MustCompile(`_temporary_`)
	// The last of them counts each write to one of the server's own tables: a table of a
	// user's in Aria rules an image without a lock out.
	ownCounters = regexp.MustCompile(`^(com_((alter|create|drop|rename)_(user|role|server)|(grant|revoke|install|uninstall)(_.*)?|analyze|set_password)|aria_transaction_log_syncs)$`)
)

// Running statements are told the other way round: whatever is not known to be harmless, a
// text that is all comment included, must not cross. Of a CALL or an EXECUTE the list shows
// the statement inside, while that runs. SET also sets passwords.
var (
	harmless = regexp.MustCompile(`(?is)^(\s|\(|` + comment + `)*(select|insert|update|delete|replace|with|values|begin|start\s+transaction|commit|rollback|savepoint|release|set|show|desc|describe|explain|use|do|call|execute|prepare|deallocate|load\s+data|lock|unlock|flush|kill|handler|checksum|check|help|purge|backup|binlog|xa\s+(start|begin|end|recover))\b`)
	onOwn    = regexp.MustCompile(begins + `(grant|revoke|install|uninstall|analyze|set\s+statement|(alter|create|drop|rename)\s+(or\s+replace\s+)?(user|role|server))\b`)
	harmful  = regexp.MustCompile(begins + `(set\s+(password|default)|reset|xa\s+(prepare|commit|rollback))\b`)
	// What may be half done under BACKUP STAGE BLOCK_COMMIT: see halfDone.
	onAccounts = regexp.MustCompile(begins + `(grant|revoke|install|uninstall|set\s+(statement|password|default)|(alter|create|drop|rename)\s+(or\s+replace\s+)?(user|role|server))\b`)
	// MariaDB's SET STATEMENT … FOR may stand before anything.
	wraps = regexp.MustCompile(begins + `set\s+statement\b`)
)

// begins is what may stand before a statement that is executed, /*! included.
const begins = `(?is)^(\s|/\*M?!\d*|` + comment + `)*`

// comment is one that is none of a statement's: what stands in /*! and /*M! is executed. It
// matches one comment only, never on to the end of a later one.
const comment = `/\*(?:[^!*M]|M[^!*]|\*+[^*/])(?:[^*]|\*+[^*/])*\*+/|--[ \t][^\n]*\n|#[^\n]*\n`

// settled is how long ago a file must have been written to be told from one that is written
// right now: longer than a tick of the filesystem's clock.
const settled = 30 * time.Millisecond

// begin returns when nothing that must not cross is under way, having seen that what Facts
// found still holds, tables excepted. It waits for that until the time given.
func (w *watch) begin(ctx context.Context, until time.Time) (err error) {
	interrupted, ctx := ctx, context.WithoutCancel(ctx) // a query that is broken off takes the connection with it
	pause := 2 * time.Millisecond
	for {
		if w.seen, err = w.look(ctx); err != nil {
			return err
		}
		running, err := w.running(ctx)
		if err != nil {
			return err
		}
		if running == "" {
			break
		}
		if interrupted.Err() != nil {
			return context.Cause(interrupted)
		}
		if time.Now().Add(pause).After(until) {
			return crossed("what must not cross a snapshot did not end: %s", running)
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
	if moved(w.f.counters, w.seen.counters, resetCounter) != "" {
		return crossed("the binlogs may have been reset since the server was looked at")
	}
	now := *w.f
	if w.ddl && w.f.tablesMoved(w.seen.counters) { // where it is kept out, it is looked for in peace
		return crossed("DDL came right before the snapshot")
	}
	if now.preparedXA, now.xaHidden, err = w.s.preparedXA(ctx, w.q); err != nil {
		return err
	}
	now.redoLogState = w.seen.redoLog
	return w.stillHolds(ctx, &now)
}

// stillHolds reads again what can be changed at any time.
func (w *watch) stillHolds(ctx context.Context, now *Facts) error {
	shown, err := queryRows(ctx, w.q, "SHOW GLOBAL VARIABLES")
	if err != nil {
		return err
	}
	now.Variables = readVariables(shown)
	if failing := now.failing(); len(failing) > 0 {
		return crossed("changed since the server was looked at: %s", strings.Join(failing, "; "))
	}
	return nil
}

// end says whether something has crossed since begin.
func (w *watch) end(ctx context.Context) (err error) {
	now := *w.f
	// A replica's applier prepares XA transactions without MySQL counting it (tried on 9.7).
	// What it prepared is either listed here or counted below, when it was committed since.
	if now.preparedXA, now.xaHidden, err = w.s.preparedXA(ctx, w.q); err != nil {
		return err
	}
	after, err := w.look(ctx)
	if err != nil {
		return err
	}
	watched := []*regexp.Regexp{alwaysWatched}
	if w.ddl {
		watched = append(watched, ddlCounters)
	}
	if w.own {
		watched = append(watched, ownCounters)
		running, err := w.running(ctx) // and is counted at its end only
		if err == nil && running != "" {
			err = crossed("it may have crossed the snapshot: %s", running)
		}
		if err != nil {
			return err
		}
	}
	if what := moved(w.seen.counters, after.counters, watched...); what != "" {
		return crossed("%s crossed the snapshot", what)
	}
	if !maps.Equal(w.seen.files, after.files) {
		return crossed("a table of the server's own was written while the snapshot was taken: %s", differing(w.seen.files, after.files))
	}
	if w.f.BinlogOn {
		// A server may go on without its binlog when it cannot be written.
		at, err := queryRows(ctx, w.q, binlogStatusStatement(w.s.version))
		if err == nil && len(at) == 0 {
			err = crossed("the binlog was closed")
		}
		if err != nil {
			return err
		}
	}
	now.redoLogState = after.redoLog
	return w.stillHolds(ctx, &now)
}

// halfDone finds account statements and their like under BACKUP STAGE BLOCK_COMMIT. They write
// the binlog first, and wait for the stage's end before they commit in the server's own tables:
// coordinates may then lie behind a GRANT that the snapshot does not have. (Tried on MariaDB
// 10.5, 10.11 and 11.8; FLUSH TABLES WITH READ LOCK waits for their end.) None can end before
// the lock does, so a look after the snapshot sees each that was under way.
func (l *lock) halfDone(ctx context.Context) error {
	list, err := queryRows(ctx, l.conn, lookStatement)
	if err != nil {
		return err
	}
	for _, p := range list {
		if onAccounts.MatchString(p["info"]) {
			return crossed("BACKUP STAGE has stopped a statement midway, so the snapshot may have half of it: %s", statementOf(p))
		}
	}
	return nil
}

func (w *watch) look(ctx context.Context) (h happened, err error) {
	if h.counters, h.redoLog, err = status(ctx, w.q); err == nil && (w.ddl || w.own) {
		h.files, err = systemFiles(filepath.Join(w.f.Process.DataDir, "mysql"))
	}
	return h, err
}

// running names what is under way and must not cross; "" is nothing.
func (w *watch) running(ctx context.Context) (string, error) {
	list, err := queryRows(ctx, w.q, lookStatement)
	if err != nil {
		return "", err
	}
	for _, p := range list {
		if mustNotCross(p["info"], w.ddl) || w.own && onOwn.MatchString(p["info"]) {
			return statementOf(p).String(), nil
		}
	}
	if !w.ddl && !w.own {
		return "", nil
	}
	open, err := queryRows(ctx, w.q, "SHOW OPEN TABLES FROM mysql WHERE In_use > 0")
	if err != nil {
		return "", err
	}
	for _, o := range open {
		for name := range w.seen.files {
			if strings.HasPrefix(name, o["table"]+".") {
				return "the table mysql." + o["table"] + " is in use", nil
			}
		}
	}
	now := time.Now()
	for name, stamp := range w.seen.files {
		if age := now.Sub(stamp.modified); age < settled && age > -time.Hour { // far in the future: a clock was wrong once
			return "mysql/" + name + " was written just now", nil
		}
	}
	return "", nil
}

// mustNotCross judges a running statement; without ddl that is kept out by a lock.
func mustNotCross(statement string, ddl bool) bool {
	return statement != "" && (harmful.MatchString(statement) || ddl && (!harmless.MatchString(statement) || wraps.MatchString(statement)))
}

// status reads what must not change across a snapshot: statementCounters and redoLogState.
func status(ctx context.Context, q queryer) (counters map[string]int64, redoLog string, err error) {
	status, err := queryRows(ctx, q, "SHOW GLOBAL STATUS")
	if err == nil {
		counters, err = statementCounters(status)
	}
	return counters, redoLogState(status), err
}

// statementCounters counts the statements of all sessions since the server's start.
func statementCounters(status []row) (counters map[string]int64, err error) {
	counters = map[string]int64{}
	for _, r := range status {
		name := strings.ToLower(r["variable_name"])
		if (alwaysWatched.MatchString(name) || ddlCounters.MatchString(name) || ownCounters.MatchString(name)) && !temporary.MatchString(name) {
			if counters[name], err = strconv.ParseInt(r["value"], 10, 64); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if _, counted := counters["com_create_table"]; !counted {
		return nil, errors.New("the server does not show how many statements it has executed (SHOW GLOBAL STATUS)")
	}
	return counters, nil
}

// moved names the watched counters that differ: "CREATE TABLE, GRANT".
func moved(before, after map[string]int64, watched ...*regexp.Regexp) string {
	var names []string
	for name, n := range after {
		if before[name] != n && slices.ContainsFunc(watched, func(w *regexp.Regexp) bool { return w.MatchString(name) }) {
			names = append(names, strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(name, "com_"), "_", " ")))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// systemFiles are those of the server's own tables that know no transactions: accounts,
// routines and events before MySQL 8.0. Tables that are logs may be written at any time,
// under any lock.
func systemFiles(dir string) (map[string]fileStamp, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string]fileStamp{}
	for _, e := range entries {
		name, ext := e.Name(), filepath.Ext(e.Name())
		if strings.TrimSuffix(name, ext) == "general_log" || strings.TrimSuffix(name, ext) == "slow_log" {
			continue
		}
		switch ext {
		case ".MYD", ".MYI", ".MAD", ".MAI":
			info, err := e.Info()
			if errors.Is(err, os.ErrNotExist) {
				continue // its name is then missing, which is a difference
			}
			if err != nil {
				return nil, err
			}
			files[name] = fileStamp{info.Size(), info.ModTime()}
		}
	}
	return files, nil
}

func differing(a, b map[string]fileStamp) string {
	var names []string
	for name := range b {
		if a[name] != b[name] {
			names = append(names, name)
		}
	}
	for name := range a {
		if _, there := b[name]; !there {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// preparedXA counts the XA transactions that users have prepared. They are hidden from an
// account without XA_RECOVER_ADMIN.
func (s *Server) preparedXA(ctx context.Context, q queryer) (n int, hidden bool, err error) {
	rows, err := queryRows(ctx, q, "XA RECOVER")
	switch errorNumber(err) {
	case errPrivilegeNeeded, errXAFailed:
		return 0, true, nil
	}
	return len(rows), false, err
}
