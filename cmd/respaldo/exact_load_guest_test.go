//go:build guest

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// exactProfile is what is going on at the origin while images of it are taken. There are
// transactions in each.
type exactProfile struct {
	name  string
	ddl   bool // definitions of every sort are made, changed and dropped
	plain bool // tables that are not transactional are written to
	lax   bool // commits are not on disk when they are acknowledged
}

// exactProfiles in their order: a table that is not transactional stays once it is there,
// and rules an image without a lock out.
var exactProfiles = []exactProfile{
	{name: "transactional"},
	{name: "ddl", ddl: true},
	{name: "lax", lax: true},
	{name: "nontransactional", plain: true},
	{name: "all", ddl: true, plain: true, lax: true},
}

const (
	exactAccounts = 50
	exactBalance  = 1000 // of each account at first; money only moves
	exactPace     = 15 * time.Millisecond
)

// exactSchema is made before anything is written.
func exactSchema(t *testing.T, s *guest.Server) {
	t.Helper()
	s.Exec(t, "DROP TABLE shop.notes", // not transactional
		"CREATE DATABASE bank",
		"CREATE TABLE bank.accounts (id INT PRIMARY KEY, balance INT NOT NULL, touched INT NOT NULL DEFAULT 0) ENGINE=InnoDB",
		"CREATE TABLE bank.entries (id BIGINT AUTO_INCREMENT PRIMARY KEY, source INT, target INT, amount INT, KEY (source)) ENGINE=InnoDB",
		"CREATE TABLE bank.journal (writer VARCHAR(20), n INT, note VARCHAR(100)) ENGINE=InnoDB", // no key: what comes twice shows
		"CREATE TABLE bank.papers (id BIGINT AUTO_INCREMENT PRIMARY KEY, scan LONGBLOB) ENGINE=InnoDB",
		"CREATE DATABASE branch",
		"CREATE TABLE branch.hot (id INT PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB",
		"INSERT INTO branch.hot VALUES (1, 0)")
	var rows []string
	for id := range exactAccounts {
		rows = append(rows, fmt.Sprintf("(%d, %d, 0)", id, exactBalance))
	}
	s.Exec(t, "INSERT INTO bank.accounts VALUES "+strings.Join(rows, ", "))
}

// exactPlain makes the tables that are not transactional.
func exactPlain(t *testing.T, s *guest.Server) {
	t.Helper()
	s.Exec(t, "CREATE DATABASE IF NOT EXISTS plain",
		"CREATE TABLE IF NOT EXISTS plain.events (id INT AUTO_INCREMENT PRIMARY KEY, n INT, note VARCHAR(200), KEY (n)) ENGINE=MyISAM",
		"CREATE TABLE IF NOT EXISTS plain.lines (n INT, note TEXT) ENGINE=MyISAM")
	if isMariaDB(s) {
		s.Exec(t, "CREATE TABLE IF NOT EXISTS plain.aria (id INT AUTO_INCREMENT PRIMARY KEY, n INT, note VARCHAR(200)) ENGINE=Aria",
			"CREATE TABLE IF NOT EXISTS plain.unsafe (id INT AUTO_INCREMENT PRIMARY KEY, n INT, note VARCHAR(200)) ENGINE=Aria TRANSACTIONAL=0")
	}
}

func isMariaDB(s *guest.Server) bool { return strings.HasPrefix(s.Name, "mariadb") }

// exactLoad are the writers of a profile.
type exactLoad struct {
	server *guest.Server
	stop   context.CancelFunc
	group  sync.WaitGroup

	mu     sync.Mutex
	done   map[string]int // steps by writer
	errs   []error
	resume chan struct{} // closed unless the writers pause
}

// exactWriter is one connection that goes from step to step.
type exactWriter struct {
	name string
	conn *sql.Conn
	n    int // of the step
	rand *rand.Rand
	// mariaDB, strict (MySQL 5.6 with GTIDs) say what may be written.
	mariaDB, strict bool
}

