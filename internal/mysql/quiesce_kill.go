package mysql

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// killAfter is how long a read that stands in the way of the lock is given to end by itself
// before it is ended: half of the patience, if that is less.
const killAfter = 10 * time.Second

// judgedLength is how much of a statement is read to judge it. A longer one is not ended.
const judgedLength = 64 << 10

// neverEnded finds what makes more of a statement than a read, or might: also where it is but
// a name or within a literal. When in doubt, nothing is ended.
var neverEnded = regexp.MustCompile(`(?is)\b(insert|update|delete|create|drop|alter|truncate|rename|call|load|into|lock|analyze)\b|/\*M?!`)

// endReads ends those of the statements that are reads, by KILL QUERY: their connections, and
// whatever transactions these have open, live on. Each is judged anew right before.
func (c *calmWait) endReads(ctx context.Context, found []Statement) error {
	c.ended = slices.DeleteFunc(c.ended, func(id uint64) bool { // it may have begun another
		return !slices.ContainsFunc(found, func(t Statement) bool { return t.ID == id })
	})
	for _, t := range found {
		if t.ID == 0 || t.LockTables || slices.Contains(c.ended, t.ID) {
			continue
		}
		now, why, err := c.l.judge(ctx, t.ID)
		if err != nil {
			return c.l.s.explainKill(err, t)
		}
		if why != "" {
			c.spare(t.ID, why)
			continue
		}
		if _, err := c.l.killer.ExecContext(ctx, now.kill); err != nil && errorNumber(err) != errNoSuchThread && errorNumber(err) != errNoSuchQuery {
			return c.l.s.explainKill(err, t)
		}
		c.ended = append(c.ended, t.ID)
		c.kill(now.Statement)
	}
	return nil
}

// endStranded ends the reads that a lock was not granted because of. On MySQL the tables that
// they read hang for everybody from then on, until they have ended.
func (c *calmWait) endStranded(ctx context.Context) {
	if c.kill == nil || ctx.Err() != nil {
		return
	}
	found, _, err := c.look(ctx)
	if err == nil {
		err = c.endReads(ctx, found)
	}
	if err != nil { // the next try meets them, and says it
		c.l.s.log.Debug("reads were left", "error", err)
	}
}

// spare remembers why a statement was not ended.
func (c *calmWait) spare(id uint64, why string) {
	if c.spared == nil {
		c.spared = map[uint64]string{}
	}
	c.spared[id] = why
}

// sparedText says which of the statements were not ended, and why.
func (c *calmWait) sparedText(found []Statement) string {
	var text []string
	for _, t := range found {
		if why := c.spared[t.ID]; why != "" {
			text = append(text, fmt.Sprintf("connection %d was not ended: %s", t.ID, why))
		}
	}
	return strings.Join(text, "; ")
}

// judged is a statement that may be ended, and what ends it.
type judged struct {
	Statement
	kill string
}

// judge looks again at what a connection runs, and says why that must not be ended; "" if it
// may be.
func (l *lock) judge(ctx context.Context, id uint64) (t judged, why string, err error) {
	queryID := "0"
	if l.s.version.Flavor == respaldo.MariaDB {
		queryID = "QUERY_ID"
	}
	running, err := queryRows(ctx, l.killer, fmt.Sprintf(`SELECT ID AS id, USER AS user, HOST AS host, COMMAND AS command, TIME AS time, STATE AS state,
		LEFT(INFO, %d) AS info, CHAR_LENGTH(INFO) AS length, %s AS query FROM information_schema.PROCESSLIST WHERE ID = %d`, judgedLength, queryID, id))
	if err != nil || len(running) == 0 {
		return t, "it has ended", err
	}
	p := running[0]
	if why := neverEnd(p); why != "" {
		return t, why, nil
	}
	for _, look := range l.s.writerLooks() {
		is, err := queryRows(ctx, l.killer, fmt.Sprintf(look.query, id))
		if err != nil {
			return t, "", err
		}
		if len(is) > 0 {
			return t, look.why, nil
		}
	}
	p["info"] = p["info"][:min(len(p["info"]), lookLength)]
	t.Statement, t.kill = statementOf(p), fmt.Sprintf("KILL QUERY %d", id)
	if l.s.version.Flavor == respaldo.MariaDB { // which can say: this statement, and no later one
		t.kill = "KILL QUERY ID " + p["query"]
	}
	return t, "", nil
}

