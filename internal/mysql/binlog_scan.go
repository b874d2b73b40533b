package mysql

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-mysql-org/go-mysql/replication"
)

// binlogScan is what reading one binlog shows.
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
	// GTIDs are those of the file's complete groups, whatever position was asked for; and,
	// where it begins with a list of them (Listed), those of all groups before it.
	GTIDs  gtidSet
	Listed bool
	// Checkpoint is the binlog in which MariaDB's recovery would begin; empty elsewhere.
	Checkpoint string
}

// begun tells that the file has more than its first four bytes.
func (s binlogScan) begun() bool { return s.Encrypted || s.End > int64(len(binlogMagic)) }

// scanBinlog reads a binlog from its start, and needs no server. A file that ends in zeros
// or in the middle of something ends with the last group before that; one that is damaged
// and goes on behind the damage is an error, for nobody can tell what it has lost.
func scanBinlog(file io.Reader, from int64) (binlogScan, error) {
	r := bufio.NewReaderSize(file, binlogBuffer)
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
	events := eventReader{r: r, pos: scan.End}
	var g group
	for start := scan.End; ; {
		e, err := events.next()
		if errors.Is(err, errTorn) {
			return scan, nil
		}
		if err != nil {
			return scan, err
		}
		if e.kind == replication.MARIADB_START_ENCRYPTION_EVENT {
			return binlogScan{Encrypted: true}, nil
		}
		if e.checkpoint != "" {
			scan.Checkpoint = e.checkpoint
		}
		if e.listed {
			scan.GTIDs, scan.Listed = e.list, true
		}
		housekeeping := g.idle() && e.housekeeping()
		if !housekeeping && !g.complete(e) {
			continue
		}
		if !housekeeping {
			scan.GTIDs.add(g.gtid)
			if start >= from {
				scan.Groups++
				if e.kind == replication.XID_EVENT {
					scan.Commits++
				}
			}
			g = group{}
		}
		start, scan.End = events.pos, events.pos
		scan.Boundary = scan.Boundary || events.pos == from
	}
}

// group follows the events of one group.
type group struct {
	begun      bool // a GTID, or an event that belongs to the next statement, was seen
	open       bool // inside BEGIN or XA START
	standalone bool
	gtid       gtid
}

func (g *group) idle() bool { return !g.begun && !g.open }

// complete takes the next event and tells whether it ends the group.
func (g *group) complete(e event) bool {
	ends := false
	switch e.kind {
	case replication.GTID_EVENT, replication.ANONYMOUS_GTID_EVENT, replication.GTID_TAGGED_LOG_EVENT:
		g.gtid = e.gtid
	case replication.MARIADB_GTID_EVENT:
		g.gtid = e.gtid
		g.standalone = e.standalone
		// Without a standalone flag the GTID itself stands for BEGIN.
		g.open = !e.standalone
	case replication.XID_EVENT, replication.XA_PREPARE_LOG_EVENT, replication.TRANSACTION_PAYLOAD_EVENT:
		ends = true
	case replication.QUERY_EVENT, replication.MARIADB_QUERY_COMPRESSED_EVENT:
		switch word := e.statement; {
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
	return ends
}
