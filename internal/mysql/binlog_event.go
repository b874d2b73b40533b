package mysql

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/go-mysql-org/go-mysql/replication"
)

const (
	binlogMagic          = "\xfebin"
	encryptedBinlogMagic = "\xfdbin"
	// encryptedBinlogHeader precedes the binlog proper in a file that MySQL encrypts. SHOW
	// BINARY LOGS counts it in the size, a position in such a file does not.
	encryptedBinlogHeader = 512
	eventHeaderSize       = replication.EventHeaderSize
	eventFlags            = 17 // where they are in the header
	checksumSize          = replication.BinlogChecksumLength
	// binlogBuffer is what is read at once. No event that is looked into as a whole is larger.
	binlogBuffer = 1 << 20
	// eventLook is how much of other events is looked at: more than enough for what precedes
	// the statement in a query event.
	eventLook = 128 << 10
)

// errTorn is an event that is not there in full.
var errTorn = errors.New("torn event")

// orTorn makes the end of the file in the middle of something a torn event.
func orTorn(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errTorn
	}
	return err
}

// event is what a scan must know of one.
type event struct {
	kind       replication.EventType
	gtid       gtid
	standalone bool   // MariaDB's GTID of a group without a terminator
	statement  string // the first bytes of a query, upper case
	checkpoint string // MariaDB's: the binlog in which recovery would have to begin
	listed     bool   // it lists the GTIDs of all before its file
	list       gtidSet
}

// housekeeping events belong to the file and change no data.
func (e event) housekeeping() bool {
	switch e.kind {
	case replication.FORMAT_DESCRIPTION_EVENT, replication.PREVIOUS_GTIDS_EVENT, replication.ROTATE_EVENT, replication.STOP_EVENT, replication.HEARTBEAT_EVENT, replication.MARIADB_BINLOG_CHECKPOINT_EVENT, replication.MARIADB_GTID_LIST_EVENT:
		return true
	}
	return false
}

// eventReader reads a binlog's events one after another. go-mysql decodes those that a scan
// needs; its own reader is of no use here, since it holds each event in memory twice, rows
// and all, and its errors do not tell a torn event from a disk that cannot be read.
type eventReader struct {
	r         *bufio.Reader
	pos       int64
	checksums bool
}

// next reads an event, checks it, and stands behind it afterwards. At the end of what is
// whole it returns errTorn.
func (b *eventReader) next() (event, error) {
	start := b.pos
	h, err := b.header()
	if err != nil {
		return event{}, err
	}
	e, wrong, err := b.look(h)
	if err != nil {
		return event{}, err
	}
	intact, err := b.pass(h)
	if err != nil {
		return event{}, err
	}
	if !intact {
		wrong = errors.New("its checksum is wrong")
	}
	if wrong == nil {
		return e, nil
	}
	switch _, err := b.header(); { // a torn one has nothing behind it
	case err == nil:
		return event{}, fmt.Errorf("the event at %d is damaged: %w", start, wrong)
	default:
		return event{}, err
	}
}

// header looks at the next event's.
func (b *eventReader) header() (h replication.EventHeader, err error) {
	head, err := b.r.Peek(eventHeaderSize)
	if err != nil {
		return h, orTorn(err)
	}
	// Zeros at the end of a file, which a crash with sync_binlog=0 leaves, have no size. The
	// end position is 32 bits in files of any size; since MariaDB 11 it is zero for events
	// inside a transaction.
	if h.Decode(head) != nil || h.LogPos != 0 && h.LogPos != uint32(b.pos+int64(h.EventSize)) {
		return h, errTorn
	}
	return h, nil
}

