package mysql

import (
	"fmt"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// Condition is one of the things that must all hold for an image without a lock to be
// exact. docs/locks.md says what each protects from.
type Condition struct {
	What string `json:"what"` // "sync_binlog = 1"
	OK   bool   `json:"ok"`
	Why  string `json:"why"` // what was found, for people
}

// Coverage is what SQL does not know and whoever asked the volume does: which of the
// server's places the one atomic snapshot will not hold.
type Coverage struct {
	Volume  string // its name, for people
	Outside []respaldo.Place
}

// noLockEngines are those whose rows recovery brings to where the binlog ends, and those
// that keep nothing on disk. All others take a lock, known or not.
var noLockEngines = map[string]bool{"innodb": true, "memory": true, "blackhole": true, "sequence": true, "performance_schema": true}

// Conditions are what an image without a lock depends on, each with its outcome.
func (f *Facts) Conditions() []Condition {
	found := []Condition{f.accountSeesAll(), f.enginesRecover(), f.oneSnapshot(), f.binlogReadable(), f.binlogSynced(), f.redoFlushed()}
	if _, exists := f.Variables["innodb_support_xa"]; exists { // later it cannot be switched off
		found = append(found, f.setting("innodb_support_xa", "ON", "1"))
	}
	if f.redoLogState != "" {
		found = append(found, Condition{"redo log enabled", strings.EqualFold(f.redoLogState, "ON"), "the redo log is " + f.redoLogState})
	}
	found = append(found, f.doublewrite(), f.noPreparedXA())
	if f.Replica {
		found = append(found, f.positionWithoutLock())
	}
	return found
}

// failing is why there must be a lock.
func (f *Facts) failing() (why []string) {
	for _, c := range f.Conditions() {
		if !c.OK {
			why = append(why, c.Why)
		}
	}
	return why
}

// setting demands one of the values of a variable, the first of which has a name.
func (f *Facts) setting(name string, values ...string) Condition {
	have := f.Variables[name]
	c := Condition{What: name + " = " + values[0], Why: name + " is " + firstOf(have, "not known")}
	for _, v := range values {
		c.OK = c.OK || strings.EqualFold(have, v)
	}
	return c
}

func (f *Facts) accountSeesAll() Condition {
	c := Condition{What: "account sees all tables", OK: f.SeesAllTables && f.FilesSeen, Why: "it may SELECT everywhere, and the data directory can be read"}
	switch {
	case !f.SeesAllTables:
		c.Why = "the account may not see every table (" + f.asUs(SelectGrant()) + ")"
	case !f.FilesSeen:
		c.Why = "the data directory cannot be read by us"
	}
	return c
}

func (f *Facts) enginesRecover() Condition {
	var other []string
	tables := 0
	for _, e := range f.Engines {
		if noLockEngines[strings.ToLower(e.Engine)] {
			tables += e.Tables
		} else {
			other = append(other, fmt.Sprintf("%s (%s)", e.Engine, e.names()))
		}
	}
	if len(other) > 0 {
		return Condition{"InnoDB tables only", false, "there are tables of " + strings.Join(other, " and ")}
	}
	return Condition{"InnoDB tables only", true, plural(tables, "table") + ", none of another engine that keeps rows on disk"}
}

func (f *Facts) oneSnapshot() Condition {
	c := Condition{What: "all files in one snapshot"}
	switch {
	case f.Coverage == nil:
		c.Why = "it is not known whether one snapshot holds all files"
	case len(f.Coverage.Outside) > 0:
		var places []string
		for _, p := range f.Coverage.Outside {
			places = append(places, fmt.Sprintf("%s (%s)", p.Path, p.Role))
		}
		c.Why = fmt.Sprintf("a snapshot of %s does not hold %s", f.Coverage.Volume, strings.Join(places, " and "))
	default:
		c.OK, c.Why = true, "data, redo, undo and binlogs are on "+f.Coverage.Volume
	}
	return c
}

// binlogReadable: the image's coordinates are read from its last binlog. Without a binlog
// there are none to be wrong about, under any lock.
func (f *Facts) binlogReadable() Condition {
	c := Condition{What: "binlog can be read"}
	switch engine := f.Variables["binlog_storage_engine"]; {
	case !f.BinlogOn:
		c.OK, c.Why = true, "it is off, so there are no coordinates that could be wrong"
	case f.BinlogEncrypted:
		c.Why = "the binlog is encrypted"
	case engine != "":
		c.Why = "the binlog is kept in " + engine
	default:
		c.OK, c.Why = true, "it is on and not encrypted"
	}
	return c
}

func (f *Facts) binlogSynced() Condition {
	c := f.setting("sync_binlog", "1")
	if !f.BinlogOn {
		c.OK, c.Why = true, "the binlog is off"
	}
	return c
}

// redoFlushed: 3 is MariaDB's for 1 and one flush more. Some flush methods do not flush.
func (f *Facts) redoFlushed() Condition {
	values := []string{"1"}
	if f.Version.Flavor == respaldo.MariaDB {
		values = append(values, "3")
	}
	c := f.setting("innodb_flush_log_at_trx_commit", values...)
	switch method := f.Variables["innodb_flush_method"]; strings.ToLower(method) {
	case "nosync", "littlesync":
		c.OK, c.Why = false, "innodb_flush_method is "+method
	}
	if f.On("debug_no_sync") {
		c.OK, c.Why = false, "debug_no_sync is ON"
	}
	return c
}

// doublewrite: DETECT_ONLY keeps no copy of a torn page, and MariaDB's fast orders no writes.
func (f *Facts) doublewrite() Condition {
	return f.setting("innodb_doublewrite", "ON", "1", "DETECT_AND_RECOVER")
}

func (f *Facts) noPreparedXA() Condition {
	c := Condition{What: "no XA transaction prepared", OK: !f.xaHidden && f.preparedXA == 0, Why: "there is none"}
	switch {
	case f.xaHidden:
		c.Why = "the account may not see XA transactions (" + f.asUs(xaGrant) + ")"
	case f.preparedXA > 0:
		c.Why = "XA RECOVER lists " + plural(f.preparedXA, "prepared XA transaction")
	}
	return c
}
