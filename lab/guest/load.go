package guest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Load is a write load of several writers. Each transaction writes one row into
// labload.orders and two into labload.items, and its number follows the writer's last one:
// half a transaction, or a gap, is visible in any copy of the tables.
type Load struct {
	db    *sql.DB
	stop  context.CancelFunc
	group sync.WaitGroup

	mu       sync.Mutex
	acked    Progress
	begun    Progress
	errs     []error
	longWait time.Duration
}

// Progress is how many transactions of each writer there are.
type Progress []int

// StartLoad makes the tables unless they exist and starts writing: each writer at most
// fifty transactions a second, so that a guest's one CPU has room for others. Stop must be called.
func StartLoad(t T, s *Server, writers int) *Load {
	t.Helper()
	return StartLoadEvery(t, s, writers, 20*time.Millisecond)
}

// StartLoadEvery is StartLoad at another pace: at most one transaction of each writer in
// the given time.
func StartLoadEvery(t T, s *Server, writers int, pace time.Duration) *Load {
	t.Helper()
	s.Exec(t,
		"CREATE DATABASE IF NOT EXISTS labload",
		"CREATE TABLE IF NOT EXISTS labload.orders (writer INT, seq INT, note VARCHAR(200), PRIMARY KEY (writer, seq)) ENGINE=InnoDB",
		"CREATE TABLE IF NOT EXISTS labload.items (writer INT, seq INT, item INT, note VARCHAR(200), PRIMARY KEY (writer, seq, item)) ENGINE=InnoDB",
	)
	at, err := Contents(s.DB, writers)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{db: s.DB, stop: cancel, acked: at, begun: append(Progress(nil), at...)}
	for w := range writers {
		l.group.Add(1)
		go l.write(ctx, w, pace)
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) write(ctx context.Context, writer int, pace time.Duration) {
	defer l.group.Done()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ctx.Err() == nil {
		l.mu.Lock()
		l.begun[writer]++
		seq := l.begun[writer]
		l.mu.Unlock()
		start := time.Now()
		err := l.transaction(writer, seq)
		l.mu.Lock()
		l.longWait = max(l.longWait, time.Since(start))
		if err == nil {
			l.acked[writer] = seq
		} else {
			l.errs = append(l.errs, fmt.Errorf("writer %d, transaction %d: %w", writer, seq, err))
		}
		l.mu.Unlock()
		if err != nil { // whether it was committed is unknown: the sequence ends here
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (l *Load) transaction(writer, seq int) error {
	tx, err := l.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	note := fmt.Sprintf("%0200d", seq)
	if _, err := tx.Exec("INSERT INTO labload.orders VALUES (?, ?, ?)", writer, seq, note); err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT INTO labload.items VALUES (?, ?, 1, ?), (?, ?, 2, ?)", writer, seq, note, writer, seq, note); err != nil {
		return err
	}
	return tx.Commit()
}

// Acked is how far each writer's commits have been acknowledged: an image taken from now
// on must hold at least these.
func (l *Load) Acked() Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(Progress(nil), l.acked...)
}

// Begun is how far each writer has begun: an image taken before now holds no more.
func (l *Load) Begun() Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(Progress(nil), l.begun...)
}

// LongestWait is the longest that one transaction took that ended since the last call.
func (l *Load) LongestWait() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest := l.longWait
	l.longWait = 0
	return longest
}

// Moves waits until every writer has had a commit acknowledged since the call: writes flow.
func (l *Load) Moves(t T, limit time.Duration) {
	t.Helper()
	from := l.Acked()
	Eventually(t, limit, func() error {
		for w, n := range l.Acked() {
			if n <= from[w] {
				return fmt.Errorf("writer %d has committed nothing since transaction %d: %w", w, n, l.Err())
			}
		}
		return nil
	})
}

// Err is what went wrong for the writers so far.
func (l *Load) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

// Stop ends the writers after their current transactions, and returns what went wrong.
// It may be called again.
func (l *Load) Stop() error {
	l.stop()
	l.group.Wait()
	return l.Err()
}

// Contents counts the load's transactions in any copy of its tables. It is an error when
// a transaction is there by half, or missing before a later one of its writer.
func Contents(db *sql.DB, writers int) (Progress, error) {
	p := make(Progress, writers)
	rows, err := db.Query("SELECT writer, COUNT(*), MAX(seq) FROM labload.orders GROUP BY writer")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var writer, count, last int
		if err := rows.Scan(&writer, &count, &last); err != nil {
			return nil, err
		}
		if writer >= writers {
			return nil, fmt.Errorf("rows of a writer %d", writer)
		}
		if count != last {
			return nil, fmt.Errorf("writer %d has %d transactions, the last of which is %d", writer, count, last)
		}
		p[writer] = count
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	var orders, items, pairs int
	err = db.QueryRow("SELECT (SELECT COUNT(*) FROM labload.orders), (SELECT COUNT(*) FROM labload.items), (SELECT COUNT(*) FROM labload.orders o JOIN labload.items i USING (writer, seq))").
		Scan(&orders, &items, &pairs)
	if err != nil {
		return nil, err
	}
	if items != 2*orders || pairs != items {
		return nil, fmt.Errorf("half transactions: %d orders, %d items, %d of them with an order", orders, items, pairs)
	}
	return p, nil
}

// Within fails the test unless from ≤ p ≤ to for every writer: what an image holds lies
// between what was acknowledged before it and what was begun after it.
func (p Progress) Within(t T, from, to Progress) {
	t.Helper()
	if len(p) != len(from) || len(p) != len(to) {
		t.Fatalf("%d writers, want %d and %d", len(p), len(from), len(to))
	}
	for w := range p {
		if p[w] < from[w] || p[w] > to[w] {
			t.Errorf("writer %d has %d transactions, want %d to %d", w, p[w], from[w], to[w])
		}
	}
}
