package mysql

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

func version(t *testing.T, text string) respaldo.Version {
	t.Helper()
	v, err := respaldo.ParseVersion(text, "")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Dump programs say what they are in many ways, and an old or foreign one will not do.
func TestDumpProgramsAreJudged(t *testing.T) {
	for _, c := range []struct{ said, is, fits, unfit string }{
		{"mysqldump  Ver 10.13 Distrib 5.7.20, for linux-glibc2.12 (x86_64)", "mysqldump 5.7.20", "5.6.24 5.7.44", "8.0.36 10.5.23-MariaDB"},
		{"mysqldump  Ver 8.0.36-28 for Linux on x86_64 (Percona Server (GPL), Release 28)", "mysqldump 8.0.36", "5.7.44 8.0.41", "8.4.0 9.7.4 11.8.9-MariaDB"},
		{"mysqldump  Ver 9.7.4-2 for Linux on x86_64 ((Debian))", "mysqldump 9.7.4", "5.6.24 8.0.36 9.7.0", "10.11.19-MariaDB"},
		{"mysqldump  Ver 10.19 Distrib 10.5.23-MariaDB, for debian-linux-gnu (x86_64)", "mariadb-dump 10.5.23", "10.5.9-MariaDB 5.6.24 5.7.44", "10.11.19-MariaDB 8.0.36"},
		{"/usr/bin/mariadb-dump from 11.8.9-MariaDB, client 10.20 for debian-linux-gnu (x86_64)", "mariadb-dump 11.8.9", "10.5.9-MariaDB 11.8.1-MariaDB 5.7.44", "5.6.24 12.1.0-MariaDB 9.7.4"},
		{"mydumper 0.10.0, built against MySQL 10.11.14", "mydumper 0.10.0", "5.6.24 8.0.36 10.11.19-MariaDB", "8.4.0 9.7.4"},
		{"mydumper v0.19.1-1, built against MySQL 8.4.4 with SSL support", "mydumper 0.19.1", "9.7.4 11.8.9-MariaDB", ""},
	} {
		tool, err := parseDumpTool(c.said)
		if err != nil || tool.String() != c.is {
			t.Errorf("%q is %s, %v", c.said, tool, err)
		}
		for _, v := range strings.Fields(c.fits) {
			if err := tool.fits(version(t, v)); err != nil {
				t.Errorf("%s for %s: %v", tool, v, err)
			}
		}
		for _, v := range strings.Fields(c.unfit) {
			if tool.fits(version(t, v)) == nil {
				t.Errorf("%s is to dump %s", tool, v)
			}
		}
	}
	if _, err := parseDumpTool("sh: not found"); err == nil {
		t.Error("what says nothing is taken for a dump program")
	}
}

// The server's own program comes first, then what the PATH has; what is refused is named.
func TestDumpProgramIsFound(t *testing.T) {
	dir := t.TempDir()
	put := func(path, says string) string {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("PATH", dir+"/path:/usr/bin:/bin")
	old := put("path/mysqldump", "mysqldump  Ver 8.0.36 for Linux on x86_64 (GPL)")
	r := DumpToolRequest{Server: version(t, "8.4.3"), Beside: respaldo.Binary{Argv: []string{dir + "/opt/sbin/mysqld"}}}
	if _, err := FindDumpTool(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), "older") {
		t.Errorf("an older one alone: %v", err)
	}
	own := put("opt/bin/mysqldump", "mysqldump  Ver 8.4.3 for Linux on x86_64 (GPL)")
	if tool, err := FindDumpTool(t.Context(), r); err != nil || tool.Program.Argv[0] != own {
		t.Errorf("%v, %v", tool.Program, err)
	}
	r.Path = old
	if _, err := FindDumpTool(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("the older one, by name: %v", err)
	}
	r = DumpToolRequest{Server: version(t, "5.7.44")}
	put("path/mariadb-dump", "mariadb-dump from 11.8.9-MariaDB, client 10.20 for debian-linux-gnu (x86_64)")
	if tool, err := FindDumpTool(t.Context(), r); err != nil || tool.Program.Argv[0] != old {
		t.Errorf("of both flavors, the other was taken: %v, %v", tool.Program, err)
	}
	r.Tool = ToolMydumper
	if _, err := FindDumpTool(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no mydumper") {
		t.Errorf("mydumper, which is not there: %v", err)
	}
}

func TestDumpHead(t *testing.T) {
	m := respaldo.Manifest{Server: "main", Host: "db1", Taken: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	m.Quiesced.Coordinates = respaldo.Coordinates{File: "binlog.000007", Position: 4711, GTIDSet: "0-1-42"}
	for _, c := range []struct {
		version string
		lines   []string
	}{
		{"10.11.19-MariaDB", []string{"-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.000007', MASTER_LOG_POS=4711;", "-- SET GLOBAL gtid_slave_pos='0-1-42';", "-- CHANGE MASTER 'up' TO MASTER_HOST='o''hara', MASTER_PORT=3306, MASTER_LOG_FILE='b.1', MASTER_LOG_POS=9;",
			"-- SET GLOBAL gtid_slave_pos='0-9-9';\n-- CHANGE MASTER 'by GTID' TO MASTER_HOST='db2', MASTER_PORT=3307, MASTER_USE_GTID=slave_pos;"}},
		{"5.7.44", []string{"-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.000007', MASTER_LOG_POS=4711;", "-- SET @@GLOBAL.gtid_purged='0-1-42';", "-- CHANGE MASTER TO MASTER_AUTO_POSITION=1;"}},
		{"9.7.4", []string{"-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='binlog.000007', SOURCE_LOG_POS=4711;", "-- CHANGE REPLICATION SOURCE TO SOURCE_AUTO_POSITION=1;",
			"-- CHANGE REPLICATION SOURCE TO SOURCE_HOST='o''hara', SOURCE_PORT=3306, SOURCE_LOG_FILE='b.1', SOURCE_LOG_POS=9 FOR CHANNEL 'up';",
			"-- SET @@GLOBAL.gtid_purged='0-9-9';\n-- CHANGE REPLICATION SOURCE TO SOURCE_HOST='db2', SOURCE_PORT=3307, SOURCE_AUTO_POSITION=1 FOR CHANNEL 'by GTID';"}},
	} {
		m.Version = version(t, c.version)
		m.Quiesced.Coordinates.Upstream = []respaldo.Upstream{{Channel: "up", Host: "o'hara", Port: 3306, File: "b.1", Position: 9},
			{Channel: "by GTID", Host: "db2", Port: 3307, GTIDSet: "0-9-9"}, {Host: "never-asked", Port: 3308}}
		head := DumpHead(m, "a name\nDROP DATABASE shop", "1.0", "")
		for _, line := range c.lines {
			if !strings.Contains(head, line+"\n") {
				t.Errorf("%s lacks %s in\n%s", c.version, line, head)
			}
		}
		if strings.Contains(head, "never-asked") {
			t.Errorf("%s: a source from which nobody knows the position:\n%s", c.version, head)
		}
		for line := range strings.Lines(head) {
			if line != "\n" && !strings.HasPrefix(line, "--") {
				t.Errorf("no comment: %q", line)
			}
		}
	}
	if head := DumpHead(m, "now", "1.0", "not exact: it lies elsewhere"); strings.Contains(head, "CHANGE") || !strings.Contains(head, "lies elsewhere") {
		t.Errorf("with coordinates that are wrong:\n%s", head)
	}
	m.Quiesced.Coordinates = respaldo.Coordinates{}
	if head := DumpHead(m, "now", "1.0", ""); strings.Contains(head, "CHANGE") || !strings.Contains(head, "no binlogs") {
		t.Errorf("without binlogs:\n%s", head)
	}
}

// However the bytes arrive, what passes is the same, and the last line waits.
func TestDumpStream(t *testing.T) {
	long := "INSERT INTO t VALUES ('" + strings.Repeat("x", 3*headLength) + "');\n"
	text := "/*M!999999\\- enable the sandbox mode */ \n-- MySQL dump\n\n-- Current Database: `shop`\n\n-- Table structure for table `od``d`\n" + long +
		"-- Dump completed in somebody's text\n\nSELECT 1;\n\n-- Dump completed on 2026-01-01\n"
	last := "-- Dump completed on 2026-01-01\n"
	for _, size := range []int{1, 7, 1000, len(text)} {
		for _, v := range []string{"5.7.44", "11.8.9-MariaDB"} {
			want := text
			if v == "5.7.44" { // whose client knows no sandbox
				want = text[strings.Index(text, "\n")+1:]
			}
			var out bytes.Buffer
			var at respaldo.Progress
			s := NewDumpStream(&out, version(t, v), func(p respaldo.Progress) { at = p })
			for rest := text; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				if n, err := s.Write([]byte(rest[:min(size, len(rest))])); err != nil || n != min(size, len(rest)) {
					t.Fatal(n, err)
				}
			}
			if out.String()+last != want {
				t.Fatalf("in pieces of %d, %s: %q passed", size, v, out.String())
			}
			if !s.complete() || s.Tables() != 1 || at.Item != "shop.od`d" {
				t.Errorf("complete %v, %d tables, at %q", s.complete(), s.Tables(), at.Item)
			}
			if err := s.Finish(); err != nil || out.String() != want || s.Bytes() != int64(len(want)) {
				t.Errorf("finished: %v, %d of %d bytes", err, s.Bytes(), len(want))
			}
		}
	}
	s := NewDumpStream(&bytes.Buffer{}, version(t, "5.7.44"), nil)
	s.Write([]byte("-- Dump completed on 2026-01-01\nINSERT"))
	if s.complete() {
		t.Error("half a line more, and it is complete")
	}
}

func TestMydumpersCoordinatesAreTheImages(t *testing.T) {
	at := respaldo.Coordinates{File: "binlog.000007", Position: 4711, GTIDSet: "0-1-42"}
	for _, c := range []struct{ text, want string }{
		{"Started dump at: 2026\nSHOW MASTER STATUS:\n\tLog: x.000001\n\tPos: 4\n\tGTID:\n\nSHOW SLAVE STATUS:\n\tHost: up\n\tLog: u.1\n\tPos: 9\n\tGTID:\n\nFinished dump at: 2026\n",
			"Started dump at: 2026\nSHOW MASTER STATUS:\n\tLog: binlog.000007\n\tPos: 4711\n\tGTID:0-1-42\n\nSHOW SLAVE STATUS:\n\tHost: up\n\tLog: u.1\n\tPos: 9\n\tGTID:\n\nFinished dump at: 2026\n"},
		{"[config]\nquote-character = BACKTICK\n[source]\n# Channel_Name = ''\nFile = x.000001\nPosition = 4\nExecuted_Gtid_Set = u:1\n[`a`.`File`]\nFile = 1\n",
			"[config]\nquote-character = BACKTICK\n[source]\n# Channel_Name = ''\nFile = binlog.000007\nPosition = 4711\nExecuted_Gtid_Set = 0-1-42\n[`a`.`File`]\nFile = 1\n"},
	} {
		if got := withCoordinates(c.text, at); got != c.want {
			t.Errorf("got\n%s", got)
		}
	}
}
