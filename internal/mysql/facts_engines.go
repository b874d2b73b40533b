package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sort"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// systemSchemas hold the server's own tables. Nothing keeps users from making theirs in some.
var systemSchemas = map[string]bool{"mysql": true, "sys": true, "information_schema": true, "performance_schema": true, "ndbinfo": true}

// isServers tells the server's own tables from those that users made among them. Before MySQL
// 8.0 and on MariaDB those of MyISAM and Aria in the schema mysql are watched, whoever made
// them (systemFiles); since then the logs are all that the server has there without transactions.
func (s *Server) isServers(schema, table, engine string) bool {
	engine = strings.ToLower(engine)
	switch strings.ToLower(schema) {
	case "mysql":
		watched := !s.version.AtLeast(respaldo.MySQL, 8, 0, 0) && (engine == "myisam" || engine == "aria")
		return watched || engine == "innodb" || engine == "ndbcluster" || table == "general_log" || table == "slow_log"
	case "sys":
		return table == "sys_config"
	case "ndbinfo":
		return engine == "ndbinfo"
	}
	return false
}

// transactional engines; Aria survives a crash but knows no transactions.
var transactionalEngines = map[string]bool{"innodb": true, "rocksdb": true, "tokudb": true, "ndbcluster": true}

// backupStageEngines are those for which BACKUP STAGE is known to be enough, and those
// that keep nothing on disk.
var backupStageEngines = map[string]bool{
	"innodb": true, "aria": true, "myisam": true, "mrg_myisam": true, "csv": true, "archive": true,
	"memory": true, "blackhole": true, "sequence": true, "federated": true, "spider": true, "performance_schema": true,
}

// lostContents are engines whose rows are not in the data directory.
var lostContents = map[string]string{
	"memory":    "rows of MEMORY tables (%s) live in memory only: they come back empty",
	"federated": "rows of FEDERATED tables (%s) live on another server",
	"spider":    "rows of SPIDER tables (%s) live on other servers",
	"connect":   "rows of CONNECT tables (%s) may live in files or servers elsewhere",
	"s3":        "rows of S3 tables (%s) live in object storage",
}

// engines counts the user tables of each engine. What the account may not see is
// completed from the names of files.
func (s *Server) engines(ctx context.Context, q queryer, f *Facts, files fileLook) error {
	// No column more: others, CREATE_OPTIONS among them, make servers before MySQL 8 open every table.
	rows, err := q.QueryContext(ctx, `SELECT TABLE_SCHEMA, TABLE_NAME, ENGINE FROM information_schema.TABLES
		WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema')`)
	if err != nil {
		return err
	}
	defer rows.Close()
	uses := map[string]*EngineUse{}
	use := func(engine string) *EngineUse {
		key := strings.ToLower(engine)
		if uses[key] == nil {
			uses[key] = &EngineUse{Engine: engine, Transactional: transactionalEngines[key]}
		}
		return uses[key]
	}
	for rows.Next() {
		var schema, table string
		var engine sql.NullString
		if err := rows.Scan(&schema, &table, &engine); err != nil {
			return err
		}
		if s.isServers(schema, table, engine.String) {
			continue
		}
		if !engine.Valid { // a damaged definition, or an engine that is not loaded
			f.Warnings = append(f.Warnings, fmt.Sprintf("the server cannot open table %s.%s", schema, table))
			continue
		}
		u := use(engine.String)
		u.Tables++
		if len(u.Examples) < 3 {
			u.Examples = append(u.Examples, schema+"."+table)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for engine, tables := range files.tables {
		if u := use(engine); u.Tables < len(tables) {
			if f.SeesAllTables && u.Tables == 0 {
				f.Warnings = append(f.Warnings, fmt.Sprintf("files of %s exist whose tables the server does not list (%s)", engine, tables[0]))
			}
			u.Tables = len(tables)
			for _, t := range tables {
				if len(u.Examples) < 3 && !slices.Contains(u.Examples, t) {
					u.Examples = append(u.Examples, t)
				}
			}
		}
	}
	for key, u := range uses {
		sort.Strings(u.Examples)
		f.Engines = append(f.Engines, *u)
		if text := lostContents[key]; text != "" {
			f.Lost = append(f.Lost, fmt.Sprintf(text, u.names()))
		}
	}
	sort.Slice(f.Engines, func(i, j int) bool {
		a, b := f.Engines[i], f.Engines[j]
		return a.Tables > b.Tables || a.Tables == b.Tables && a.Engine < b.Engine
	})
	return nil
}

func (u EngineUse) names() string {
	text := strings.Join(u.Examples, ", ")
	if more := u.Tables - len(u.Examples); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// seesAllTables reads our own grants: only SELECT on *.* that no partial revoke
// narrows shows every table in information_schema.
func (s *Server) seesAllTables(ctx context.Context) (bool, error) {
	query := "SHOW GRANTS"
	if s.version.AtLeast(respaldo.MySQL, 8, 0, 0) {
		roles, err := queryRows(ctx, s.db, "SELECT CURRENT_ROLE() AS roles")
		if err != nil {
			return false, err
		}
		if r := roles[0]["roles"]; r != "" && !strings.EqualFold(r, "NONE") {
			query = "SHOW GRANTS FOR CURRENT_USER() USING " + r // quoted by the server
		}
	}
	grants, err := queryRows(ctx, s.db, query)
	if err != nil {
		return false, err
	}
	sees := false
	for _, g := range grants {
		for _, text := range g {
			if strings.HasPrefix(text, "REVOKE ") {
				return false, nil
			}
			for _, p := range globalPrivileges(text) {
				sees = sees || p == "SELECT" || p == "ALL PRIVILEGES"
			}
		}
	}
	return sees, nil
}
