package mysql

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/go-mysql-org/go-mysql/replication"

	"github.com/respaldo-backup/respaldo"
)

// binlogStatements write groups of every kind, each statement or transaction none or more.
// An empty one ends a file.
func binlogStatements(v respaldo.Version) []string {
	statements := []string{
		"INSERT INTO d.t (v) VALUES (1)",
		"BEGIN; INSERT INTO d.t (v) VALUES (2), (3); SAVEPOINT s; UPDATE d.t SET v = v + 1; ROLLBACK TO s; DELETE FROM d.t WHERE v = 3; COMMIT",
		"CREATE TABLE d.scanned (id INT PRIMARY KEY, v LONGTEXT) ENGINE=InnoDB", "ALTER TABLE d.scanned ADD COLUMN w INT",
		"CREATE TABLE d.plain (id INT PRIMARY KEY, v VARCHAR(20)) ENGINE=MyISAM", "INSERT INTO d.plain VALUES (1, 'a')", "BEGIN; INSERT INTO d.plain VALUES (2, 'b'); ROLLBACK",
		"CREATE USER 'scan'@'localhost'; GRANT SELECT ON d.* TO 'scan'@'localhost'", "CREATE FUNCTION d.begin_it() RETURNS INT DETERMINISTIC RETURN 1",
		"XA START 'x'; INSERT INTO d.scanned (id) VALUES (1); XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'",
		"XA START 'y'; INSERT INTO d.scanned (id) VALUES (2); XA END 'y'; XA PREPARE 'y'", "XA ROLLBACK 'y'",
		"XA START 'z'; INSERT INTO d.scanned (id) VALUES (3); XA END 'z'; XA COMMIT 'z' ONE PHASE",
		"",
		"SET SESSION binlog_format = STATEMENT", "INSERT INTO d.t (v) VALUES (LAST_INSERT_ID())", "SET @x = 7; UPDATE d.t SET v = @x + RAND() LIMIT 1", "INSERT INTO d.plain VALUES (3, 'commit')",
		"SET SESSION binlog_format = ROW", "TRUNCATE d.plain", "DROP TABLE d.plain", "DROP FUNCTION d.begin_it; DROP USER 'scan'@'localhost'",
		"CREATE TEMPORARY TABLE d.short (id INT); DROP TEMPORARY TABLE d.short",
		"", "",
		fmt.Sprintf("INSERT INTO d.scanned (id, v) VALUES (4, REPEAT('x', %d))", 3*binlogBuffer/2),
		"DELETE FROM d.scanned",
		"SET GLOBAL binlog_checksum = NONE", "INSERT INTO d.t (v) VALUES (4)", "SET GLOBAL binlog_checksum = CRC32", "INSERT INTO d.t (v) VALUES (5)",
	}
	switch {
	case v.Flavor == respaldo.MariaDB:
		statements = append(statements, "BEGIN; INSERT INTO d.scanned (id) VALUES (5); INSERT INTO d.t (v) VALUES (6); COMMIT",
			"SET SESSION gtid_domain_id = 5; INSERT INTO d.t (v) VALUES (7)", "", "SET SESSION server_id = 77; INSERT INTO d.t (v) VALUES (8)", "SET SESSION gtid_domain_id = 0; SET SESSION server_id = 1",
			"CREATE TABLE d.chosen SELECT * FROM d.t", "SET GLOBAL log_bin_compress = 1; SET GLOBAL log_bin_compress_min_len = 10",
			"INSERT INTO d.scanned (id, v) VALUES (6, REPEAT('y', 1000))", "SET SESSION binlog_format = STATEMENT; INSERT INTO d.scanned (id, v) VALUES (7, 'a statement that is long enough')",
			"DROP TABLE d.chosen, d.scanned", "SET GLOBAL log_bin_compress = 0; SET SESSION binlog_format = ROW")
	case v.AtLeast(respaldo.MySQL, 8, 3, 0):
		statements = append(statements, "CREATE TABLE d.chosen AS SELECT * FROM d.t",
			"SET SESSION gtid_next = 'AUTOMATIC:nightly'; INSERT INTO d.t (v) VALUES (7)", "CREATE TABLE d.tagged (id INT)", "",
			"INSERT INTO d.t (v) VALUES (8)", "SET SESSION gtid_next = '11111111-2222-3333-4444-555555555555:only:9'; BEGIN; COMMIT", "SET SESSION gtid_next = 'AUTOMATIC'", "", "INSERT INTO d.t (v) VALUES (9)",
			"SET SESSION binlog_transaction_compression = ON; INSERT INTO d.scanned (id, v) VALUES (6, REPEAT('y', 1000))", "SET SESSION binlog_transaction_compression = OFF",
			"SET GLOBAL gtid_mode = ON_PERMISSIVE; SET GLOBAL gtid_mode = OFF_PERMISSIVE", "INSERT INTO d.t (v) VALUES (10)", "CREATE TABLE d.nameless (id INT)",
			"SET GLOBAL gtid_mode = ON_PERMISSIVE; SET GLOBAL gtid_mode = ON", "DROP TABLE d.chosen, d.scanned, d.tagged, d.nameless")
	default:
		statements = append(statements, "DROP TABLE d.scanned")
	}
	return append(statements, "")
}

