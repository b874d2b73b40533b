package mysql

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// patience is how long a test waits for what must happen; it bounds, it measures nothing.
const patience = 30 * time.Second

// starting bounds how many servers start at once: they wait for the disk, but want the processors too.
var starting = make(chan struct{}, 4)

// box is a running server with a folder around it: data, elsewhere/…, my.cnf.
type box struct {
	name    string
	dir     string
	data    string
	running *servers.Running
	root    *sql.DB
}

// startBox starts a server; change may alter data directory and options before.
func startBox(t *testing.T, name string, change func(b *box, spec *servers.Spec)) *box {
	t.Helper()
	ctx := context.Background()
	starting <- struct{}{}
	defer func() { <-starting }()
	if err := servers.Ensure(ctx, name); err != nil {
		t.Fatal(err)
	}
	b := &box{name: name, dir: t.TempDir()}
	b.data = b.path("data")
	if err := servers.Init(ctx, name, b.data); err != nil {
		t.Fatal(err)
	}
	spec := servers.Spec{Name: name, DataDir: b.data}
	if change != nil {
		change(b, &spec)
	}
	var err error
	if b.running, err = servers.Start(ctx, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.running.Kill(); err != nil { // an orderly end takes seconds, and nobody looks at what is left
			t.Error(err)
		}
	})
	cfg := driver.NewConfig()
	cfg.User, cfg.Net, cfg.Addr, cfg.Logger = "root", "unix", b.socket(), &driver.NopLogger{}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.root = sql.OpenDB(connector)
	t.Cleanup(func() { b.root.Close() })
	return b
}

func (b *box) path(elem ...string) string { return filepath.Join(append([]string{b.dir}, elem...)...) }

func (b *box) socket() string { return b.running.Spec().Socket }

