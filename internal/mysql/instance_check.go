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
	// sampleTables and sampleBytes bound a quick check of the users' tables: it is to
	// take seconds.
	sampleTables = 32
	sampleBytes  = 1 << 30
)

// table is one that CHECK TABLE can read.
type table struct {
	schema, name string
	bytes        int64
	system       bool
}

func (t table) String() string { return t.schema + "." + t.name }

func (t table) quoted() string {
	quote := func(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }
	return quote(t.schema) + "." + quote(t.name)
}

// Check runs CHECK TABLE: on every table (ProveFull), or on all system tables and a sample
// of the others (ProveQuick), spread over the sorted names and starting elsewhere for each
// image, so that a series of backups sees more of them. Views have no data, MEMORY tables
// lost theirs, and log tables are not data: they do not count. A server that dies over a
// table is a problem of that table, and the check ends there.
func (i *Instance) Check(ctx context.Context, level respaldo.ProveLevel) (tables, total int, problems []string, err error) {
	all, err := i.tables(ctx)
	if err != nil {
		return 0, 0, nil, err
	}
	chosen := all
	statement := "CHECK TABLE %s"
	if level == respaldo.ProveQuick {
		chosen = sample(all, i.request.Manifest.Taken)
		statement += " QUICK"
	}
	conn, err := i.db.Conn(ctx)
	if err != nil {
		return 0, len(all), nil, i.asking("a connection", err)
	}
	defer conn.Close()
	for _, t := range chosen {
		checked, found, err := checkTable(ctx, conn, t, fmt.Sprintf(statement, t.quoted()))
		if err != nil {
			if ctx.Err() != nil {
				return tables, len(all), problems, context.Cause(ctx)
			}
			if died := i.diedOver(err); died != "" {
				return tables, len(all), append(problems, fmt.Sprintf("%s: the server ended while checking it: %s", t, died)), nil
			}
			found = []string{fmt.Sprintf("%s: %v", t, err)}
		}
		if checked {
			tables++
		}
		problems = append(problems, found...)
	}
	return tables, len(all), problems, nil
}

// diedOver waits for a server whose connection broke, and returns its last words; "" if it
// lives on.
func (i *Instance) diedOver(err error) string {
	if !isConnectionLoss(err) {
		return ""
	}
	select {
	case <-i.exited:
		return i.lastWords()
	case <-time.After(stopTimeout): // a server that writes its stack trace takes a while
		return ""
	}
}

// tables lists what can be checked, system tables first, by name.
func (i *Instance) tables(ctx context.Context) ([]table, error) {
	rows, err := i.db.QueryContext(ctx, `
		SELECT TABLE_SCHEMA, TABLE_NAME, COALESCE(ENGINE, ''), COALESCE(DATA_LENGTH, 0) + COALESCE(INDEX_LENGTH, 0)
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
		if err := rows.Scan(&t.schema, &t.name, &engine, &t.bytes); err != nil {
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

// checkable tells whether CHECK TABLE says something about an engine's files. A table
// without an engine is one that the server could not open: it will say why.
func checkable(engine string) bool {
	switch strings.ToLower(engine) {
	case "", "innodb", "myisam", "aria", "archive", "csv", "rocksdb":
		return true
	}
	return false
}

// sample takes all system tables and up to sampleTables others, of at most sampleBytes.
func sample(all []table, taken time.Time) []table {
	users := slices.IndexFunc(all, func(t table) bool { return !t.system })
	if users < 0 {
		return all
	}
	chosen, others := slices.Clone(all[:users]), all[users:]
	step := max(1, (len(others)+sampleTables-1)/sampleTables)
	start := int(uint64(taken.UnixNano())>>10) % len(others)
	bytes := int64(0)
	for n := 0; n < len(others); n += step {
		t := others[(start+n)%len(others)]
		if bytes+t.bytes > sampleBytes {
			continue
		}
		bytes += t.bytes
		chosen = append(chosen, t)
	}
	return chosen
}

// checkTable returns what CHECK TABLE has against a table, and whether it could check it.
func checkTable(ctx context.Context, conn *sql.Conn, t table, statement string) (checked bool, problems []string, err error) {
	rows, err := conn.QueryContext(ctx, statement)
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

// wantsUpgrade: tables written by an older version say so whatever their state.
func wantsUpgrade(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "upgrade required") || strings.Contains(text, "please do \"alter table") || strings.Contains(text, "rebuild required")
}

// isConnectionLoss tells a broken connection from a statement that the server refused.
func isConnectionLoss(err error) bool {
	return !errors.As(err, new(*driver.MySQLError))
}
