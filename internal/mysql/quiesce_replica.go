package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"

	driver "github.com/go-sql-driver/mysql"

	respaldo "github.com/respaldo-backup/respaldo"
)

// How long an applier may take to stop: it ends the statement, or the change of rows, that it
// is at. Nobody waits for us meanwhile, and it goes on applying.
const stopPatience = 10 * time.Second

// pauseMargin is what stopping the appliers and looking at them may take, besides the
// waiting for the lock and holding it. When all that is used up, the server starts them itself.
const pauseMargin = 5 * time.Second

// NotePause is told what is about to be stopped: it writes that down, calls stop, and remembers
// resume, which may be called more than once. When it is called again, what it was told
// before runs again.
type NotePause func(p Pause, stop func() error, resume func(context.Context) error) error

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
		req.BeforeLock = func() error {
			if err := p.begin(ctx, req.Patience+req.Budget+pauseMargin, note); err != nil || before == nil {
				return err
			}
			return before()
		}
		// A long statement has begun meanwhile: nothing stands still while that is waited for.
		req.unready = func() error { return p.resume(ctx) }
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

// standstill is a replica whose appliers stand still, from begin until resume. Should we die
// before, or the time given be up, the server starts them by itself.
//
// That is the doing of guards: for each applier a session with its statements in one packet, so
// that the server has them all or none: the STOP, a wait for a user lock of ours (GET_LOCK),
// the START. The end of our own session gives that lock up, whatever ended it.
// The STOP is among them because it may take long, and a server may drop a session that
// waits for a lock when its client is gone, but not one that stops an applier.
type standstill struct {
	s  *Server
	at []respaldo.Upstream

	raw      net.Conn // of the session that holds the lock
	guards   map[string]*guard
	failed   []string      // channels whose guards did not get to the START
	patience time.Duration // for a STOP
	closers  []func()
}

// guard is the session that stops and starts one applier. Its channels get one value each.
type guard struct {
	stopped chan error
	ended   chan error
}

func newStandstill(s *Server) *standstill {
	return &standstill{s: s, guards: map[string]*guard{}, patience: stopPatience}
}

// begin stops the appliers that run, for no longer than limit, having had that noted. They
// finish what they are at, so that every transaction is applied as a whole and their position
// is that of the data. An applier that does not stop in time is a LockTimeout. resume must
// follow in any case, and begin may after it.
func (p *standstill) begin(ctx context.Context, limit time.Duration, note NotePause) error {
	channels, err := queryRows(ctx, p.s.db, replicaStatusStatement(p.s.version))
	if err != nil {
		return p.s.explain(err, "reading the replica's status")
	}
	var pause Pause
	for _, a := range appliersOf(channels) {
		if a.Running && a.Until {
			return &respaldo.Error{Kind: respaldo.LockTimeout, What: "somebody started the replica's applier" + ofChannel(a.Channel) + " with UNTIL since it was looked at", Hint: "run again"}
		}
		if a.Running {
			pause.Channels = append(pause.Channels, a.Channel)
		}
	}
	if len(pause.Channels) > 0 {
		if pause.Starts, err = p.s.countStarts(ctx); err != nil {
			return p.s.explain(err, "preparing to stop the replica's applier")
		}
		if err := note(pause, func() error { return p.stop(ctx, pause.Channels, limit) }, p.resume); err != nil {
			return err
		}
	}
	p.at, err = p.look(ctx)
	return err
}