func (b *box) mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := b.path(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (b *box) write(t *testing.T, name, content string) string {
	t.Helper()
	path := b.path(name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (b *box) exec(t *testing.T, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := b.root.Exec(s); err != nil {
			t.Fatalf("%s: %s: %v", b.name, s, err)
		}
	}
}

// conn is a session of root's own.
func (b *box) conn(t *testing.T) *sql.Conn {
	t.Helper()
	c, err := b.root.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (b *box) id(t *testing.T, c *sql.Conn) (id uint64) {
	t.Helper()
	if err := c.QueryRowContext(context.Background(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// server connects as our program does: by an option file.
func (b *box) server(t *testing.T) *Server {
	t.Helper()
	return b.serverAs(t, "root", "")
}

func (b *box) serverAs(t *testing.T, user, password string) *Server {
	t.Helper()
	file := b.write(t, user+".cnf", fmt.Sprintf("[client]\nsocket=%s\n[respaldo]\nuser=%s\npassword='%s'\n", b.socket(), user, password))
	s, err := Connect(context.Background(), Options{DefaultsFile: file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustFacts(t *testing.T, s *Server) *Facts {
	t.Helper()
	f, err := s.Facts(context.Background())
	if err != nil {
		t.Fatal(explained(err))
	}
	return f
}

// explained is an error as a person reads it.
func explained(err error) string {
	return fmt.Sprintf("%v\nhint: %s", err, strings.Join(respaldo.HintsOf(err), "\nhint: "))
}

// mustBe checks an error's kind and that what is said, hints included, has the words.
func mustBe(t *testing.T, err error, kind respaldo.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	text := explained(err)
	if respaldo.KindOf(err) != kind {
		t.Errorf("kind %d, want %d: %s", respaldo.KindOf(err), kind, text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in: %s", w, text)
		}
	}
	if len(respaldo.HintsOf(err)) == 0 && kind != respaldo.Interrupted {
		t.Errorf("no hint: %s", text)
	}
}

// shortDir is a directory whose path leaves room for a socket's name, unlike t.TempDir's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rsp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// waitFor polls a condition of a server or another process until it holds.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for: %s", patience, what)
		}
		<-tick.C
	}
}

// within fails when f does not return while patience lasts.
func within(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s did not end within %s", what, patience)
		return nil
	}
}

// runs tells whether a session runs a statement that begins so, in that state if given.
func (b *box) runs(t *testing.T, statement, state string) func() bool {
	return func() bool {
		list, err := queryRows(context.Background(), b.root, "SHOW FULL PROCESSLIST")
		if err != nil {
			t.Error(err)
			return true
		}
		for _, p := range list {
			if strings.HasPrefix(p["info"], statement) && strings.Contains(p["state"], state) {
				return true
			}
		}
		return false
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestServer runs everything that each version must do alike, on one server of each. Its
// binlogs and redo log lie outside the data directory: the usual layout is seen elsewhere.
func TestServer(t *testing.T) {
	t.Parallel()
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBox(t, name, func(b *box, spec *servers.Spec) {
				spec.Port = freePort(t)
				elsewhere(t, b, spec)
				spec.Args = append(spec.Args, "--report-password="+reportPassword)
			})
			b.exec(t, "CREATE DATABASE d",
				"CREATE TABLE d.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT) ENGINE=InnoDB",
				"CREATE TABLE d.other (id INT AUTO_INCREMENT PRIMARY KEY, v INT) ENGINE=InnoDB",
				"INSERT INTO d.t (v) VALUES (1), (2), (3)")
			t.Run("no lock", func(t *testing.T) { testNoLock(t, b) })
			t.Run("connect", func(t *testing.T) { testConnect(t, b) })
			t.Run("process", func(t *testing.T) { testProcess(t, b) })
			t.Run("facts", func(t *testing.T) { testFacts(t, b) })
			t.Run("layout", func(t *testing.T) { testLayout(t, b) })
			t.Run("unflushed commits", func(t *testing.T) { testUnflushedCommits(t, b) })
			t.Run("privileges", func(t *testing.T) { testPrivileges(t, b) })
			t.Run("quiesce", func(t *testing.T) { testQuiesce(t, b) })
			t.Run("kill blockers", func(t *testing.T) { testKillBlockers(t, b) })
			t.Run("stall", func(t *testing.T) { testStall(t, b) })
			t.Run("TLS", func(t *testing.T) { testTLS(t, b) })
			t.Run("quiesce over TCP", func(t *testing.T) { testQuiesceTCP(t, b) })
			t.Run("binlog scan", func(t *testing.T) { testBinlogScan(t, b) })
			t.Run("binlog tail", func(t *testing.T) { testBinlogTail(t, b) })
		})
	}
}

func testConnect(t *testing.T, b *box) {
	ctx := context.Background()
	b.exec(t, "CREATE USER 'bob'@'%' IDENTIFIED BY 'it''s \"#secret'")
	socket := fmt.Sprintf("socket=%s\n", b.socket())
	port := b.running.Spec().Port
	who := func(t *testing.T, o Options) string {
		t.Helper()
		s, err := Connect(ctx, o, nil)
		if err != nil {
			t.Fatal(explained(err))
		}
		defer s.Close()
		var user string
		if err := s.DB().QueryRow("SELECT SUBSTRING_INDEX(USER(), '@', 1)").Scan(&user); err != nil {
			t.Fatal(err)
		}
		if s.User() != user {
			t.Errorf("we are %s and think that we are %s", user, s.User())
		}
		return user
	}

	t.Run("respaldo beats client, quotes and includes", func(t *testing.T) {
		b.mkdir(t, "conf.d")
		b.write(t, "conf.d/10-user.cnf", "[respaldo]\nuser = bob # not alice\npassword = \"it's \\\"#secret\"\n")
		b.write(t, "conf.d/not-read", "[respaldo]\nuser=carol\n")
		file := b.write(t, "include.cnf", "[client]\nuser=alice\npassword=wrong\n"+socket+"!includedir "+b.path("conf.d")+"\n")
		if got := who(t, Options{DefaultsFile: file}); got != "bob" {
			t.Errorf("connected as %s", got)
		}
	})
	t.Run("TCP", func(t *testing.T) {
		file := b.write(t, "tcp.cnf", fmt.Sprintf("[client]\nhost=localhost\nprotocol=tcp\nport=%d\nuser=bob\npassword='it\\'s \"#secret'\n", port))
		if got := who(t, Options{DefaultsFile: file}); got != "bob" {
			t.Errorf("connected as %s", got)
		}
	})
	t.Run("command line beats option files", func(t *testing.T) {
		file := b.write(t, "other.cnf", "[client]\nsocket=/nowhere\nhost=nowhere.invalid\nuser=alice\n")
		if got := who(t, Options{DefaultsFile: file, Socket: b.socket(), User: "root"}); got != "root" {
			t.Errorf("connected as %s", got)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		var log bytes.Buffer
		file := b.write(t, "wrong.cnf", "[respaldo]\nuser=bob\npassword=topsecret123\n"+socket)
		_, err := Connect(ctx, Options{DefaultsFile: file}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		mustBe(t, err, respaldo.Unreachable, `does not let user "bob" in`, "password", file)
		if text := explained(err) + log.String(); strings.Contains(text, "topsecret123") {
			t.Errorf("the password was told: %s", text)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		file := b.write(t, "nowhere.cnf", "[client]\nsocket="+b.path("nowhere.sock")+"\n")
		_, err := Connect(ctx, Options{DefaultsFile: file}, nil)
		mustBe(t, err, respaldo.Unreachable, b.path("nowhere.sock"), "running")

		_, err = Connect(ctx, Options{DefaultsFile: file, Host: "127.0.0.1", Port: freePort(t)}, nil)
		mustBe(t, err, respaldo.Unreachable, "no server answers", "running")
	})
	t.Run("not a server", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
				c.Close()
			}
		}()
		file := b.write(t, "ssh.cnf", "[client]\nuser=bob\n")
		_, err = Connect(ctx, Options{DefaultsFile: file, Port: l.Addr().(*net.TCPAddr).Port}, nil)
		mustBe(t, err, respaldo.Unreachable, "cannot connect")
	})
}

// TestServerComesAndGoes has a server in the usual layout, found as a person's own client
// would find it, that is killed: first while we hold the lock.
func TestServerComesAndGoes(t *testing.T) {
	b := startBox(t, "mariadb-10.5", nil)
	b.exec(t, "CREATE USER 'bob'@'%' IDENTIFIED BY 'secret'", "GRANT ALL ON *.* TO 'bob'@'%'")
	t.Setenv("HOME", b.mkdir(t, "home"))
	t.Setenv("MYSQL_PWD", "secret")
	b.write(t, "home/.my.cnf", "[client]\nuser=bob\nsocket="+b.socket()+"\n")
	s, err := Connect(context.Background(), Options{}, nil)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer s.Close()
	login := b.write(t, "home/.mylogin.cnf", "what mysql_config_editor writes")
	_, err = Connect(context.Background(), Options{User: "carol"}, nil)
	mustBe(t, err, respaldo.Unreachable, `does not let user "carol" in`, login, "not read")
	f := mustFacts(t, s)
	if places := f.Layout.Of(respaldo.BinlogRole); f.BinlogElsewhere || len(places) != 1 || !places[0].Inside {
		t.Errorf("binlogs in the data directory: %+v", places)
	}
	if places := f.Layout.Of(respaldo.RedoRole); len(places) != 1 || places[0].Real != realPath(b.data) || !places[0].Inside {
		t.Errorf("redo log in the data directory: %+v", places)
	}
	if tail, err := f.OpenBinlogTail(respaldo.Coordinates{File: "binlog.000001", Position: 4}); tail != nil || err != nil {
		t.Errorf("a tail of binlogs that the data directory has: %v, %v", tail, err)
	}

	// Killed while it is locked: we are told at once.
	_, err = s.Quiesce(context.Background(), QuiesceRequest{Mode: respaldo.LockBackup, Budget: time.Minute, Facts: f}, func(ctx context.Context, _ respaldo.Coordinates) error {
		if err := syscall.Kill(b.running.PID(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		return within(t, "the loss of the server", func() error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
	})
	mustBe(t, err, respaldo.LockTimeout, "lost")
	<-b.running.Exited()

	_, err = s.Quiesce(context.Background(), QuiesceRequest{Mode: respaldo.LockBackup, Budget: time.Minute, Facts: f}, nil)
	mustBe(t, err, respaldo.Refused, "restarted or stopped", "run again")

	testOwnView(t, b, f)

	stale, err := net.Listen("unix", b.path("stale.sock"))
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	_, err = Connect(context.Background(), Options{DefaultsFile: b.write(t, "stale.cnf", ""), Socket: b.path("stale.sock")}, nil)
	mustBe(t, err, respaldo.Unreachable, "no server answers at "+b.path("stale.sock"))
}
