package mysql

import (
	"bytes"
	"io"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// DumpStream passes on what a dump program writes, and reads its comments as they go by. It
// holds back the last line, "-- Dump completed", until Finish: without it nobody takes what
// was written for a whole dump, whatever happens.
type DumpStream struct {
	to     io.Writer
	mysql  bool // the dump is of MySQL
	report func(respaldo.Progress)
	failed error // of to

	head     []byte // the line that is being read, as far as it is not passed on
	passing  bool   // its beginning has been
	last     []byte // "-- Dump completed", and what follows it
	bytes    int64
	tables   int
	database string
	item     string // the table whose dump was begun last
}

// NewDumpStream passes a dump of such a server on. report, which may be nil, is told how far
// it is.
func NewDumpStream(to io.Writer, server respaldo.Version, report func(respaldo.Progress)) *DumpStream {
	return &DumpStream{to: to, mysql: server.Flavor == respaldo.MySQL, report: report}
}

// Bytes is how much SQL was written.
func (s *DumpStream) Bytes() int64 { return s.bytes }

// Tables is how many tables it holds; views are none.
func (s *DumpStream) Tables() int { return s.tables }

// headLength is how much of a line is looked at: more than any comment has.
const headLength = 1024

func (s *DumpStream) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, ended := rest, false
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			part, ended = rest[:end+1], true
		}
		rest = rest[len(part):]
		var err error
		if s.passing {
			err = s.pass(part)
		} else if s.head = append(s.head, part...); ended || len(s.head) >= headLength {
			err = s.line()
		}
		if err != nil {
			return 0, err
		}
		if ended {
			s.passing = false
		}
	}
	if s.report != nil {
		s.report(respaldo.Progress{Phase: "dump", Done: s.bytes, Item: s.item})
	}
	return len(p), nil
}

var (
	completed = []byte("-- Dump completed")
	// The first line of newer MariaDBs' programs, which only MariaDB's client understands.
	sandbox = [][]byte{[]byte(`/*!999999\- `), []byte(`/*M!999999\- `)}
)

// line decides what becomes of a line, by its beginning.
func (s *DumpStream) line() error {
	head := s.head
	s.head, s.passing = nil, true
	if bytes.HasPrefix(head, completed) || len(s.last) > 0 && len(bytes.TrimSpace(head)) == 0 {
		s.last = append(s.last, head...)
		return nil
	}
	if s.mysql && (bytes.HasPrefix(head, sandbox[0]) || bytes.HasPrefix(head, sandbox[1])) {
		return nil
	}
	if bytes.HasPrefix(head, []byte("-- ")) {
		s.comment(string(bytes.TrimSpace(head[3:])))
	}
	if err := s.flushLast(); err != nil { // it was not the last: it stands in somebody's text
		return err
	}
	return s.pass(head)
}

// comment learns what the dump is at: "Current Database: `shop`", "Table structure for
// table `orders`".
func (s *DumpStream) comment(text string) {
	if name, ok := strings.CutPrefix(text, "Current Database: `"); ok {
		s.database = unquoteName(name)
	}
	if name, ok := strings.CutPrefix(text, "Table structure for table `"); ok {
		s.tables++
		s.item = s.database + "." + unquoteName(name)
	}
}

func (s *DumpStream) flushLast() error {
	last := s.last
	s.last = nil
	return s.pass(last)
}

func (s *DumpStream) pass(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := s.to.Write(p)
	s.bytes += int64(n)
	if err != nil {
		s.failed = err
	}
	return err
}

// begin makes ready for the next run of the program, whose last line takes the place of the
// run's before.
func (s *DumpStream) begin(c dumpCall) error {
	s.last, s.database = nil, c.database
	return s.pass([]byte(c.before))
}

// complete tells whether the program's last line has come, and nothing after it.
func (s *DumpStream) complete() bool {
	return len(s.last) > 0 && len(bytes.TrimSpace(s.head)) == 0 && bytes.HasSuffix(s.last, []byte("\n"))
}

// WriteHead writes in front of what the program will.
func (s *DumpStream) WriteHead(text string) error { return s.pass([]byte(text)) }

// Finish writes the last line: from now on the dump says of itself that it is whole.
func (s *DumpStream) Finish() error { return s.flushLast() }

// quoteName quotes an identifier.
func quoteName(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

func unquoteName(quoted string) string {
	return strings.ReplaceAll(strings.TrimSuffix(quoted, "`"), "``", "`")
}
