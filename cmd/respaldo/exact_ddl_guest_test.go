//go:build guest

package main

import "fmt"

// exactLasts is for how many of its rounds a writer leaves what it has made alone.
const exactLasts = 3

// define executes statements that are transactions of their own: one that found a deadlock,
// or a lock that was not to be had, is tried again, since those after it build on it.
func (w *exactWriter) define(statements ...string) error {
	for _, q := range statements {
		err := w.exec(q)
		for err != nil && givenUp(err) {
			err = w.exec(q)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// definitions takes one table after the other through its life: each call is one statement
// or a few, the sequence begins anew after the last.
func (w *exactWriter) definitions() error {
	if w.n == 1 {
		return w.define("CREATE DATABASE "+w.name, "CREATE TABLE "+w.name+".parent (id INT PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO "+w.name+".parent VALUES (1), (2), (3)",
			"CREATE TABLE "+w.name+".one (i INT) ENGINE=InnoDB", "CREATE TABLE "+w.name+".two (i INT, j INT) ENGINE=InnoDB")
	}
	at, steps := w.n-2, len(w.tableLife(0))
	return w.define(w.tableLife(at / steps)[at%steps]...)
}

// tableLife is what happens to the tables of the k-th round, step by step.
func (w *exactWriter) tableLife(k int) [][]string {
	d := w.name
	t := fmt.Sprintf("%s.t%d", d, k)
	p, e, v := fmt.Sprintf("%s.p%d", d, k), fmt.Sprintf("%s.e%d", d, k), fmt.Sprintf("%s.v%d", d, k)
	fill := "INSERT INTO " + t + " (v, n) VALUES ('a', 1), ('b', 2), ('c', 3), ('d', 4)"
	selected := []string{"INSERT INTO " + d + ".one (i) VALUES (1)"}
	if !w.strict { // two statements for the binlog, which 5.6 refuses
		selected = []string{fmt.Sprintf("CREATE TABLE %s.s%d ENGINE=InnoDB AS SELECT id, v, n FROM %s", d, k, t)}
	}
	replaced := []string{fmt.Sprintf("DROP TABLE IF EXISTS %s.s%d", d, k)}
	if w.mariaDB {
		replaced = []string{fmt.Sprintf("CREATE OR REPLACE TABLE %s.s%d (i INT PRIMARY KEY, k INT) ENGINE=InnoDB", d, k), fmt.Sprintf("INSERT INTO %s.s%d VALUES (1, 1)", d, k)}
	}
	var goes, last []string
	if old := k - exactLasts; old >= 0 {
		goes = []string{fmt.Sprintf("DROP VIEW %s.v%d", d, old), fmt.Sprintf("DROP TABLE IF EXISTS %[1]s.p%[2]d, %[1]s.e%[2]d, %[1]s.s%[2]d", d, old)}
		last = []string{fmt.Sprintf("DROP TABLE %s.t%dl", d, old), fmt.Sprintf("DROP TABLE %s.t%d", d, old)}
	}
	return [][]string{
		{"CREATE TABLE " + t + " (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(100), n INT) ENGINE=InnoDB"},
		{fill, fill},
		{fmt.Sprintf("ALTER TABLE %s ADD COLUMN c INT NOT NULL DEFAULT %d", t, k)}, // instant where there is such a thing
		{"INSERT INTO " + t + " (v, n, c) SELECT v, n, c + 1 FROM " + t},
		{"ALTER TABLE " + t + " MODIFY v VARCHAR(150), ALGORITHM=COPY"},
		{"CREATE INDEX by_v ON " + t + " (v)", "ALTER TABLE " + t + " DROP INDEX by_v, ADD INDEX by_n (n), ALGORITHM=INPLACE"},
		{"ALTER TABLE " + t + " FORCE"},
		{"RENAME TABLE " + t + " TO " + t + "x", "RENAME TABLE " + t + "x TO " + t},
		{fmt.Sprintf("RENAME TABLE %[1]s.one TO %[1]s.between, %[1]s.two TO %[1]s.one, %[1]s.between TO %[1]s.two", d)},
		selected,
		{"CREATE TABLE " + p + " (i INT, v VARCHAR(20)) ENGINE=InnoDB PARTITION BY RANGE (i) (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20))",
			"INSERT INTO " + p + " VALUES (1, 'low'), (11, 'high'), (12, 'high')"},
		{"CREATE TABLE " + e + " (i INT, v VARCHAR(20)) ENGINE=InnoDB", "INSERT INTO " + e + " VALUES (5, 'comes')",
			"ALTER TABLE " + p + " EXCHANGE PARTITION p0 WITH TABLE " + e},
		{"ALTER TABLE " + p + " ADD PARTITION (PARTITION p2 VALUES LESS THAN (30))", "ALTER TABLE " + p + " TRUNCATE PARTITION p1"},
		{"CREATE VIEW " + v + " AS SELECT id, v FROM " + t, fmt.Sprintf("CREATE OR REPLACE VIEW %s AS SELECT id, n, %d AS k FROM %s", v, k, t)},
		{"ALTER TABLE " + t + " ADD COLUMN parent INT", fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT fk%d FOREIGN KEY (parent) REFERENCES %s.parent (id)", t, k, d),
			"UPDATE " + t + " SET parent = 1 + id % 3"},
		{"CREATE TABLE " + t + "l LIKE " + t, "INSERT INTO " + t + "l SELECT * FROM " + t + " WHERE n < 3", "TRUNCATE TABLE " + t + "l"},
		{fmt.Sprintf("CREATE TEMPORARY TABLE %s.scratch (i INT) ENGINE=InnoDB", d), fmt.Sprintf("INSERT INTO %s.scratch VALUES (1), (2)", d),
			fmt.Sprintf("INSERT INTO %s (v, n) SELECT 'temporary', i FROM %s.scratch", t, d), fmt.Sprintf("DROP TEMPORARY TABLE %s.scratch", d)},
		{fmt.Sprintf("ALTER TABLE bank.entries ADD INDEX added%d (target)", k), fmt.Sprintf("ALTER TABLE bank.entries DROP INDEX added%d", k)}, // where others write
		replaced,
		{"OPTIMIZE TABLE " + t + "l", "ALTER TABLE " + t + " DROP COLUMN c"},
		goes,
		last,
	}
}

// administration makes and drops databases, routines, triggers, events, and accounts.
func (w *exactWriter) administration() error {
	if w.n == 1 {
		return w.define("CREATE DATABASE "+w.name, "CREATE TABLE "+w.name+".watched (i INT PRIMARY KEY AUTO_INCREMENT, k INT) ENGINE=InnoDB")
	}
	at := w.n - 2
	k, d := at/8, w.name
	old := k - exactLasts
	db, user, gone := fmt.Sprintf("%sx%d", d, k), fmt.Sprintf("'%s%d'@'localhost'", d, k), fmt.Sprintf("'%s%d'@'localhost'", d, old)
	switch at % 8 {
	case 0:
		return w.define("CREATE DATABASE "+db, "CREATE TABLE "+db+".t (i INT PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO "+db+".t VALUES (1), (2)",
			"ALTER DATABASE "+db+" DEFAULT CHARACTER SET latin1")
	case 1:
		return w.define(fmt.Sprintf("CREATE PROCEDURE %s.p%d(IN a INT) BEGIN INSERT INTO %[1]s.watched (k) VALUES (a); END", d, k),
			fmt.Sprintf("CREATE FUNCTION %s.f%d(a INT) RETURNS INT DETERMINISTIC RETURN a + %[2]d", d, k))
	case 2:
		return w.define(fmt.Sprintf("CALL %s.p%d(%[2]d)", d, k), fmt.Sprintf("INSERT INTO %s.watched (k) SELECT %[1]s.f%d(1)", d, k))
	case 3:
		return w.define(fmt.Sprintf("CREATE TRIGGER %s.r%d BEFORE INSERT ON %s.t FOR EACH ROW SET NEW.i = NEW.i + %[2]d", db, k, db), "INSERT INTO "+db+".t VALUES (100)",
			fmt.Sprintf("CREATE EVENT %s.e%d ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 00:00:00' DO DELETE FROM %[1]s.watched", d, k))
	case 4:
		return w.define("CREATE USER "+user+" IDENTIFIED BY 'first'", fmt.Sprintf("GRANT SELECT, INSERT ON %s.* TO %s", d, user))
	case 5:
		return w.define(fmt.Sprintf("GRANT UPDATE (k) ON %s.watched TO %s", d, user), fmt.Sprintf("REVOKE INSERT ON %s.* FROM %s", d, user),
			fmt.Sprintf("GRANT EXECUTE ON PROCEDURE %s.p%d TO %s", d, k, user))
	case 6:
		if old < 0 {
			return nil
		}
		return w.define("DROP USER "+gone, fmt.Sprintf("DROP EVENT %s.e%d", d, old), fmt.Sprintf("DROP FUNCTION %s.f%d", d, old), fmt.Sprintf("DROP PROCEDURE %s.p%d", d, old))
	}
	if old < 0 {
		return nil
	}
	if gone := fmt.Sprintf("%sx%d", d, old); old%2 == 0 {
		return w.define(fmt.Sprintf("DROP TRIGGER %s.r%d", gone, old), "DROP TABLE "+gone+".t", "DROP DATABASE "+gone)
	}
	return w.define(fmt.Sprintf("DROP DATABASE %sx%d", d, old))
}
