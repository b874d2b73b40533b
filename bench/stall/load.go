package stall

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// load writes to a server at a steady rate, whatever the server does: a transaction that is
// due while an earlier one of its connection waits is late from the moment at which it was
// due. Otherwise a stalled client would send nothing, and the stall would count once only.
type load struct {
	start time.Time
	pace  time.Duration
	stop  context.CancelFunc
	done  sync.WaitGroup

	mu      sync.Mutex
	commits [][]commit      // by connection, in order
	due     []time.Duration // of each connection's current transaction
	err     error
}

var schema = []string{
	"CREATE DATABASE stall",
	"CREATE TABLE stall.orders (id BIGINT PRIMARY KEY, note VARCHAR(100)) ENGINE=InnoDB",
	"CREATE TABLE stall.items (id BIGINT, item INT, note VARCHAR(100), PRIMARY KEY (id, item)) ENGINE=InnoDB",
	// Nobody writes to this one; a SELECT may read it for long.
	"CREATE TABLE stall.archive (id INT PRIMARY KEY) ENGINE=InnoDB",
	"INSERT INTO stall.archive VALUES (1)",
}

// startLoad makes the tables and writes until halt. The connections take turns.
func startLoad(ctx context.Context, db *sql.DB, connections int, pace time.Duration) (*load, error) {
	for _, q := range schema {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return nil, fmt.Errorf("%s: %w", q, err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &load{start: time.Now(), pace: pace, stop: cancel, commits: make([][]commit, connections), due: make([]time.Duration, connections)}
	for n := range connections {
		conn, err := db.Conn(ctx)
		if err == nil {
			_, err = conn.ExecContext(ctx, "SET autocommit=0")
		}
		if err != nil {
			cancel()
			return nil, err
		}
		l.done.Add(1)
		go l.write(ctx, conn, n)
	}
	return l, nil
}

func (l *load) write(ctx context.Context, conn *sql.Conn, n int) {
	defer l.done.Done()
	defer conn.Close()
	connections := len(l.commits)
	due := l.now() + l.pace*time.Duration(n+1)/time.Duration(connections)
	for turn := 0; ; turn++ {
		l.mu.Lock()
		l.due[n] = due
		l.mu.Unlock()
		if early := due - l.now(); early > 0 {
			select {
			case <-time.After(early):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
		err := transaction(conn, turn*connections+n)
		now := l.now()
		l.mu.Lock()
		l.commits[n] = append(l.commits[n], commit{now, now - due})
		if err != nil {
			l.err = errors.Join(l.err, err)
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
		due += l.pace
	}
}

var note = strings.Repeat("stall", 20)

// transaction is not interrupted: at the end every client waits for its answer.
func transaction(conn *sql.Conn, id int) error {
	for _, q := range []string{
		fmt.Sprintf("INSERT INTO stall.orders VALUES (%d, '%s')", id, note),
		fmt.Sprintf("INSERT INTO stall.items VALUES (%d, 1, '%s'), (%d, 2, '%s')", id, note, id, note),
		"COMMIT",
	} {
		if _, err := conn.ExecContext(context.Background(), q); err != nil {
			return err
		}
	}
	return nil
}

// now is the load's clock.
func (l *load) now() time.Duration { return time.Since(l.start) }

// all returns the commits so far in their order, and what went wrong for a client.
func (l *load) all() ([]commit, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Concat(l.commits...)
	slices.SortFunc(all, func(a, b commit) int { return int(a.at - b.at) })
	return all, l.err
}

// late is by how much the connection that is most behind is behind.
func (l *load) late() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now() - slices.Min(l.due)
}

func (l *load) halt() {
	l.stop()
	l.done.Wait()
}