// stop stops the appliers. A STOP that has begun cannot be taken back, nor ended by KILL: when
// we wait for it no longer, the server starts the applier as soon as it is done.
func (p *standstill) stop(ctx context.Context, channels []string, limit time.Duration) error {
	if err := p.guard(ctx, channels, limit); err != nil {
		return p.s.explain(err, "preparing to stop the replica's applier")
	}
	timer := time.NewTimer(p.patience)
	defer timer.Stop()
	for _, g := range p.guards {
		select {
		case err := <-g.stopped:
			if number := errorNumber(err); number == errPrivilegeNeeded || number == errAccessDenied { // 5.6 and 5.7 say the latter
				return &respaldo.Error{Kind: respaldo.Refused, What: "the account may not stop the replica's applier for the instant of the snapshot",
					Hint: p.s.asUs(PauseGrant(p.s.version)), Err: err}
			}
			if err != nil {
				return p.s.explain(err, "stopping the replica's applier")
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return &respaldo.Error{Kind: respaldo.LockTimeout, What: fmt.Sprintf("the replica's applier did not stop within %s; it goes on by itself as soon as it has", p.patience),
				Hint: "SHOW PROCESSLIST shows what it is at (user \"system user\"); run again when that has ended"}
		}
	}
	return nil
}

// guard opens all sessions, and only then has anything stopped.
func (p *standstill) guard(ctx context.Context, channels []string, limit time.Duration) error {
	holder, raw, err := p.open(ctx)
	if err != nil {
		return err
	}
	p.raw = raw
	var id uint64
	if err := holder.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return err
	}
	lock, seconds := fmt.Sprintf("respaldo-%d", id), int(math.Ceil(limit.Seconds()))
	for _, statement := range []string{
		fmt.Sprintf("DO GET_LOCK('%s', 0)", lock),
		fmt.Sprintf("SET SESSION wait_timeout = %d", seconds+1), // it is idle meanwhile
	} {
		if _, err := holder.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	sessions := map[string]*sql.Conn{}
	for _, channel := range channels {
		if sessions[channel], _, err = p.open(ctx); err != nil {
			return err
		}
	}
	for channel, session := range sessions {
		// The first result tells that the server has all of it, the second that the STOP is done.
		rows, err := session.QueryContext(context.WithoutCancel(ctx), fmt.Sprintf("SELECT 1; %[1]s; SELECT 2; DO GET_LOCK('%[2]s', %[3]d); DO RELEASE_LOCK('%[2]s'); %[4]s",
			applierStatement(p.s.version, "STOP", channel), lock, seconds, applierStatement(p.s.version, "START", channel)))
		if err != nil {
			return err
		}
		g := &guard{stopped: make(chan error, 1), ended: make(chan error, 1)}
		p.guards[channel] = g
		go g.follow(rows)
	}
	return nil
}

func (g *guard) follow(rows *sql.Rows) {
	for rows.Next() {
	}
	if rows.NextResultSet() {
		for rows.Next() {
		}
		g.stopped <- nil
	} else {
		g.stopped <- cmp.Or(rows.Err(), io.ErrUnexpectedEOF)
	}
	for rows.NextResultSet() {
	}
	g.ended <- errors.Join(rows.Err(), rows.Close())
}

// open opens a session in which statements take as long as they take.
func (p *standstill) open(ctx context.Context) (*sql.Conn, net.Conn, error) {
	conn, raw, closeConn, err := p.s.open(ctx, func(c *driver.Config) { c.MultiStatements = true })
	if err != nil {
		return nil, nil, err
	}
	p.closers = append(p.closers, closeConn)
	if p.s.version.Flavor == respaldo.MariaDB {
		_, err = conn.ExecContext(ctx, "SET SESSION max_statement_time = 0")
	}
	return conn, raw, err
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
	return &respaldo.Error{Kind: respaldo.LockTimeout, What: "somebody started the replica's applier" + ofChannel(channel) + " while it was stopped for the snapshot, so its position may not be exact",
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

// resume has the guards start the appliers again, and returns when they run. What a guard has
// started is not started once more: somebody may have stopped it since.
func (p *standstill) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumePatience)
	defer cancel()
	if p.raw != nil {
		p.raw.Close() // the session ends, and its lock with it
	}
	for channel, g := range p.guards {
		select {
		case err := <-g.ended:
			delete(p.guards, channel)
			if err != nil {
				p.failed = append(p.failed, channel)
				p.s.log.Debug("the guard of a replica's applier", "channel", channel, "error", err)
			}
		case <-ctx.Done():
			// Its session stays open as long as we live, for the server to go on with it.
			return &respaldo.Error{Kind: respaldo.Leftovers, What: "the replica's applier" + ofChannel(channel) + " has not stopped yet; the server starts it again as soon as it has",
				Hint: "should it not: " + applierStatement(p.s.version, "START", channel)}
		}
	}
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
	p.raw, p.closers = nil, nil
	if _, err := p.s.startAppliers(ctx, p.failed); err != nil {
		return err
	}
	p.failed = nil
	return nil
}
