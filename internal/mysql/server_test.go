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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// patience is how long a test waits for what must happen; it bounds, it measures nothing.
const patience = 30 * time.Second

// starting bounds how many servers start at once: they want both processors.
var starting = make(chan struct{}, 2)

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

// waitFor polls a condition of a server until it holds.
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
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBox(t, name, func(b *box, spec *servers.Spec) {
				spec.Port = freePort(t)
				elsewhere(t, b, spec)
			})
			b.exec(t, "CREATE DATABASE d",
				"CREATE TABLE d.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT) ENGINE=InnoDB",
				"CREATE TABLE d.other (id INT AUTO_INCREMENT PRIMARY KEY, v INT) ENGINE=InnoDB",
				"INSERT INTO d.t (v) VALUES (1), (2), (3)")
			t.Run("connect", func(t *testing.T) { testConnect(t, b) })
			t.Run("process", func(t *testing.T) { testProcess(t, b) })
			t.Run("facts", func(t *testing.T) { testFacts(t, b) })
			t.Run("layout", func(t *testing.T) { testLayout(t, b) })
			t.Run("privileges", func(t *testing.T) { testPrivileges(t, b) })
			t.Run("quiesce", func(t *testing.T) { testQuiesce(t, b) })
			t.Run("TLS", func(t *testing.T) { testTLS(t, b) })
			t.Run("quiesce over TCP", func(t *testing.T) { testQuiesceTCP(t, b) })
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

// testTLS has a server with certificates that it made itself (MySQL) or without TLS (5.6,
// and MariaDB unless it makes one in memory).
func testTLS(t *testing.T, b *box) {
	connect := func(t *testing.T, lines string) (cipher string, err error) {
		t.Helper()
		file := b.write(t, "tls.cnf", fmt.Sprintf("[client]\nhost=127.0.0.1\nport=%d\nuser=bob\npassword='it\\'s \"#secret'\n%s\n", b.running.Spec().Port, lines))
		s, err := Connect(context.Background(), Options{DefaultsFile: file}, nil)
		if err != nil {
			return "", err
		}
		defer s.Close()
		status, err := queryRows(context.Background(), s.DB(), "SHOW STATUS LIKE 'Ssl_cipher'")
		if err != nil {
			t.Fatal(err)
		}
		return status[0]["value"], nil
	}
	have, err := queryRows(context.Background(), b.root, "SHOW VARIABLES LIKE 'have_ssl'")
	if err != nil {
		t.Fatal(err)
	}
	capable := b.name == "mysql-9.7" || have[0]["value"] == "YES"
	for _, c := range []struct {
		lines     string
		encrypted bool
		refused   string
	}{
		{"", true, ""},
		{"ssl-mode=DISABLED", false, ""},
		{"skip-ssl", false, ""},
		{"ssl", true, ""},
		{"ssl-mode=REQUIRED\ntls-version=TLSv1.2", true, ""},
		{"ssl-ca=" + b.path("data/ca.pem"), true, ""},
		{"ssl-mode=VERIFY_CA\nssl-ca=" + b.path("data/ca.pem") + "\nssl-cert=" + b.path("data/client-cert.pem") + "\nssl-key=" + b.path("data/client-key.pem"), true, ""},
		{"ssl-mode=VERIFY_CA", false, "cannot speak TLS"},
		{"ssl-mode=VERIFY_IDENTITY\nssl-ca=" + b.path("data/ca.pem"), false, "cannot speak TLS"},
	} {
		if b.name != "mysql-9.7" && strings.Contains(c.lines, "ssl-ca") || !capable && c.refused != "" {
			continue // has no files
		}
		cipher, err := connect(t, c.lines)
		switch {
		case c.refused != "":
			mustBe(t, err, respaldo.Unreachable, c.refused, "ssl-ca")
		case !capable && c.encrypted && c.lines != "":
			mustBe(t, err, respaldo.Unreachable, "offers no TLS", "ssl-mode=PREFERRED")
		case err != nil:
			t.Errorf("%q: %s", c.lines, explained(err))
		case (cipher != "") != (c.encrypted && capable):
			t.Errorf("%q: cipher %q", c.lines, cipher)
		}
	}
}

