package mysql

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// richOrigin is a stopped server with all that a dump must bring over.
func richOrigin(t *testing.T, name string) *origin {
	t.Helper()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o := &origin{name: name}
	t.Cleanup(func() { os.RemoveAll(o.dir) })
	if err := o.begin(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.server.Kill() })
	statements := []string{
		"SET GLOBAL log_bin_trust_function_creators=ON",
		"CREATE DATABASE shop DEFAULT CHARACTER SET utf8mb4",
		"CREATE DATABASE `odd ``name`",
		"CREATE TABLE `odd ``name`.`a table` (id INT PRIMARY KEY, note TEXT) ENGINE=InnoDB",
		"INSERT INTO `odd ``name`.`a table` VALUES (1, '-- Dump completed on 2020-01-01\n-- Dump completed\n')",
		"CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200), picture LONGBLOB, at TIMESTAMP NULL, d DOUBLE, KEY (note)) ENGINE=InnoDB",
		"CREATE TABLE shop.second (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200), FOREIGN KEY (id) REFERENCES shop.orders (id)) ENGINE=InnoDB",
		"CREATE TABLE shop.old (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200), KEY (note)) ENGINE=MyISAM",
		"INSERT INTO shop.orders VALUES (1, 'ñandú 🦤', x'00FF27220A5C', '2026-03-29 01:30:00', 0.1), (2, NULL, NULL, NULL, 1e300), (3, 'it''s', REPEAT('x', 700000), NULL, NULL)",
		"INSERT INTO shop.second SELECT id, note FROM shop.orders",
		"INSERT INTO shop.old (note) VALUES ('a'), ('b'), ('c')",
		"CREATE VIEW shop.all_orders AS SELECT id, note FROM shop.orders",
		"CREATE DEFINER=nobody@nowhere SQL SECURITY DEFINER VIEW shop.orphan AS SELECT id FROM shop.orders",
		"CREATE FUNCTION shop.answer() RETURNS INT DETERMINISTIC RETURN 42",
		"CREATE PROCEDURE shop.listed() BEGIN\nSELECT 1;\n-- Dump completed on purpose\nSELECT 2;\nEND",
		"USE shop",
		"CREATE TRIGGER shout BEFORE INSERT ON old FOR EACH ROW SET NEW.note = UPPER(NEW.note)",
		"CREATE EVENT shop.nightly ON SCHEDULE EVERY 1 DAY STARTS '2026-01-01 03:00:00' DO DELETE FROM shop.old WHERE id < 0",
		"CREATE USER app@localhost IDENTIFIED BY 'secret'",
		"GRANT SELECT, INSERT ON shop.* TO app@localhost",
	}
	if name != "mysql-5.6" {
		statements = append(statements, "CREATE TABLE shop.derived (a INT PRIMARY KEY, b INT GENERATED ALWAYS AS (a + 1) STORED, c INT GENERATED ALWAYS AS (a + 2) VIRTUAL)",
			"INSERT INTO shop.derived (a) VALUES (1), (2)")
	}
	if strings.HasPrefix(name, "mariadb") {
		statements = append(statements, "CREATE SEQUENCE shop.numbers START WITH 100", "DO NEXTVAL(shop.numbers)",
			"CREATE TABLE shop.aria (id INT PRIMARY KEY) ENGINE=Aria", "INSERT INTO shop.aria VALUES (7)",
			"CREATE ROLE clerk", "GRANT SELECT ON shop.orders TO clerk", "GRANT clerk TO app@localhost")
	}
	conn, err := o.db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, s := range append([]string{"SET NAMES utf8mb4", "SET time_zone='+00:00'"}, statements...) {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	conn.Close()
	if o.clean, err = o.seen(ctx); err != nil {
		t.Fatal(err)
	}
	o.crashed = o.clean
	fresh := o.server.Open() // in no database
	o.clean.rows = contentOf(t, fresh)
	fresh.Close()
	o.db.Close()
	if err := errors.Join(o.server.Stop(), o.copy(&o.clean, "clean")); err != nil {
		t.Fatal(err)
	}
	return o
}

