// Package mysql speaks with servers: with the one that is backed up (Server: what it
// is, where its files lie, how it is quiesced, where its binlog stands) and with private
// ones that we start over an image (Instance).
package mysql

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	driver "github.com/go-sql-driver/mysql"
	respaldo "github.com/respaldo-backup/respaldo"
)

const dialTimeout = 10 * time.Second

// Server is a running mysqld or mariadbd that we back up. Safe for concurrent use.
type Server struct {
	log     *slog.Logger
	target  target
	address string // the one of target's that answered
	db      *sql.DB
	version respaldo.Version
	comment string
	account string // the one that the server took us for, quoted: 'user'@'host'
}

// Connect finds the server as MySQL's own clients do and logs in. Its errors are of
// kind Unreachable (or Usage for a bad option file) and say what to do. log may be nil.
func Connect(ctx context.Context, o Options, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t, err := resolveTarget(o)
	if err != nil {
		return nil, err
	}
	for _, w := range t.warnings {
		log.Warn(w)
	}
	s := &Server{log: log, target: t}
	var failed []error
	for _, address := range t.addresses {
		s.address = address
		s.db = sql.OpenDB(s.connector(nil))
		if err = s.greet(ctx); err == nil {
			break
		}
		s.db.Close()
		failed = append(failed, err)
		if !isDialError(err) { // somebody is there, and says no: that is the answer
			failed = []error{err}
			break
		}
	}
	if err != nil {
		return nil, s.explainConnect(failed)
	}
	s.db.SetMaxOpenConns(4)
	s.db.SetMaxIdleConns(2)
	s.db.SetConnMaxIdleTime(time.Minute) // shorter than any sane wait_timeout
	log.Debug("connected", "server", s.version.String(), "address", s.address, "user", t.user, "option_files", t.read)
	return s, nil
}

func (s *Server) greet(ctx context.Context) error {
	var version, comment, account string
	if err := s.db.QueryRowContext(ctx, "SELECT @@version, @@version_comment, CURRENT_USER()").Scan(&version, &comment, &account); err != nil {
		return err
	}
	s.account = quoteAccount(account)
	v, err := respaldo.ParseVersion(version, comment)
	s.version, s.comment = v, comment
	return err
}

// Close ends the pool's connections. Those of a running Quiesce are its own.
func (s *Server) Close() error { return s.db.Close() }

// Version is what the server said when we connected.
func (s *Server) Version() respaldo.Version { return s.version }

// DB is the pool; a lock must never be taken on it (UNLOCK might then "succeed" on
// another connection).
func (s *Server) DB() *sql.DB { return s.db }

// Address is the socket's path or host:port.
func (s *Server) Address() string { return s.address }

// User is the account's name as we gave it.
func (s *Server) User() string { return s.target.user }

// Warnings are remarks about the option files, for check to show.
func (s *Server) Warnings() []string { return s.target.warnings }

// connector opens connections to the server; every one is shown to dialed first, if set.
func (s *Server) connector(dialed func(net.Conn), change ...func(*driver.Config)) sqldriver.Connector {
	cfg := driver.NewConfig()
	cfg.User, cfg.Passwd = s.target.user, s.target.password
	cfg.Net, cfg.Addr = s.target.network, s.address
	cfg.TLS, cfg.AllowFallbackToPlaintext = s.target.tls, s.target.fallback
	cfg.AllowCleartextPasswords = s.target.cleartext
	cfg.Timeout = dialTimeout
	cfg.InterpolateParams = true // no prepared statements: BACKUP STAGE and SHOW know none
	// Our statements are written for no mode: NO_BACKSLASH_ESCAPES makes others of them.
	cfg.Params = map[string]string{"sql_mode": "''"}
	cfg.ConnectionAttributes = "program_name:respaldo"
	cfg.Logger = driverLog{s.log}
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil && dialed != nil {
			dialed(conn)
		}
		return conn, err
	}
	for _, f := range change {
		f(cfg)
	}
	c, err := driver.NewConnector(cfg)
	if err != nil { // only for contradictions within cfg that we do not produce
		panic(err)
	}
	return c
}

// open opens one connection of its own, outside the pool, and the network connection
// beneath it. closeAll ends both.
func (s *Server) open(ctx context.Context, change ...func(*driver.Config)) (conn *sql.Conn, raw net.Conn, closeAll func(), err error) {
	var mu sync.Mutex
	db := sql.OpenDB(s.connector(func(c net.Conn) {
		mu.Lock()
		raw = c
		mu.Unlock()
	}, change...))
	db.SetMaxOpenConns(1)
	conn, err = db.Conn(ctx)
	if err != nil {
		db.Close()
		return nil, nil, nil, err
	}
	return conn, raw, func() {
		conn.Close()
		db.Close()
	}, nil
}

// driverLog keeps the driver's remarks ("unexpected EOF") off stderr: the errors that
// it returns say the same.
type driverLog struct{ log *slog.Logger }

func (l driverLog) Print(v ...any) {
	l.log.Debug("mysql driver", "said", strings.TrimSpace(fmt.Sprintln(v...)))
}
