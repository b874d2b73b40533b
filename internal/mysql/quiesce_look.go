package mysql

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// lookStatement cuts statements at 100 characters: in full they may be larger than a
// packet.
const (
	lookStatement = "SHOW PROCESSLIST"
	lookLength    = 100
)

// A statement that has run for this many seconds is taken to go on for longer than a
// lock may wait. Shorter ones are waited for within the budget.
const longSeconds = 1

// Statement is what stands in the way of a lock: a running statement, or a session
// that holds LOCK TABLES.
type Statement struct {
	ID      uint64 // for KILL; 0 where the server does not say whose the lock is
	User    string
	Host    string
	Seconds int
	State   string
	// Text is the statement's beginning with all literals replaced by "?"; for a session
	// that holds LOCK TABLES, which tables.
	Text       string
	LockTables bool
}

// String names the statement as one would look it up: id, user, age.
func (t Statement) String() string {
	if t.ID == 0 {
		return t.Text
	}
	who := fmt.Sprintf("connection %d of user %s", t.ID, t.User)
	if t.LockTables {
		return fmt.Sprintf("%s, idle for %d s, holds %s", who, t.Seconds, t.Text)
	}
	return fmt.Sprintf("%s, running for %d s: %s", who, t.Seconds, t.Text)
}

// blockers lists what would make a lock of this mode wait for long. On MySQL one must
// look *before* asking for FLUSH TABLES WITH READ LOCK: while it waits every writer
// stalls, and after it has given up, the tables that a long SELECT reads hang until
// that ends (measured on 5.6 and 9.7; MariaDB without BACKUP STAGE is taken to be no
// better). On MariaDB since then a SELECT blocks nothing, a long write blocks FLUSH TABLES
// WITH READ LOCK, and nothing of that kind blocks BACKUP STAGE except LOCK TABLES and
// writes to non-transactional tables, which it waits for without stalling others.
//
// unsure are tables that somebody may hold with LOCK TABLES, but they may as well be those
// of the statements that run just now: look again.
func (s *Server) blockers(ctx context.Context, q queryer, mode respaldo.LockMode) (found []Statement, unsure []string, err error) {
	list, err := queryRows(ctx, q, lookStatement)
	if err != nil {
		return nil, nil, err
	}
	active := 0
	for _, p := range list {
		if !isActive(p) {
			continue
		}
		active++
		if t := statementOf(p); t.Seconds >= longSeconds && standsInTheWay(s.version, p, mode) {
			found = append(found, t)
		}
	}
	if mode == respaldo.LockNone && !s.version.AtLeast(respaldo.MariaDB, 10, 4, 1) {
		return found, nil, nil // LOCK TABLES is in the way of BACKUP STAGE only
	}
	locked, unsure, err := s.lockTables(ctx, q, active)
	if err != nil {
		return nil, nil, err
	}
	found = append(found, locked...)
	sort.SliceStable(found, func(i, j int) bool { return found[i].Seconds > found[j].Seconds })
	return found, unsure, nil
}

// isActive leaves out whoever runs no statement that uses a table: sleepers, those who send
// binlogs, who log in or go away, and ourselves. Replication's threads and events are in.
//
// MySQL 5.6 now and then keeps a session that was killed while idle as "Killed" until its
// wait_timeout.
func isActive(p row) bool {
	switch p["command"] {
	case "Sleep", "Daemon", "Binlog Dump", "Binlog Dump GTID", "Quit":
		return false
	case "Killed", "Connect":
		if p["info"] == "" && (p["command"] == "Killed" && p["user"] != "system user" || p["user"] == "unauthenticated user") {
			return false
		}
	}
	return p["info"] != lookStatement && !isNap(p)
}

var (
	readsOnly    = regexp.MustCompile(`(?is)^(\s|\(|/\*.*?\*/)*(select|show|desc|describe|explain|with)\b`)
	writes       = regexp.MustCompile(`(?is)\b(insert|update|delete|replace)\b`)
	changesTable = regexp.MustCompile(`(?is)^\s*(/\*.*?\*/\s*)*(alter|create|drop|rename|truncate|optimize|repair|analyze)\b`)
	holdsNoTable = regexp.MustCompile(`(?is)^\s*(select|do)\b`)
	fromTable    = regexp.MustCompile(`(?i)\bfrom\b`)
)

// isNap tells SELECT SLEEP() and DO GET_LOCK() from others.
func isNap(p row) bool {
	return (p["state"] == "User sleep" || p["state"] == "User lock") &&
		len(p["info"]) < lookLength && holdsNoTable.MatchString(p["info"]) && !fromTable.MatchString(p["info"])
}