// testQuiesceTCP loses a connection that is encrypted where the server can.
func testQuiesceTCP(t *testing.T, b *box) {
	b.exec(t, "GRANT ALL ON *.* TO 'bob'@'%'")
	file := b.write(t, "tcp-bob.cnf", fmt.Sprintf("[client]\nuser=bob\npassword='it\\'s \"#secret'\nport=%d\nprotocol=tcp\n", b.running.Spec().Port))
	s, err := Connect(context.Background(), Options{DefaultsFile: file}, nil)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer s.Close()
	f := mustFacts(t, s)
	if _, err := s.Quiesce(context.Background(), quiet(f, respaldo.LockGlobal), func(context.Context, respaldo.Coordinates) error { return nil }); err != nil {
		t.Error(explained(err))
	}
	testKilled(t, b, s, quiet(f, respaldo.LockGlobal))
}

// testProcess checks that the process is found over socket and TCP, and that whatever
// stands between us and the server is refused.
func testProcess(t *testing.T, b *box) {
	ctx := context.Background()
	for _, o := range []Options{{Socket: b.socket()}, {Port: b.running.Spec().Port}} {
		o.DefaultsFile = b.write(t, "bob.cnf", `[respaldo]
user=bob
password='it\'s "#secret'`)
		s, err := Connect(ctx, o, nil)
		if err != nil {
			t.Fatal(explained(err))
		}
		defer s.Close()
		p, err := s.findProcess(ctx, map[string]string{"datadir": b.data, "pid_file": b.socket() + ".pid"})
		if err != nil {
			t.Fatal(explained(err))
		}
		if p.PID != b.running.PID() || !p.Alive() || p.UID != os.Geteuid() || p.DataDir != b.data {
			t.Errorf("found %+v, want process %d", p, b.running.PID())
		}
		program := p.Binary.Argv[len(p.Binary.Argv)-1]
		if base := filepath.Base(program); base != "mysqld" && base != "mariadbd" {
			t.Errorf("program %q", p.Binary.Argv)
		}
		if len(p.Args) == 0 || !strings.HasPrefix(p.Args[0], "--") {
			t.Errorf("its options: %q", p.Args)
		}

		forwarded := o
		if o.Socket != "" {
			forwarded.Socket = forward(t, "unix", b.path("proxy.sock"), o.Socket)
		} else {
			_, port, _ := net.SplitHostPort(forward(t, "tcp", "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d", o.Port)))
			fmt.Sscan(port, &forwarded.Port)
		}
		through, err := Connect(ctx, forwarded, nil)
		if err != nil {
			t.Fatal(explained(err))
		}
		defer through.Close()
		_, err = through.Facts(ctx)
		mustBe(t, err, respaldo.Refused, "not a MySQL or MariaDB server on this machine", "own socket")
	}
}

// forward is a tunnel as ssh or a container's published port make it; it returns its address.
func forward(t *testing.T, network, address, to string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pipe := func(from, to net.Conn) {
		defer to.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial(network, to)
			if err != nil {
				c.Close()
				continue
			}
			go pipe(c, s)
			go pipe(s, c)
		}
	}()
	return l.Addr().String()
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

// testOwnView starts the server again such that it sees other files under its data
// directory's path than we do, as in a container.
func testOwnView(t *testing.T, b *box, f *Facts) {
	seen, socket := b.mkdir(t, "seen"), b.path("own.sock")
	argv := append(slices.Clone(f.Process.Binary.Argv), f.Process.Args...)
	argv = append(argv, "--datadir="+seen, "--socket="+socket, "--pid-file="+b.path("own.pid"), "--user=root") // root of its own namespace
	startCommand(t, socket, run.Cmd{
		Argv: append([]string{"/bin/sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, b.data, seen}, argv...),
		Env:  f.Process.Binary.Env,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		},
	})
	s, err := Connect(context.Background(), Options{DefaultsFile: b.write(t, "own.cnf", "[client]\nuser=root\npassword=\n"), Socket: socket}, nil)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer s.Close()
	_, err = s.Facts(context.Background())
	mustBe(t, err, respaldo.Refused, "is not the "+seen+" that we see", "container")
}

// startCommand runs a server that package servers has no way to start, until the test ends.
func startCommand(t *testing.T, socket string, c run.Cmd) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		r, err := run.Local{}.Run(ctx, c)
		done <- fmt.Errorf("%w: %s %s", err, r.Stdout, r.Stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	waitFor(t, "the server at "+socket, func() bool {
		select {
		case err := <-done:
			done <- err
			t.Fatal(err)
		default:
		}
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}
