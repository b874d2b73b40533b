package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"time"

	driver "github.com/go-sql-driver/mysql"

	respaldo "github.com/respaldo-backup/respaldo"
)

// How long an applier may take to stop: it ends the statement, or the change of rows, that it
// is at. Nobody waits for us meanwhile, and it goes on applying.
const stopPatience = 10 * time.Second

// How long starting the appliers again may take before that is called a failure.
const resumePatience = 15 * time.Second

// pauseMargin is what stopping the appliers and looking at them may take, besides the
// waiting for the lock and holding it. When all that is used up, the server starts them itself.
const pauseMargin = 5 * time.Second

// NotePause is told that the appliers of these channels are about to be stopped: it calls
// pause, and remembers resume, which may be called more than once.
type NotePause func(channels []string, pause func() error, resume func(context.Context) error) error

// QuiesceReplica is Quiesce for a server that may be a replica. Its appliers stand still
// around fn where its position in its source's binlog would not be exact otherwise, or they
// and the lock might wait for each other. Nobody's writes wait for that, and they run again
// as soon as the lock is gone, whatever happens.
//
// The upstream is among the coordinates that it returns, unless the image alone can tell it:
// it is empty then, and so may it be in those that fn gets.
func (s *Server) QuiesceReplica(ctx context.Context, req QuiesceRequest, note NotePause, fn func(context.Context, respaldo.Coordinates) error) (q respaldo.Quiesced, err error) {
	if req.Facts == nil || !req.Facts.Replica {
		return s.Quiesce(ctx, req, fn)
	}
	pausing := req.Facts.pausing(req.Mode)
	p := newStandstill(s)
	defer func() { // also when fn panics
		if failed := p.resume(ctx); failed != nil {
			err = errors.Join(err, failed)
		}
	}()
	if before := req.BeforeLock; pausing {
		req.BeforeLock = func() (err error) { // perhaps more than once
			if !p.begun {
				p.begun = true
				err = p.noted(req.Facts.applying(), note, func() error { return p.begin(ctx, req.Patience+req.Budget+pauseMargin) })
			}
			if err == nil && before != nil {
				err = before()
			}
			return err
		}
		req.released = func() error {
			broken := p.unbroken(ctx)
			return errors.Join(broken, p.resume(ctx))
		}
	}
	var at []respaldo.Upstream
	q, err = s.Quiesce(ctx, req, func(ctx context.Context, coordinates respaldo.Coordinates) error {
		err := fn(ctx, coordinates)
		if err == nil && !pausing && req.Mode != respaldo.LockNone {
			// Now, under the lock still: the server may tell of a transaction a moment later
			// than it was committed.
			at, err = readUpstream(ctx, s.db, s.version)
		}
		return err
	})
	switch {
	case err != nil:
		return q, err
	case pausing:
		q.Coordinates.Upstream = p.at
		return q, nil
	}
	q.Coordinates.Upstream = req.Facts.judgeUpstream(req.Mode, at)
	return q, nil
}

// standstill is a replica whose appliers stand still, until resume. Should we die before, or the
// time given be up, the server starts them by itself.
//
// That is the doing of guards: for each applier a session that waits for a user lock of
// ours (GET_LOCK), and has the statement that starts the applier behind it, in the same
// packet. The end of our own session gives the lock up, whatever ended it.
type standstill struct {
	s        *Server
	begun    bool
	channels []string // whose appliers were stopped
	at       []respaldo.Upstream

	lock     string
	holder   *sql.Conn // holds the lock, and stops the appliers
	raw      net.Conn
	guards   map[string]chan error // by channel
	patience time.Duration         // for a STOP
	closers  []func()
}

func newStandstill(s *Server) *standstill {
	return &standstill{s: s, guards: map[string]chan error{}, patience: stopPatience}
}

// noted has somebody note what is about to be stopped. Where nothing runs, begin only sees
// that it stays so.
func (p *standstill) noted(channels []string, note NotePause, begin func() error) error {
	if len(channels) == 0 {
		return begin()
	}
	return note(channels, begin, p.resume)
}