// testBinlogScan reads what a server has written, cut, continued and damaged in every way,
// and wants to be told what the server itself said.
func testBinlogScan(t *testing.T, b *box) {
	c, server := b.conn(t), b.server(t)
	v := server.Version()
	files, said := map[string][]byte{}, []respaldo.Coordinates{}
	note := func() {
		at, err := readCoordinates(t.Context(), c, v, false)
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, at)
	}
	for _, group := range append([]string{""}, binlogStatements(v)...) {
		if group == "" {
			group = "FLUSH NO_WRITE_TO_BINLOG BINARY LOGS"
		}
		for statement := range strings.SplitSeq(group, ";") {
			if _, err := c.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		note()
	}
	for _, at := range said {
		if files[at.File] == nil {
			content, err := os.ReadFile(b.path("binlogs", at.File))
			if err != nil {
				t.Fatal(err)
			}
			files[at.File] = content
		}
	}
	equal := func(set gtidSet, at respaldo.Coordinates) bool {
		if v.Flavor == respaldo.MariaDB {
			return maps.Equal(byDomain(set.String()), byDomain(at.GTIDSet))
		}
		return set.String() == at.GTIDSet
	}
	scan := func(what string, content ...[]byte) binlogScan {
		found, err := scanBinlog(bytes.NewReader(bytes.Join(content, nil)), 0)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return found
	}
	for n, at := range said {
		whole := files[at.File][:at.Position]
		for what, after := range map[string][]byte{"whole": nil, "zeros": make([]byte, 5000), "half a header": whole[4:12], "half an event": whole[4:40]} {
			if got := scan(at.String()+" and "+what, whole, after); got.End != int64(at.Position) || !equal(got.GTIDs, at) {
				t.Errorf("%s and %s: ends at %d with %s, the server said %s", at, what, got.End, got.GTIDs, at.GTIDSet)
			}
		}
		if n == 0 || said[n-1].File != at.File || said[n-1].Position == at.Position || len(whole) > 1<<20 {
			continue
		}
		// Cut somewhere in what came after the coordinates before it.
		before := said[n-1]
		_, added, err := server.Since(t.Context(), before.GTIDSet, at.GTIDSet)
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range append(cuts(whole, int(before.Position)), len(whole)) {
			got, err := scanBinlog(bytes.NewReader(whole[:cut]), int64(before.Position))
			if err != nil || got.End < int64(before.Position) || got.End > int64(cut) || !got.Boundary {
				t.Errorf("%s cut at %d: %+v, %v; the server had said %s", at, cut, got, err, before)
			}
			if _, more, err := server.Since(t.Context(), before.GTIDSet, got.GTIDs.String()); added > 0 && (err != nil || got.Groups != more || cut == len(whole) && more != added) {
				t.Errorf("%s cut at %d: %d groups with %d GTIDs after those before, the server wrote %d; %v", at, cut, got.Groups, more, added, err)
			}
		}
	}
	last := said[len(said)-2] // its file has events
	whole := bytes.Clone(files[last.File][:last.Position])
	for len(cuts(whole, 4)) == 0 {
		t.Fatal("no events")
	}
	whole[len(whole)-1] ^= 1
	if got := scan("wrong checksum at the end", whole); got.End >= int64(last.Position) {
		t.Errorf("an event whose checksum is wrong was taken for whole: %+v", got)
	}
	whole[len(whole)-1] ^= 1
	whole[4+replication.EventHeaderSize+60] ^= 1 // in the format event
	if got, err := scanBinlog(bytes.NewReader(whole), 0); err == nil || !strings.Contains(err.Error(), "the event at 4 is damaged") {
		t.Errorf("a binlog that is damaged at its beginning ends at %d: %v", got.End, err)
	}
}

// cuts are the ends of events after a position, and places inside of them.
func cuts(content []byte, from int) (at []int) {
	for pos := from; pos < len(content); {
		size := int(binary.LittleEndian.Uint32(content[pos+9:]))
		at = append(at, pos+5, pos+replication.EventHeaderSize, pos+size-1)
		if pos += size; pos < len(content) {
			at = append(at, pos)
		}
	}
	return at
}

// Whatever a file holds, reading it ends, and no later than the file.
func FuzzScanBinlog(f *testing.F) {
	f.Add([]byte(binlogMagic))
	f.Add([]byte(encryptedBinlogMagic))
	for kind := range 170 { // one event of each kind, and nothing in it
		event := make([]byte, 40)
		event[4] = byte(kind)
		binary.LittleEndian.PutUint32(event[9:], uint32(len(event)))
		f.Add(append([]byte(binlogMagic), event...))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		scan, err := scanBinlog(bytes.NewReader(content), 0)
		if scan.End > int64(len(content)) {
			t.Errorf("%d bytes end at %d: %v", len(content), scan.End, err)
		}
	})
}

func TestGTIDSets(t *testing.T) {
	const a, b = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-2222-3333-4444-555555555555"
	for _, c := range []struct{ first, second, want string }{
		{"", a + ":1", a + ":1"},
		{a + ":1-3:5", a + ":4", a + ":1-5"},
		{b + ":7", a + ":1,\n" + b + ":9", a + ":1," + b + ":7:9"},
		{a + ":1-3:tag:1", a + ":tag:2:other:5-6:8", a + ":1-3:other:5-6:8:tag:1-2"},
		{a + ":5-9", a + ":1-20", a + ":1-20"},
	} {
		var set gtidSet
		for _, text := range []string{c.first, c.second} {
			if err := set.addText(text); err != nil {
				t.Error(err)
			}
		}
		if set.String() != c.want {
			t.Errorf("%q and %q make %q", c.first, c.second, set)
		}
	}
	for _, text := range []string{"nobody:1", a + ":1-x"} {
		if new(gtidSet).addText(text) == nil {
			t.Errorf("%q was read", text)
		}
	}
}