// contentOf is all that must be the same after a dump and its loading.
func contentOf(t *testing.T, db *sql.DB) string {
	t.Helper()
	var all strings.Builder
	note := func(q string) {
		rows, err := queryRows(t.Context(), db, q)
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		for _, row := range rows {
			for _, column := range []string{"table", "checksum", "view", "create view", "create function", "create procedure", "create event", "sql original statement", "grants", "a", "b", "c"} {
				for name, value := range row {
					if name == column || column == "grants" && strings.HasPrefix(name, "grants for") {
						fmt.Fprintf(&all, "%s ", value)
					}
				}
			}
			all.WriteString("\n")
		}
	}
	tables, err := queryRows(t.Context(), db, "SELECT CONCAT('`', REPLACE(table_schema,'`','``'), '`.`', table_name, '`') AS a FROM information_schema.tables WHERE table_type='BASE TABLE' AND table_schema IN ('shop', 'odd `name') ORDER BY 1")
	if err != nil || len(tables) < 4 {
		t.Fatalf("%v, %v", tables, err)
	}
	for _, table := range tables {
		note("CHECKSUM TABLE " + table["a"])
	}
	for _, q := range []string{"SHOW CREATE VIEW shop.all_orders", "SHOW CREATE VIEW shop.orphan", "SHOW CREATE FUNCTION shop.answer", "SHOW CREATE PROCEDURE shop.listed",
		"SHOW CREATE EVENT shop.nightly", "SHOW CREATE TRIGGER shop.shout", "SHOW GRANTS FOR app@localhost", "SELECT COUNT(*) AS a FROM mysql.user",
		"SELECT note AS a, d AS b, HEX(LEFT(picture, 20)) AS c FROM shop.orders ORDER BY id"} {
		note(q)
	}
	var version string
	if err := db.QueryRow("SELECT @@version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(version, "MariaDB") {
		note("SELECT next_not_cached_value AS a FROM shop.numbers")
		note("SHOW GRANTS FOR clerk")
	}
	return all.String()
}

func startForDump(t *testing.T, r InstanceRequest) *Instance {
	t.Helper()
	if err := os.Mkdir(r.Scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	i, err := StartForDump(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		i.end(ctx)
	})
	return i
}

func dumpTool(t *testing.T, o *origin) DumpTool {
	t.Helper()
	r := DumpToolRequest{Server: o.clean.manifest.Version, Beside: o.clean.manifest.Binary}
	if o.name == "mysql-5.6" { // has none of its own
		r.Path = servers.Binary(o.name, "mysqldump")
	}
	tool, err := FindDumpTool(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

func dumped(t *testing.T, i *Instance, tool DumpTool, scope DumpScope) (string, error) {
	t.Helper()
	var out bytes.Buffer
	s := NewDumpStream(&out, i.request.Manifest.Version, nil)
	err := i.Dump(t.Context(), tool, scope, s)
	if strings.Contains(lastLine(out.String()), "Dump completed") {
		t.Error("it calls itself completed before it is")
	}
	if err == nil {
		err = s.Finish()
	}
	return out.String(), err
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// load has the server's own client read the dump.
func load(t *testing.T, name string, r *servers.Running, text string, args ...string) {
	t.Helper()
	argv := append([]string{"--no-defaults", "-uroot", "-S" + r.Spec().Socket, "--default-character-set=utf8mb4", "--max-allowed-packet=64M", "--comments"}, args...)
	if strings.HasPrefix(name, "mariadb") {
		argv = append(argv, "--skip-ssl")
	}
	cmd := exec.Command(servers.Binary(name, "mysql"), argv...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("loading: %v\n%s", err, out)
	}
}

func emptyServer(t *testing.T, o *origin) *servers.Running {
	t.Helper()
	data := filepath.Join(o.dir, "loaded")
	if err := servers.Init(t.Context(), o.name, data); err != nil {
		t.Fatal(err)
	}
	r, err := servers.Start(t.Context(), servers.Spec{Name: o.name, DataDir: data, Log: filepath.Join(o.dir, "loaded.log"), Args: o.args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Kill() })
	return r
}

// What is dumped from a private server is what the origin had, of every kind of object, on
// every version.
func TestDumpBringsEverythingOver(t *testing.T) {
	t.Parallel()
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := richOrigin(t, name)
			i := startForDump(t, o.clean.request(t))
			if inexact, err := i.Inexact(t.Context()); err != nil || inexact != "" {
				t.Errorf("inexact: %q, %v", inexact, err)
			}
			tool := dumpTool(t, o)
			all, err := dumped(t, i, tool, DumpScope{})
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(all, "respaldo-") {
				t.Error("our own account is in it")
			}
			if !strings.HasPrefix(lastLine(all), "-- Dump completed") {
				t.Errorf("it ends with %q", lastLine(all))
			}
			target := emptyServer(t, o)
			load(t, name, target, all)
			db := target.Open()
			defer db.Close()
			if now := contentOf(t, db); now != o.clean.rows {
				t.Error("loaded differs from the origin:\n" + differences(o.clean.rows, now))
			}
			o.partsOfIt(t, i, tool, target, db)
			stopInstance(t, i)
		})
	}
}