// begin stops the appliers that run, for no longer than limit. They finish what they are at,
// so that every transaction is applied as a whole and their position is that of the data. An
// applier that does not stop in time is a LockTimeout. resume must follow in any case.
func (p *standstill) begin(ctx context.Context, limit time.Duration) error {
	channels, err := queryRows(ctx, p.s.db, replicaStatusStatement(p.s.version))
	if err != nil {
		return p.s.explain(err, "reading the replica's status")
	}
	for _, a := range appliersOf(channels) {
		if a.Running {
			p.channels = append(p.channels, a.Channel)
		}
	}
	if len(p.channels) > 0 {
		if err := p.guard(ctx, limit); err != nil {
			return p.s.explain(err, "preparing to stop the replica's applier")
		}
		if err := p.stop(ctx); err != nil {
			return err
		}
	}
	p.at, err = p.look(ctx)
	return err
}

// guard opens the sessions that start the appliers again, before anything is stopped.
func (p *standstill) guard(ctx context.Context, limit time.Duration) (err error) {
	var id uint64
	if p.holder, p.raw, err = p.open(ctx, &id); err != nil {
		return err
	}
	p.lock = fmt.Sprintf("respaldo-%d", id)
	seconds := int(math.Ceil(limit.Seconds()))
	for _, statement := range []string{
		fmt.Sprintf("DO GET_LOCK('%s', 0)", p.lock),
		fmt.Sprintf("SET SESSION wait_timeout = %d", seconds+1), // it is idle meanwhile
	} {
		if _, err := p.holder.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	for _, channel := range p.channels {
		session, _, err := p.open(ctx, &id)
		if err != nil {
			return err
		}
		// The first statement's result tells that the server has the others, too.
		rows, err := session.QueryContext(context.WithoutCancel(ctx), fmt.Sprintf("SELECT 1; DO GET_LOCK('%[1]s', %d); %s; DO RELEASE_LOCK('%[1]s')",
			p.lock, seconds, applierStatement(p.s.version, "START", channel)))
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		done := make(chan error, 1)
		p.guards[channel] = done
		go func() {
			for rows.NextResultSet() {
			}
			done <- errors.Join(rows.Err(), rows.Close())
		}()
	}
	return nil
}

// open opens a session in which statements take as long as they take.
func (p *standstill) open(ctx context.Context, id *uint64) (*sql.Conn, net.Conn, error) {
	conn, raw, closeConn, err := p.s.open(ctx, func(c *driver.Config) { c.MultiStatements = true })
	if err != nil {
		return nil, nil, err
	}
	p.closers = append(p.closers, closeConn)
	if p.s.version.Flavor == respaldo.MariaDB {
		if _, err := conn.ExecContext(ctx, "SET SESSION max_statement_time = 0"); err != nil {
			return nil, nil, err
		}
	}
	return conn, raw, conn.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(id)
}

// applierStatement is START or STOP of one channel's applier, in the server's dialect.
func applierStatement(v respaldo.Version, verb, channel string) string {
	switch {
	case v.Flavor == respaldo.MariaDB:
		return verb + " SLAVE " + quoteText(channel) + " SQL_THREAD"
	case v.AtLeast(respaldo.MySQL, 8, 0, 22):
		return verb + " REPLICA SQL_THREAD FOR CHANNEL " + quoteText(channel)
	case v.AtLeast(respaldo.MySQL, 5, 7, 6):
		return verb + " SLAVE SQL_THREAD FOR CHANNEL " + quoteText(channel)
	}
	return verb + " SLAVE SQL_THREAD"
}

// stop stops the appliers. A STOP that has begun cannot be taken back, nor ended by KILL: when
// we wait for it no longer, the session's end will start the appliers as soon as it is done.
func (p *standstill) stop(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		for _, channel := range p.channels {
			if _, err := p.holder.ExecContext(context.WithoutCancel(ctx), applierStatement(p.s.version, "STOP", channel)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	timer := time.NewTimer(p.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		if number := errorNumber(err); number == errPrivilegeNeeded || number == errAccessDenied { // 5.6 and 5.7 say the latter
			return &respaldo.Error{Kind: respaldo.Refused, What: "the account may not stop the replica's applier for the instant of the snapshot",
				Hint: p.s.asUs(PauseGrant(p.s.version)), Err: err}
		}
		return p.s.explain(err, "stopping the replica's applier")
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return &respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf("the replica's applier did not stop within %s; it goes on by itself as soon as it has", p.patience),
			Hint: "SHOW PROCESSLIST shows what it is at (user \"system user\"); run again when that has ended"}
	}
}

// look reads where the appliers are, and sees that none of them runs.
func (p *standstill) look(ctx context.Context) ([]respaldo.Upstream, error) {
	channels, err := queryRows(ctx, p.s.db, replicaStatusStatement(p.s.version))
	if err != nil {
		return nil, p.s.explain(err, "reading the replica's status")
	}
	for _, a := range appliersOf(channels) {
		if a.Running {
			return nil, p.runs(a.Channel)
		}
	}
	return upstreamOf(channels), nil
}

func (p *standstill) runs(channel string) error {
	of := ""
	if channel != "" {
		of = " of channel " + channel
	}
	return &respaldo.Error{Kind: respaldo.LockTimeout, What: "somebody started the replica's applier" + of + " while it was stopped for the snapshot, so its position may not be exact",
		Hint: "run again"}
}

// unbroken tells that the appliers have stood still until now; otherwise the error is a
// LockTimeout, and what was made meanwhile must be discarded.
func (p *standstill) unbroken(ctx context.Context) error {
	now, err := p.look(ctx)
	if err != nil {
		return err
	}
	for n, u := range now {
		if n >= len(p.at) || u != p.at[n] {
			return p.runs(u.Channel)
		}
	}
	return nil
}

// resume starts the appliers again that were stopped, and returns when they run.
func (p *standstill) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumePatience)
	defer cancel()
	if p.raw != nil {
		p.raw.Close() // the session ends, once no STOP is under way in it, and its lock with it
	}
	for channel, done := range p.guards {
		select {
		case err := <-done:
			delete(p.guards, channel)
			if err != nil {
				p.s.log.Debug("the guard of a replica's applier", "channel", channel, "error", err)
			}
		case <-ctx.Done():
			// Its session stays open: a server that finds the client gone might not go on.
			return notResumed(applierStatement(p.s.version, "START", channel), context.Cause(ctx))
		}
	}
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
	p.raw, p.closers = nil, nil
	if _, err := p.s.ResumeAppliers(ctx, p.channels); err != nil {
		return err
	}
	p.channels = nil
	return nil
}

// ResumeAppliers starts the appliers of these channels, and tells which did not run: what a
// cleanup does for an operation that died. A channel that is no more is no error.
func (s *Server) ResumeAppliers(ctx context.Context, channels []string) (resumed []string, err error) {
	if len(channels) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resumePatience)
	defer cancel()
	status, err := queryRows(ctx, s.db, replicaStatusStatement(s.version))
	if err != nil {
		return nil, s.explain(err, "reading the replica's status")
	}
	for _, a := range appliersOf(status) {
		if a.Running || !slices.Contains(channels, a.Channel) {
			continue
		}
		start := applierStatement(s.version, "START", a.Channel)
		if _, err := s.db.ExecContext(ctx, start); err != nil {
			return resumed, notResumed(start, err)
		}
		resumed = append(resumed, a.Channel)
	}
	return resumed, nil
}

func notResumed(start string, err error) error {
	return &respaldo.Error{Kind: respaldo.Leftovers, What: "the replica's applier was stopped for the snapshot and could not be started again", Hint: start, Err: err}
}
