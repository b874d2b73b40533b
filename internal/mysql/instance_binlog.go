package mysql

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Event types of the binlog format, MySQL's and MariaDB's own.
const (
	queryEvent           = 2
	stopEvent            = 3
	rotateEvent          = 4
	formatEvent          = 15
	xidEvent             = 16
	heartbeatEvent       = 27
	gtidEvent            = 33
	anonymousGTIDEvent   = 34
	previousGTIDsEvent   = 35
	xaPrepareEvent       = 38
	payloadEvent         = 40 // a whole compressed transaction
	taggedGTIDEvent      = 42
	mariaCheckpointEvent = 161
	mariaGTIDEvent       = 162
	mariaGTIDListEvent   = 163
	mariaEncryptionEvent = 164
	mariaQueryCompressed = 165
)

const (
	binlogMagic          = "\xfebin"
	encryptedBinlogMagic = "\xfdbin"
	// encryptedBinlogHeader precedes the binlog proper in a file that MySQL encrypts. SHOW
	// BINARY LOGS counts it in the size, a position in such a file does not.
	encryptedBinlogHeader = 512
	eventHeaderSize       = 19
	// queryHeaderSize is the fixed part of a query event: thread, time, length of the
	// database's name, error code, length of the status variables.
	queryHeaderSize = 13
)

// binlogScan is what reading the event headers of one binlog shows.
type binlogScan struct {
	// End is where the last complete group of events ends, housekeeping events after it
	// included. What comes later in the file is torn: recovery ignores or cuts it off.
	End int64
	// Groups is how many complete groups (transactions, DDL statements) begin at or after
	// the position asked for.
	Groups int
	// Commits is how many of these groups were committed by an engine with two-phase
	// commit, InnoDB in general.
	Commits int
	// Boundary tells that a group or the file's end lies exactly at that position.
	Boundary bool
	// Encrypted files cannot be read; nothing but Header is set.
	Encrypted bool
	// Header is how many bytes precede the position 0.
	Header int64
}

// scanBinlog reads a binlog from its start. It needs no server and no event bodies but
// the beginnings of query events.
func scanBinlog(file io.Reader, from int64) (binlogScan, error) {
	r := bufio.NewReaderSize(file, 1<<20)
	magic := make([]byte, len(binlogMagic))
	if _, err := io.ReadFull(r, magic); orTorn(err) == errTorn {
		return binlogScan{}, nil // created and not yet begun
	} else if err != nil {
		return binlogScan{}, err
	}
	switch string(magic) {
	case encryptedBinlogMagic:
		return binlogScan{Encrypted: true, Header: encryptedBinlogHeader}, nil
	case binlogMagic:
	default:
		return binlogScan{}, fmt.Errorf("not a binlog: it begins with %x", magic)
	}
	scan := binlogScan{End: int64(len(binlogMagic)), Boundary: from == int64(len(binlogMagic))}
	var g group
	for pos, start := scan.End, scan.End; ; {
		e, err := readEvent(r, pos)
		if errors.Is(err, errTorn) {
			return scan, nil
		}
		if err != nil {
			return scan, err
		}
		if e.kind == mariaEncryptionEvent {
			return binlogScan{Encrypted: true}, nil
		}
		pos += e.size
		housekeeping := g.idle() && e.housekeeping()
		if !housekeeping && !g.complete(e) {
			continue
		}
		if !housekeeping && start >= from {
			scan.Groups++
			if e.kind == xidEvent {
				scan.Commits++
			}
		}
		start, scan.End = pos, pos
		scan.Boundary = scan.Boundary || pos == from
	}
}

// errTorn is an event that is not there in full.
var errTorn = errors.New("torn event")

// orTorn makes the end of the file in the middle of something a torn event.
func orTorn(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errTorn
	}
	return err
}

type event struct {
	kind       byte
	size       int64
	standalone bool   // MariaDB's GTID of a group without a terminator
	statement  string // the first bytes of a query, upper case
}

// housekeeping events belong to the file and change no data.
func (e event) housekeeping() bool {
	switch e.kind {
	case formatEvent, previousGTIDsEvent, rotateEvent, stopEvent, heartbeatEvent, mariaCheckpointEvent, mariaGTIDListEvent:
		return true
	}
	return false
}

func readEvent(r *bufio.Reader, pos int64) (event, error) {
	header, err := r.Peek(eventHeaderSize)
	if err != nil {
		return event{}, orTorn(err)
	}
	e := event{kind: header[4], size: int64(binary.LittleEndian.Uint32(header[9:]))}
	end := binary.LittleEndian.Uint32(header[13:])
	// The end position is 32 bits in files of any size; since MariaDB 11 it is zero for
	// events inside a transaction. Zeros at the end of a file, which a crash with
	// sync_binlog=0 leaves, have no size either.
	if e.size < eventHeaderSize || end != 0 && end != uint32(pos+e.size) {
		return event{}, errTorn
	}
	// The beginning of the body, as far as it tells groups apart.
	peek, err := r.Peek(int(min(e.size, 64<<10)))
	if err != nil {
		return event{}, orTorn(err)
	}
	e.look(peek[eventHeaderSize:])
	for left := e.size; left > 0; {
		n, err := r.Discard(int(min(left, 1<<30)))
		if err != nil {
			return event{}, orTorn(err)
		}
		left -= int64(n)
	}
	return e, nil
}

func (e *event) look(body []byte) {
	switch e.kind {
	case mariaGTIDEvent: // sequence 8, domain 4, flags 1
		e.standalone = len(body) > 12 && body[12]&1 != 0
	case queryEvent:
		if len(body) < queryHeaderSize {
			return
		}
		at := queryHeaderSize + int(binary.LittleEndian.Uint16(body[11:])) + int(body[8]) + 1
		if at < len(body) {
			e.statement = strings.ToUpper(string(body[at:min(at+16, len(body))]))
		}
	}
}

// group follows the events of one group.
type group struct {
	begun      bool // a GTID, or an event that belongs to the next statement, was seen
	open       bool // inside BEGIN or XA START
	standalone bool
}

func (g *group) idle() bool { return !g.begun && !g.open }

// complete takes the next event and tells whether it ends the group.
func (g *group) complete(e event) bool {
	ends := false
	switch e.kind {
	case gtidEvent, anonymousGTIDEvent, taggedGTIDEvent:
	case mariaGTIDEvent:
		g.standalone = e.standalone
		// Without a standalone flag the GTID itself stands for BEGIN.
		g.open = !e.standalone
	case xidEvent, xaPrepareEvent, payloadEvent:
		ends = true
	case queryEvent, mariaQueryCompressed:
		switch word := e.statement; { // a checksum may follow it
		case g.standalone:
			ends = true
		case strings.HasPrefix(word, "BEGIN"), strings.HasPrefix(word, "XA START"):
			g.open = true
		case strings.HasPrefix(word, "COMMIT"), strings.HasPrefix(word, "XA COMMIT"), strings.HasPrefix(word, "XA ROLLBACK"),
			strings.HasPrefix(word, "ROLLBACK") && !strings.HasPrefix(word, "ROLLBACK TO"):
			ends = true
		default:
			ends = !g.open
		}
	}
	g.begun = true
	if ends {
		*g = group{}
	}
	return ends
}
