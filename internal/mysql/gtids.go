package mysql

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/uuid"
)

// gtidSource is who numbers MySQL's GTIDs: a server, and since 8.3 a tag in addition.
type gtidSource struct {
	server uuid.UUID
	tag    string
}

// gtid is one of MySQL's or one of MariaDB's. The zero gtid is none.
type gtid struct {
	source gtidSource
	number int64
	maria  gomysql.MariadbGTID
}

func mysqlGTID(server []byte, tag string, number int64) gtid {
	return gtid{source: gtidSource{uuid.UUID(server), tag}, number: number}
}

func mariaGTID(g gomysql.MariadbGTID) gtid { return gtid{maria: g} }

// gtidSet is what a binlog says has been executed: on MySQL every GTID, on MariaDB the
// last one of each domain, whatever its number. The zero set is empty.
//
// go-mysql has sets of its own, but they know no tags.
type gtidSet struct {
	executed map[gtidSource]gomysql.IntervalSlice
	last     map[uint32]gomysql.MariadbGTID
}

func (s *gtidSet) add(g gtid) {
	switch {
	case g.maria.SequenceNumber != 0:
		if s.last == nil {
			s.last = map[uint32]gomysql.MariadbGTID{}
		}
		s.last[g.maria.DomainID] = g.maria
	case g.number != 0:
		s.addRange(g.source, g.number, g.number+1)
	}
}

// addRange adds the numbers from start to before stop.
func (s *gtidSet) addRange(source gtidSource, start, stop int64) {
	if s.executed == nil {
		s.executed = map[gtidSource]gomysql.IntervalSlice{}
	}
	intervals := s.executed[source]
	intervals.InsertInterval(gomysql.Interval{Start: start, Stop: stop})
	s.executed[source] = intervals
}

// addText adds a MySQL set as the server writes it: "uuid:1-5:7:tag:3,uuid:1".
func (s *gtidSet) addText(set string) error {
	for part := range strings.SplitSeq(oneLine(set), ",") {
		if part == "" {
			continue
		}
		words := strings.Split(part, ":")
		server, err := uuid.Parse(words[0])
		if err != nil {
			return fmt.Errorf("reading GTID set %q: %w", set, err)
		}
		source := gtidSource{server: server}
		for _, word := range words[1:] {
			first, last, isRange := strings.Cut(word, "-")
			start, err := strconv.ParseInt(first, 10, 64)
			if err != nil { // a tag begins with a letter
				source.tag = word
				continue
			}
			stop := start
			if isRange {
				if stop, err = strconv.ParseInt(last, 10, 64); err != nil {
					return fmt.Errorf("reading GTID set %q: %w", set, err)
				}
			}
			s.addRange(source, start, stop+1)
		}
	}
	return nil
}

// String is the set as the server writes it, on one line.
func (s gtidSet) String() string {
	var parts []string
	for _, domain := range slices.Sorted(maps.Keys(s.last)) {
		g := s.last[domain]
		parts = append(parts, g.String())
	}
	if len(parts) > 0 {
		return strings.Join(parts, ",")
	}
	sources := slices.SortedFunc(maps.Keys(s.executed), func(a, b gtidSource) int {
		if c := strings.Compare(string(a.server[:]), string(b.server[:])); c != 0 {
			return c
		}
		return strings.Compare(a.tag, b.tag)
	})
	var text strings.Builder
	for i, source := range sources {
		if i == 0 || source.server != sources[i-1].server {
			if i > 0 {
				text.WriteByte(',')
			}
			text.WriteString(source.server.String())
		}
		if source.tag != "" {
			text.WriteString(":" + source.tag)
		}
		for _, interval := range s.executed[source] {
			text.WriteString(":" + interval.String())
		}
	}
	return text.String()
}

// readPreviousGTIDs reads the list at the head of MySQL's binlogs. go-mysql v1.13.0 does
// not get it right: it drops the UUID of a server all of whose GTIDs have tags, and counts
// intervals in 16 bits.
func readPreviousGTIDs(body []byte) (set gtidSet, err error) {
	short := errors.New("its list of GTIDs is cut off")
	next := func(n int) (part []byte) {
		if n > len(body) {
			err, body = short, nil
			return make([]byte, n)
		}
		part, body = body[:n], body[n:]
		return part
	}
	number := func() uint64 { return binary.LittleEndian.Uint64(next(8)) }
	sources := number()
	tagged := sources>>56 == 1 // the format is in the first and the last byte then
	if tagged {
		sources = sources << 8 >> 16
	}
	for ; sources > 0 && err == nil; sources-- {
		source := gtidSource{server: uuid.UUID(next(16))}
		if tagged {
			source.tag = string(next(int(next(1)[0] >> 1)))
		}
		for intervals := number(); intervals > 0 && err == nil; intervals-- {
			start, stop := int64(number()), int64(number())
			if err == nil {
				set.addRange(source, start, stop)
			}
		}
	}
	return set, err
}

// readGTIDList reads the list at the head of MariaDB's binlogs: the last of every server in
// every domain, and of each domain the newest last.
func readGTIDList(body []byte) (set gtidSet, err error) {
	const perGTID = 16
	if len(body) < 4 || int64(binary.LittleEndian.Uint32(body)&(1<<28-1)) > int64(len(body)/perGTID) {
		return set, errors.New("its list of GTIDs is cut off")
	}
	var list replication.MariadbGTIDListEvent
	if err := list.Decode(body); err != nil {
		return set, err
	}
	for _, g := range list.GTIDs {
		set.add(mariaGTID(g))
	}
	return set, nil
}