// standsInTheWay judges a statement that has run for long. "Killed" ones are among them: they
// roll back.
func standsInTheWay(v respaldo.Version, p row, mode respaldo.LockMode) bool {
	text := p["info"]
	if text == "" {
		return false
	}
	if p["user"] == "system user" && !changesTable.MatchString(text) {
		// Of a replica's applier the server tells how far it lags, not how long the statement runs.
		return false
	}
	switch {
	case mode == respaldo.LockNone: // what it takes instead waits for DDL, and only DDL for it
		return changesTable.MatchString(text)
	case mode == respaldo.LockBackup:
		return false
	case !v.AtLeast(respaldo.MariaDB, 10, 4, 1):
		return true
	}
	reads := readsOnly.MatchString(text) && !writes.MatchString(text) // WITH … UPDATE, SELECT … FOR UPDATE
	return !reads
}

func statementOf(p row) Statement {
	id, _ := strconv.ParseUint(p["id"], 10, 64)
	seconds, _ := strconv.Atoi(p["time"])
	return Statement{ID: id, User: p["user"], Host: p["host"], Seconds: seconds, State: p["state"], Text: withoutLiterals(p["info"])}
}

// lockTables finds sessions that hold LOCK TABLES. MySQL 8 tells who they are; elsewhere
// only the tables in use are to be seen (by an account that may see them), and that is
// conclusive only while no statement runs.
func (s *Server) lockTables(ctx context.Context, q queryer, active int) (found []Statement, unsure []string, err error) {
	if s.version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		held, err := queryRows(ctx, q, `SELECT t.PROCESSLIST_ID AS id, t.PROCESSLIST_USER AS user, t.PROCESSLIST_HOST AS host, t.PROCESSLIST_TIME AS time,
				GROUP_CONCAT(DISTINCT CONCAT(m.OBJECT_SCHEMA, '.', m.OBJECT_NAME) ORDER BY 1 SEPARATOR ', ') AS tables
			FROM performance_schema.metadata_locks m JOIN performance_schema.threads t ON t.THREAD_ID = m.OWNER_THREAD_ID
			WHERE m.LOCK_STATUS = 'GRANTED' AND m.OBJECT_TYPE = 'TABLE' AND m.LOCK_TYPE IN ('SHARED_NO_READ_WRITE', 'SHARED_READ_ONLY') AND t.PROCESSLIST_COMMAND = 'Sleep'
			GROUP BY t.PROCESSLIST_ID, t.PROCESSLIST_USER, t.PROCESSLIST_HOST, t.PROCESSLIST_TIME`)
		if errorNumber(err) == errTableAccessDenied {
			return nil, nil, nil // the budget bounds what we could not foresee
		}
		if err != nil {
			return nil, nil, err
		}
		for _, h := range held {
			t := statementOf(h)
			t.LockTables, t.Text = true, "LOCK TABLES on "+h["tables"]
			found = append(found, t)
		}
		return found, nil, nil
	}
	open, err := queryRows(ctx, q, "SHOW OPEN TABLES WHERE In_use > 0")
	if err != nil {
		return nil, nil, err
	}
	var tables []string
	for _, o := range open {
		if o["database"] != "performance_schema" && o["database"] != "information_schema" {
			tables = append(tables, o["database"]+"."+o["table"])
		}
	}
	if len(tables) == 0 || active > 0 {
		return nil, tables, nil
	}
	return []Statement{{LockTables: true, Text: "some connection holds LOCK TABLES on " + strings.Join(tables, ", ")}}, nil, nil
}

// inTheWay looks who was in the way of a lock that was not granted. Where LOCK TABLES cannot
// be told from running statements it looks again, for two thirds of a second at most, until
// it can. Else it names the tables that were in use in each look.
func (l *lock) inTheWay(ctx context.Context) []Statement {
	var always []string
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		// What would be no obstacle to BACKUP STAGE at first sight may have been one all the same.
		found, unsure, err := l.s.blockers(ctx, l.killer, respaldo.LockGlobal)
		// Servers count seconds by their clock's ticks: the shortest statement may have run for 1.
		long := slices.ContainsFunc(found, func(t Statement) bool { return t.LockTables || t.Seconds > longSeconds })
		if err != nil || long || len(unsure) == 0 {
			return found
		}
		if always == nil {
			always = unsure
		}
		always = slices.DeleteFunc(always, func(table string) bool { return !slices.Contains(unsure, table) })
		if len(always) == 0 {
			return found
		}
		if pause > 320*time.Millisecond {
			text := "LOCK TABLES on one of the tables that are in use all the time: " + strings.Join(always, ", ")
			return append([]Statement{{LockTables: true, Text: text}}, found...)
		}
		time.Sleep(pause)
	}
}