// differences are the lines that two texts do not have in common.
func differences(want, got string) string {
	var all strings.Builder
	for _, side := range []struct{ mark, text, other string }{{"-", want, got}, {"+", got, want}} {
		for line := range strings.Lines(side.text) {
			if !strings.Contains(side.other, line) {
				all.WriteString(side.mark + line)
			}
		}
	}
	return all.String()
}

// partsOfIt: databases and tables by name, the tables of one database into another.
func (o *origin) partsOfIt(t *testing.T, i *Instance, tool DumpTool, target *servers.Running, db *sql.DB) {
	t.Helper()
	count := func(q string) (n int) {
		if err := db.QueryRow(q).Scan(&n); err != nil {
			t.Errorf("%s: %v", q, err)
		}
		return n
	}
	text, err := dumped(t, i, tool, DumpScope{Databases: []string{"odd `name"}})
	if err != nil || strings.Contains(text, "`orders`") || strings.Contains(text, "mysql") && strings.Contains(text, "Database: `mysql`") {
		t.Errorf("one database: %v\n%.300s", err, text)
	}
	if _, err := db.Exec("DROP DATABASE `odd ``name`"); err != nil {
		t.Fatal(err)
	}
	load(t, o.name, target, text)
	if count("SELECT COUNT(*) FROM `odd ``name`.`a table`") != 1 {
		t.Error("the database did not come back")
	}
	if text, err = dumped(t, i, tool, DumpScope{Tables: []DumpTable{{"shop", "old"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE DATABASE elsewhere"); err != nil {
		t.Fatal(err)
	}
	load(t, o.name, target, text, "elsewhere")
	if count("SELECT COUNT(*) FROM elsewhere.old") != 3 || count("SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema='elsewhere'") != 1 {
		t.Error("one table, into another database: rows or trigger are missing")
	}
	if text, err = dumped(t, i, tool, DumpScope{Tables: []DumpTable{{"shop", "orders"}, {"odd `name", "a table"}}}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text, "\n-- Dump completed"); n != 1 {
		t.Errorf("two runs made one dump with %d last lines", n)
	}
	for _, q := range []string{"DROP DATABASE `odd ``name`", "DELETE FROM shop.second", "DELETE FROM shop.orders"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	load(t, o.name, target, text)
	if count("SELECT COUNT(*) FROM shop.orders") != 3 || count("SELECT COUNT(*) FROM `odd ``name`.`a table`") != 1 {
		t.Error("tables of two databases did not come back")
	}
	for _, q := range []string{"CREATE TABLE shop.gone (id INT)", "CREATE VIEW shop.invalid AS SELECT id FROM shop.gone", "DROP TABLE shop.gone"} {
		if _, err := i.DB().Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	scope := DumpScope{Databases: []string{"shop"}}
	if _, err := dumped(t, i, tool, scope); err == nil || !strings.Contains(err.Error(), "shop.invalid") || !strings.Contains(strings.Join(respaldo.HintsOf(err), " "), "--without") {
		t.Errorf("a view of a table that is gone: %v", err)
	}
	scope.Without = []DumpTable{{"shop", "invalid"}, {"shop", "old"}}
	if text, err = dumped(t, i, tool, scope); err != nil || strings.Contains(text, "TABLE `old`") || !strings.Contains(text, "TABLE `orders`") {
		t.Errorf("without that view, and a table: %v", err)
	}
	if _, err := dumped(t, i, tool, DumpScope{Databases: []string{"nonsense"}}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a database that does not exist: %v", err)
	}
}

// A table that cannot be read fails the dump, by its name, and is not repaired on the way.
func TestDumpOfADamagedTableFails(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-10.11", "mysql-5.6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r := o.clean.request(t)
			r.Manifest.Quiesced.Coordinates = o.earlier
			if err := os.Truncate(filepath.Join(r.Dirs[o.data], "shop/old.MYD"), 7); err != nil {
				t.Fatal(err)
			}
			i := startForDump(t, r)
			if inexact, err := i.Inexact(t.Context()); err != nil || !strings.Contains(inexact, "later") {
				t.Errorf("after the coordinates: %q, %v", inexact, err)
			}
			text, err := dumped(t, i, dumpTool(t, o), DumpScope{Databases: []string{"shop"}})
			if respaldo.KindOf(err) != respaldo.Failed || !strings.Contains(err.Error(), "old") {
				t.Errorf("error %v", err)
			}
			if strings.Contains(text, "Dump completed") {
				t.Error("it calls itself completed")
			}
		})
	}
}