// startExactLoad starts the writers of a profile. round keeps names apart from those of
// earlier loads on the same server.
func startExactLoad(t *testing.T, s *guest.Server, p exactProfile, round int) *exactLoad {
	t.Helper()
	durable := []string{"SET GLOBAL sync_binlog = 1", "SET GLOBAL innodb_flush_log_at_trx_commit = 1"}
	if p.lax {
		durable = []string{"SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 2"}
	}
	s.Exec(t, durable...)
	ctx, cancel := context.WithCancel(context.Background())
	l := &exactLoad{server: s, stop: cancel, done: map[string]int{}, resume: make(chan struct{})}
	close(l.resume)
	t.Cleanup(func() { l.Stop() })
	l.start(t, ctx, fmt.Sprintf("clerk%d", round), (*exactWriter).transfers)
	l.start(t, ctx, fmt.Sprintf("scribe%d", round), (*exactWriter).papers)
	if p.ddl {
		l.start(t, ctx, fmt.Sprintf("dba%d", round), (*exactWriter).definitions)
		l.start(t, ctx, fmt.Sprintf("admin%d", round), (*exactWriter).administration)
	}
	if p.plain {
		exactPlain(t, s)
		l.start(t, ctx, fmt.Sprintf("logger%d", round), (*exactWriter).plain)
	}
	return l
}

func (l *exactLoad) start(t *testing.T, ctx context.Context, name string, step func(*exactWriter) error) {
	t.Helper()
	conn, err := l.server.DB.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	w := &exactWriter{name: name, conn: conn, rand: rand.New(rand.NewPCG(uint64(len(name)), uint64(time.Now().UnixNano()))),
		mariaDB: isMariaDB(l.server), strict: l.server.Name == "mysql-5.6"}
	l.done[name] = 0
	l.group.Go(func() {
		defer conn.Close()
		tick := time.NewTicker(exactPace)
		defer tick.Stop()
		for l.goesOn(ctx) {
			w.n++
			err := step(w)
			if err != nil && !givenUp(err) {
				l.mu.Lock()
				l.errs = append(l.errs, fmt.Errorf("%s, step %d: %w", name, w.n, err))
				l.mu.Unlock()
				return
			}
			if err != nil {
				w.exec("ROLLBACK")
			}
			l.mu.Lock()
			l.done[name]++
			l.mu.Unlock()
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
}

// goesOn waits while the writers pause, and is false at their end.
func (l *exactLoad) goesOn(ctx context.Context) bool {
	l.mu.Lock()
	resume := l.resume
	l.mu.Unlock()
	select {
	case <-resume:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// Pause has each writer stop after its step, and does not wait for that. Once a snapshot is
// there nobody needs what they write, and the guest has one processor.
func (l *exactLoad) Pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.resume:
		l.resume = make(chan struct{})
	default:
	}
}

// Resume ends a pause.
func (l *exactLoad) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.resume:
	default:
		close(l.resume)
	}
}

// givenUp tells a deadlock or a lock that was not to be had from what should not happen.
func givenUp(err error) bool {
	var e *driver.MySQLError
	return errors.As(err, &e) && (e.Number == 1213 || e.Number == 1205)
}

// Moves waits until every writer has gone on by some steps since the call.
func (l *exactLoad) Moves(t *testing.T, steps int) {
	t.Helper()
	l.mu.Lock()
	from := map[string]int{}
	for name, n := range l.done {
		from[name] = n
	}
	l.mu.Unlock()
	guest.Eventually(t, testLimit, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.errs) > 0 {
			t.Fatal(errors.Join(l.errs...))
		}
		for name, n := range l.done {
			if n < from[name]+steps {
				return fmt.Errorf("%s stands at step %d", name, n)
			}
		}
		return nil
	})
}