// look decodes what a scan must know of the next event; wrong is why it could not.
func (b *eventReader) look(h replication.EventHeader) (e event, wrong, err error) {
	e.kind = h.EventType
	size := int(min(int64(h.EventSize), eventLook))
	if e.kind == replication.PREVIOUS_GTIDS_EVENT || e.kind == replication.MARIADB_GTID_LIST_EVENT {
		if size = int(h.EventSize); size > binlogBuffer {
			return e, nil, fmt.Errorf("its list of GTIDs is larger than %d bytes", binlogBuffer)
		}
	}
	body, err := b.r.Peek(size)
	if err != nil {
		return e, nil, orTorn(err)
	}
	body = body[eventHeaderSize:]
	if b.checksums && e.kind != replication.FORMAT_DESCRIPTION_EVENT && size == int(h.EventSize) {
		body = body[:max(0, len(body)-checksumSize)]
	}
	return e, b.decode(&e, h.ServerID, body), nil
}

// decode turns go-mysql's panics over what is too short into errors.
func (b *eventReader) decode(e *event, serverID uint32, body []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it cannot be read: %v", r)
		}
	}()
	switch e.kind {
	case replication.FORMAT_DESCRIPTION_EVENT:
		var f replication.FormatDescriptionEvent
		err = f.Decode(body)
		b.checksums = f.ChecksumAlgorithm == replication.BINLOG_CHECKSUM_ALG_CRC32
	case replication.GTID_EVENT:
		var g replication.GTIDEvent
		err = g.Decode(body)
		e.gtid = mysqlGTID(g.SID, "", g.GNO)
	case replication.GTID_TAGGED_LOG_EVENT:
		var g replication.GtidTaggedLogEvent
		err = g.Decode(body)
		e.gtid = mysqlGTID(g.SID, g.Tag, g.GNO)
	case replication.MARIADB_GTID_EVENT:
		var g replication.MariadbGTIDEvent
		err = g.Decode(body)
		g.GTID.ServerID = serverID
		e.gtid, e.standalone = mariaGTID(g.GTID), g.IsStandalone()
	case replication.PREVIOUS_GTIDS_EVENT:
		e.listed = true
		e.list, err = readPreviousGTIDs(body)
	case replication.MARIADB_GTID_LIST_EVENT:
		e.listed = true
		e.list, err = readGTIDList(body)
	case replication.MARIADB_BINLOG_CHECKPOINT_EVENT:
		name := body[4:]
		e.checkpoint = string(name[:binary.LittleEndian.Uint32(body)])
	case replication.QUERY_EVENT:
		var q replication.QueryEvent
		err = q.Decode(body)
		e.statement = strings.ToUpper(string(q.Query[:min(16, len(q.Query))]))
	}
	return err
}

// pass reads over an event and tells whether it is as it was written, where it has a
// checksum to tell by.
func (b *eventReader) pass(h replication.EventHeader) (intact bool, err error) {
	left := int64(h.EventSize)
	b.pos += left
	if !b.checksums {
		for ; left > 0 && err == nil; left -= min(left, 1<<30) {
			_, err = b.r.Discard(int(min(left, 1<<30)))
		}
		return true, orTorn(err)
	}
	var sum uint32
	if h.EventType == replication.FORMAT_DESCRIPTION_EVENT { // its mark "in use" is not covered
		head, err := b.r.Peek(eventHeaderSize)
		if err != nil {
			return false, orTorn(err)
		}
		head = append([]byte(nil), head...)
		binary.LittleEndian.PutUint16(head[eventFlags:], h.Flags&^replication.LOG_EVENT_BINLOG_IN_USE_F)
		sum = crc32.ChecksumIEEE(head)
		b.r.Discard(eventHeaderSize)
		left -= eventHeaderSize
	}
	for left > checksumSize {
		if _, err := b.r.Peek(1); err != nil {
			return false, orTorn(err)
		}
		chunk, _ := b.r.Peek(int(min(left-checksumSize, int64(b.r.Buffered()))))
		sum = crc32.Update(sum, crc32.IEEETable, chunk)
		b.r.Discard(len(chunk))
		left -= int64(len(chunk))
	}
	var stored [checksumSize]byte
	if _, err := io.ReadFull(b.r, stored[:]); err != nil {
		return false, orTorn(err)
	}
	return sum == binary.LittleEndian.Uint32(stored[:]), nil
}
