package mysql

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// ErrChanged is in the chain of Quiesce's error when DDL since Facts has changed what these
// say of where the tables lie, what keys they need, or which lock they need. What was made
// must be discarded, and the server be looked at anew.
var ErrChanged = errors.New("what was known of the tables no longer holds")

// noTables are statements of ddlCounters that make, move and remove no table.
var noTables = regexp.MustCompile(`^com_((grant|revoke|install|uninstall)(_.*)?|(alter|create|drop|rename)_(user|role|server|function|procedure|trigger|event|view|udf)(_.*)?|analyze|set_password)$`)

// tables looks at all that DDL can change: engines, where tablespaces lie, what is encrypted.
// As of when that is, f.counters tell, which are read before.
func (s *Server) tables(ctx context.Context, q queryer, f *Facts) error {
	var err error
	if f.counters, f.redoLogState, err = status(ctx, q); err != nil {
		return s.explain(err, "reading the server's status")
	}
	if f.ddlRan, err = s.ddlRuns(ctx, q); err != nil { // it is counted already, and not seen yet
		return s.explain(err, "looking at running statements")
	}
	files := lookAtFiles(f.Process.DataDir)
	f.FilesSeen = files.seen
	if err := s.engines(ctx, q, f, files); err != nil {
		return s.explain(err, "reading the list of tables")
	}
	spaces, err := s.tablespaces(ctx, q)
	if err != nil {
		return s.explain(err, "reading the list of tablespaces")
	}
	f.layOut(spaces, files)
	if err := s.encryption(ctx, q, f); err != nil {
		return s.explain(err, "looking for encrypted tables")
	}
	return nil
}

func (s *Server) ddlRuns(ctx context.Context, q queryer) (bool, error) {
	list, err := queryRows(ctx, q, lookStatement)
	return slices.ContainsFunc(list, func(p row) bool { return changesTable.MatchString(p["info"]) || wraps.MatchString(p["info"]) }), err
}

// tablesMoved tells that there was DDL on tables, or may have been, since they were looked at.
func (f *Facts) tablesMoved(counters map[string]int64) bool {
	if f.ddlRan {
		return true
	}
	for name, n := range counters {
		if ddlCounters.MatchString(name) && !noTables.MatchString(name) && f.counters[name] != n {
			return true
		}
	}
	return false
}

// refresh looks at the tables again if there was DDL since, and takes over what may change
// without a new choice. Where there was none it costs two short queries.
func (s *Server) refresh(ctx context.Context, q queryer, f *Facts, mode respaldo.LockMode) error {
	counters, _, err := status(ctx, q)
	if err != nil || !f.tablesMoved(counters) {
		return s.explain(err, "reading the server's status")
	}
	now := *f
	now.Engines, now.Lost, now.Warnings, now.refused, now.EncryptedWhat = nil, nil, nil, nil, nil
	if err := s.tables(ctx, q, &now); err != nil {
		return err
	}
	if what := f.differs(&now, mode); what != "" {
		return &respaldo.Error{Kind: respaldo.LockTimeout, What: "DDL came after the server was looked at: " + what, Err: ErrChanged, Hint: "run again"}
	}
	for name, n := range f.counters {
		if resetCounter.MatchString(name) { // compared with how it was at first
			now.counters[name] = n
		}
	}
	f.takeOver(&now)
	if failing := f.failing(); mode == respaldo.LockNone && len(failing) > 0 {
		return crossed("changed since the server was looked at: %s", strings.Join(failing, "; "))
	}
	return nil
}

// takeOver takes what may change without a new choice.
func (f *Facts) takeOver(now *Facts) {
	f.Engines, f.Lost, f.counters, f.ddlRan = now.Engines, now.Lost, now.counters, now.ddlRan
}

// differs says what has changed of what a backup was planned by.
func (f *Facts) differs(now *Facts, mode respaldo.LockMode) string {
	lies := func(f *Facts, p respaldo.Place) bool {
		return slices.ContainsFunc(f.Layout.Places, func(q respaldo.Place) bool { return p.Role == q.Role && p.Path == q.Path && p.Real == q.Real })
	}
	for _, p := range now.Layout.Places {
		if !lies(f, p) {
			return fmt.Sprintf("%s (%s) is new", p.Path, p.Role)
		}
	}
	for _, p := range f.Layout.Places {
		if !lies(now, p) {
			return fmt.Sprintf("%s (%s) is gone", p.Path, p.Role)
		}
	}
	if now.Encrypted && !f.Encrypted {
		return "there are encrypted tables now"
	}
	if stop, why := lightestStop(now); mode == respaldo.LockBackup && stop != mode {
		return why
	}
	return ""
}