// Stop ends the writers after their step, and returns what went wrong. It may be called again.
func (l *exactLoad) Stop() error {
	l.stop()
	l.group.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

// exec runs statements one after another, until one fails.
func (w *exactWriter) exec(statements ...string) error {
	for _, q := range statements {
		if _, err := w.conn.ExecContext(context.Background(), q); err != nil {
			return fmt.Errorf("%s: %w", q[:min(len(q), 200)], err)
		}
	}
	return nil
}

// transaction runs statements between BEGIN and COMMIT, noted in the journal.
func (w *exactWriter) transaction(statements ...string) error {
	all := append([]string{"BEGIN"}, statements...)
	return w.exec(append(all, fmt.Sprintf("INSERT INTO bank.journal VALUES ('%s', %d, '%s')", w.name, w.n, strings.Repeat("x", w.rand.IntN(100))), "COMMIT")...)
}

// transfers moves money, so that the sum stays; some of it is thought better of.
func (w *exactWriter) transfers() error {
	a, b, amount := w.rand.IntN(exactAccounts), w.rand.IntN(exactAccounts), w.rand.IntN(100)
	move := []string{
		fmt.Sprintf("UPDATE bank.accounts SET balance = balance - %d, touched = touched + 1 WHERE id = %d", amount, a),
		fmt.Sprintf("UPDATE bank.accounts SET balance = balance + %d, touched = touched + 1 WHERE id = %d", amount, b),
		fmt.Sprintf("INSERT INTO bank.entries (source, target, amount) VALUES (%d, %d, %d)", a, b, amount),
		"UPDATE branch.hot SET n = n + 1 WHERE id = 1",
	}
	switch {
	case w.n%10 == 3:
		return w.exec(append(append([]string{"BEGIN"}, move...), "ROLLBACK")...)
	case w.n%10 == 6:
		return w.transaction(append(move, "SAVEPOINT s", "UPDATE bank.accounts SET balance = 0", "ROLLBACK TO s")...)
	case w.n%50 == 20: // many rows, more than a page of the binlog's cache
		return w.transaction("UPDATE bank.accounts SET touched = touched + 1", "DELETE FROM bank.entries WHERE source = "+fmt.Sprint(a))
	}
	return w.transaction(move...)
}

// papers writes BLOBs and deletes older ones.
func (w *exactWriter) papers() error {
	scan := fmt.Sprintf("INSERT INTO bank.papers (scan) VALUES (REPEAT(SHA2(%d, 256), %d))", w.rand.Int32(), 1+w.rand.IntN(500))
	if w.n%5 == 0 {
		return w.transaction(scan, scan, "DELETE FROM bank.papers ORDER BY id LIMIT 5")
	}
	return w.transaction(scan)
}

// plain writes what no engine takes back.
func (w *exactWriter) plain() error {
	statements := []string{
		fmt.Sprintf("INSERT INTO plain.events (n, note) VALUES (%d, REPEAT('e', %d)), (%[1]d, 'second')", w.n, w.rand.IntN(200)),
		fmt.Sprintf("INSERT INTO plain.lines VALUES (%d, REPEAT('l', %d))", w.n, w.rand.IntN(2000)),
		fmt.Sprintf("UPDATE plain.events SET note = 'changed in %d' WHERE n = %d", w.n, w.n-3),
		fmt.Sprintf("DELETE FROM plain.lines WHERE n = %d", w.n-20),
	}
	if w.mariaDB {
		statements = append(statements,
			fmt.Sprintf("INSERT INTO plain.aria (n, note) VALUES (%d, 'a'), (%[1]d, 'b'), (%[1]d, 'c')", w.n),
			fmt.Sprintf("INSERT INTO plain.unsafe (n, note) VALUES (%d, 'a'), (%[1]d, 'b')", w.n),
			fmt.Sprintf("UPDATE plain.aria SET note = CONCAT(note, 'x') WHERE n = %d", w.n-2),
			"BEGIN", // both sorts in one
			fmt.Sprintf("INSERT INTO bank.journal VALUES ('%s', %d, 'mixed')", w.name, w.n),
			fmt.Sprintf("INSERT INTO plain.lines VALUES (%d, 'mixed')", w.n),
			"COMMIT")
	}
	return w.exec(statements...)
}
