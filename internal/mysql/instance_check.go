package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo"
)

const (
	// sampleTables and sampleBytes bound a quick check of the users' tables, which is to
	// take seconds.
	sampleTables = 32
	sampleBytes  = 1 << 30
)

// Checked is what CHECK TABLE said.
type Checked struct {
	Tables, Total int // looked at, and to be looked at
	Problems      []string
	NotChecked    []string // tables that the instance cannot open for want of a plugin
}

// table is one that CHECK TABLE can read.
type table struct {
	schema, name string
	system       bool
}

func (t table) String() string { return t.schema + "." + t.name }

func (t table) quoted() string {
	quote := func(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }
	return quote(t.schema) + "." + quote(t.name)
}

// Check runs CHECK TABLE: on every table (ProveFull), or on all system tables and a sample
// of the others (ProveQuick), spread over the sorted names and starting elsewhere for each
// image, so that a series of backups sees more of them; tables that are too large for a
// quick look are left out. Views have no data, MEMORY tables lost theirs, and log tables
// are not data: they do not count. A server that dies over a table is a problem of that
// table, and the check ends there. An engine or a parser plugin that the instance does not
// load is the fault of neither the table nor the image.
func (i *Instance) Check(ctx context.Context, level respaldo.ProveLevel) (seen Checked, err error) {
	all, err := i.tables(ctx)
	if err != nil {
		return seen, err
	}
	seen.Total = len(all)
	conn, err := i.db.Conn(ctx)
	if err != nil {
		return seen, i.asking("a connection", err)
	}
	defer conn.Close()
	c, chosen := checker{conn: conn}, all
	if level == respaldo.ProveQuick {
		c.quick, c.room = true, sampleBytes
		chosen = sample(all, i.request.Manifest.Taken)
	}
	for _, t := range chosen {
		checked, found, err := c.check(ctx, t)
		if err != nil {
			if ctx.Err() != nil {
				return seen, context.Cause(ctx)
			}
			if words, died := i.diedOver(err); died {
				seen.Problems = append(seen.Problems, fmt.Sprintf("%s: the server ended while checking it: %s", t, words))
				return seen, nil
			}
			found = []string{fmt.Sprintf("%s: %v", t, err)}
		}
		if n := slices.IndexFunc(found, lacksPlugin); n >= 0 {
			seen.NotChecked = append(seen.NotChecked, found[n])
			continue
		}
		if checked {
			seen.Tables++
		}
		seen.Problems = append(seen.Problems, found...)
	}
	return seen, nil
}

// diedOver tells whether a statement failed because the server died, which may take it a
// while when it writes a stack trace, and what it said last.
func (i *Instance) diedOver(err error) (words string, died bool) {
	if errors.As(err, new(*driver.MySQLError)) { // refused by a server that lives
		return "", false
	}
	select {
	case <-i.exited:
		return i.lastWords(), true
	case <-time.After(stopTimeout):
		return "", false
	}
}

// tables lists what can be checked, system tables first, by name.
func (i *Instance) tables(ctx context.Context) ([]table, error) {
	rows, err := i.db.QueryContext(ctx, `
		SELECT TABLE_SCHEMA, TABLE_NAME, COALESCE(ENGINE, '')
		FROM information_schema.TABLES
		WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE')
		  AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema')`)
	if err != nil {
		return nil, i.asking("its tables", err)
	}
	defer rows.Close()
	var all []table
	for rows.Next() {
		var t table
		var engine string
		if err := rows.Scan(&t.schema, &t.name, &engine); err != nil {
			return nil, i.asking("its tables", err)
		}
		t.system = t.schema == "mysql" || t.schema == "sys"
		if checkable(engine) && !(t.schema == "mysql" && (t.name == "general_log" || t.name == "slow_log")) {
			all = append(all, t)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, i.asking("its tables", err)
	}
	slices.SortFunc(all, func(a, b table) int {
		if a.system != b.system {
			if a.system {
				return -1
			}
			return 1
		}
		return strings.Compare(a.String(), b.String())
	})
	return all, nil
}

// checkable tells whether an engine has files of its own. A table without an engine is one
// that the server could not open: it will say why.
func checkable(engine string) bool {
	switch strings.ToLower(engine) {
	case "memory", "mrg_myisam", "blackhole", "performance_schema":
		return false
	}
	return true
}

// sample takes all system tables and up to sampleTables others.
func sample(all []table, taken time.Time) []table {
	users := slices.IndexFunc(all, func(t table) bool { return !t.system })
	if users < 0 {
		return all
	}
	chosen, others := slices.Clone(all[:users]), all[users:]
	step := max(1, (len(others)+sampleTables-1)/sampleTables)
	// Multiplied by the golden ratio: backups an hour apart differ as much as any.
	start := int(uint64(taken.UnixNano()) * 0x9e3779b97f4a7c15 >> 33 % uint64(len(others)))
	for n := 0; n < len(others); n += step {
		chosen = append(chosen, others[(start+n)%len(others)])
	}
	return chosen
}

// checker checks tables over one connection.
type checker struct {
	conn  *sql.Conn
	quick bool
	room  int64 // bytes of users' tables that may still be read in a quick check
}

// check returns what CHECK TABLE has against a table, and whether it could check it.
func (c *checker) check(ctx context.Context, t table) (checked bool, problems []string, err error) {
	statement := "CHECK TABLE " + t.quoted()
	if c.quick {
		statement += " QUICK"
		if !t.system {
			// Asked for one table at a time: the server opens it for that, and if it dies
			// we know over which.
			var size int64
			err := c.conn.QueryRowContext(ctx, `SELECT COALESCE(DATA_LENGTH, 0) + COALESCE(INDEX_LENGTH, 0)
				FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?`, t.schema, t.name).Scan(&size)
			if err != nil {
				return false, nil, err
			}
			if size > c.room {
				return false, nil, nil
			}
			c.room -= size
		}
	}
	rows, err := c.conn.QueryContext(ctx, statement)
	if err != nil {
		return false, nil, err
	}
	defer rows.Close()
	checked = true
	for rows.Next() {
		var name, op, kind, text string
		if err := rows.Scan(&name, &op, &kind, &text); err != nil {
			return false, nil, err
		}
		switch strings.ToLower(kind) {
		case "note": // "The storage engine for the table doesn't support check"
			checked = false
		case "status":
			if text != "OK" && text != "Table is already up to date" && !wantsUpgrade(text) {
				problems = append(problems, fmt.Sprintf("%s: %s", t, text))
			}
		case "error":
			if wantsUpgrade(text) {
				checked = false // the origin says the same of it
				continue
			}
			problems = append(problems, fmt.Sprintf("%s: %s", t, text))
		}
	}
	return checked, problems, rows.Err()
}

// lacksPlugin: errors 1286 and 1524, which CHECK TABLE tells without their numbers.
func lacksPlugin(problem string) bool {
	return strings.Contains(problem, "Unknown storage engine '") || strings.Contains(problem, "Plugin '") && strings.Contains(problem, "' is not loaded")
}

// wantsUpgrade: tables written by an older version say so whatever their state.
func wantsUpgrade(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "upgrade required") || strings.Contains(text, "please do \"alter table") || strings.Contains(text, "rebuild required")
}