// neverEnd judges by the statement alone.
func neverEnd(p row) string {
	length, _ := strconv.Atoi(p["length"])
	switch {
	case p["command"] != "Query" && p["command"] != "Execute" || p["user"] == "system user" || p["user"] == "event_scheduler":
		return "it is the server's own, replication's or an event's"
	case p["info"] == "":
		return "it has ended"
	case length > judgedLength:
		return "it is too long to be judged"
	case !readsOnly.MatchString(p["info"]) || neverEnded.MatchString(p["info"]):
		return "it is not a read, or not surely"
	}
	return ""
}

// writerLook finds a connection that is more than its statement shows.
type writerLook struct{ query, why string }

// writerLooks are those that the server has. Stored programs show the statement that they
// are at: before 5.7 nothing tells it from one that was sent.
func (s *Server) writerLooks() []writerLook {
	looks := []writerLook{{"SELECT 1 AS yes FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = %d AND trx_rows_modified > 0",
		"its transaction has changed rows"}}
	if s.version.AtLeast(respaldo.MySQL, 5, 7, 2) {
		// The performance schema may be off, or not look at statements: then nobody knows.
		looks = append(looks, writerLook{`SELECT 1 AS yes FROM DUAL WHERE (SELECT MAX(e.NESTING_EVENT_LEVEL) FROM performance_schema.events_statements_current e
			JOIN performance_schema.threads t ON t.THREAD_ID = e.THREAD_ID WHERE t.PROCESSLIST_ID = %d AND e.END_EVENT_ID IS NULL) = 0 IS NOT TRUE`,
			"it is part of a stored program, or the performance schema does not say"})
	}
	if s.version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		looks = append(looks, writerLook{`SELECT 1 AS yes FROM performance_schema.metadata_locks m JOIN performance_schema.threads t ON t.THREAD_ID = m.OWNER_THREAD_ID
			WHERE t.PROCESSLIST_ID = %d AND m.LOCK_STATUS = 'GRANTED' AND m.OBJECT_TYPE = 'TABLE' AND m.LOCK_TYPE NOT IN ('SHARED', 'SHARED_HIGH_PRIO', 'SHARED_READ')`,
			"it holds tables locked for more than reading"})
	}
	return looks
}

// KillGrants are the privileges that an account needs besides Grants to end others' reads.
func KillGrants(v respaldo.Version) []string {
	switch {
	case v.AtLeast(respaldo.MySQL, 8, 0, 0):
		return []string{"GRANT CONNECTION_ADMIN ON *.* TO " + grantee, "GRANT SELECT ON performance_schema.* TO " + grantee}
	case v.AtLeast(respaldo.MySQL, 5, 7, 0):
		return []string{"GRANT SUPER ON *.* TO " + grantee, "GRANT SELECT ON performance_schema.* TO " + grantee}
	case v.AtLeast(respaldo.MariaDB, 10, 5, 2):
		return []string{"GRANT CONNECTION ADMIN ON *.* TO " + grantee}
	}
	return []string{"GRANT SUPER ON *.* TO " + grantee}
}

// explainKill says what it takes to end a statement.
func (s *Server) explainKill(err error, t Statement) error {
	switch errorNumber(err) {
	case errKillDenied, errPrivilegeNeeded, errTableAccessDenied, errAccessDenied, errDBAccessDenied:
		hint := s.asUs(strings.Join(KillGrants(s.version), "; "))
		if s.version.AtLeast(respaldo.MySQL, 8, 0, 16) {
			hint += " (and SYSTEM_USER, where that user has it)"
		}
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("account %q may not end what stands in the way of the lock: %s", s.target.user, t),
			Hint: hint + "; or leave out --kill-blockers", Err: err}
	}
	return s.explain(err, "ending a read that stands in the way of the lock")
}