var (
	stringLiteral = regexp.MustCompile(`'(?:[^'\\]|\\.|'')*'?|"(?:[^"\\]|\\.|"")*"?`)
	numberLiteral = regexp.MustCompile(`\b\d+(\.\d+)?\b|\b0x[0-9a-fA-F]+\b`)
	spaces        = regexp.MustCompile(`\s+`)
)

// withoutLiterals makes a statement fit for a log: passwords and customers' data stay out.
func withoutLiterals(text string) string {
	text = stringLiteral.ReplaceAllString(text, "?")
	text = numberLiteral.ReplaceAllString(text, "?")
	text = spaces.ReplaceAllString(strings.TrimSpace(text), " ")
	return strings.ToValidUTF8(text, "") // the server cuts characters, too
}

// unsureLooks is how often to look again when LOCK TABLES cannot be told from running
// statements: on a busy server it never can.
const unsureLooks = 3

// calmLasts is how long a look at the server's statements is taken to hold: what is done
// beyond it is followed by another look.
const calmLasts = 50 * time.Millisecond

// calmWait looks for a moment in which nothing stands in the way of the lock, for as long as
// patience. Nobody waits for us meanwhile.
type calmWait struct {
	l        *lock
	patience time.Duration
	began    time.Time
	waiting  func(behind string)
	unready  func() error      // undoes what is done before the lock is asked for; may be nil
	kill     func(Statement)   // told of each read that was ended; nil: none is
	ended    []uint64          // whose statement was
	spared   map[uint64]string // and whose was not, and why
}

// then waits for a moment in which the lock can be asked for and before, if set, has just been
// done: where that took long, and somebody has begun meanwhile, both are due again.
func (c *calmWait) then(ctx context.Context, before func() error) error {
	for {
		if err := c.wait(ctx); err != nil || before == nil {
			return err
		}
		start := time.Now()
		if err := before(); err != nil {
			return err
		}
		if time.Since(start) <= calmLasts {
			return nil
		}
		if found, _, err := c.look(ctx); err != nil || len(found) == 0 {
			return err
		}
		if c.unready != nil {
			if err := c.unready(); err != nil {
				return err
			}
		}
	}
}

func (c *calmWait) look(ctx context.Context) (found []Statement, unsure []string, err error) {
	found, unsure, err = c.l.s.blockers(ctx, c.l.killer, c.l.mode)
	return found, unsure, c.l.s.explain(err, "looking at running statements")
}

// wait looks again and again, with a back-off.
func (c *calmWait) wait(ctx context.Context) error {
	pause := 20 * time.Millisecond
	for looks := 1; ; looks++ {
		found, unsure, err := c.look(ctx)
		if err != nil || len(found) == 0 && (len(unsure) == 0 || looks >= unsureLooks) {
			return err
		}
		if c.kill != nil && time.Since(c.began) >= min(killAfter, c.patience/2) {
			if err := c.endReads(ctx, found); err != nil {
				return err
			}
		}
		if c.waiting != nil && len(found) > 0 && time.Since(c.began) > time.Second {
			c.waiting(nameAll(found))
			c.waiting = nil
		}
		left := c.patience - time.Since(c.began)
		if left <= 0 {
			if len(found) == 0 {
				return nil
			}
			return c.blocked(found)
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
		pause = min(2*pause, time.Second)
	}
}

// blocked says who stood in the way for how long. No lock was asked for.
func (c *calmWait) blocked(found []Statement) error {
	hint := "wait until it has ended"
	if id := found[0].ID; id != 0 {
		hint += fmt.Sprintf(", or end it: KILL %d", id)
	}
	what := fmt.Sprintf("no lock was asked for, because for %s it would have stalled every writer behind %s", c.patience.Round(time.Millisecond), nameAll(found))
	if c.l.mode == respaldo.LockNone {
		what = fmt.Sprintf("no snapshot was taken, because for %s it would have been crossed by %s", c.patience.Round(time.Millisecond), nameAll(found))
	}
	if spared := c.sparedText(found); spared != "" {
		what += "; " + spared
	}
	return &respaldo.Error{Kind: respaldo.LockTimeout, What: what, Hint: hint + "; then run again"}
}

// nameAll names the first three.
func nameAll(found []Statement) string {
	names := make([]string, 0, 4)
	for _, t := range found[:min(3, len(found))] {
		names = append(names, t.String())
	}
	if more := len(found) - len(names); more > 0 {
		names = append(names, plural(more, "other"))
	}
	return strings.Join(names, "; ")
}
