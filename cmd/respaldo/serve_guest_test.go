//go:build guest

package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// A private server on every kind of image, as a user has it: it shows what was, lets people
// in as the origin did, is in nobody's way, and leaves nothing.
func TestServe(t *testing.T) {
	for _, c := range []struct{ volume, server string }{
		{"thin-ext4", "mariadb-10.11"},
	} {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			s := newStand(t, c.volume, c.server, standOptions{})
			s.server.Exec(t, "CREATE USER ana@localhost IDENTIFIED BY 'her own'", "GRANT SELECT, INSERT ON shop.* TO ana@localhost",
				"CREATE USER ana@'127.0.0.1' IDENTIFIED BY 'her own'", "GRANT SELECT, INSERT ON shop.* TO ana@'127.0.0.1'")
			s.before = guest.Look(t)
			s.servesNow(t)
			s.before.NothingLeft(t)
		})
	}
}

// serving is a respaldo serve that runs.
type serving struct {
	backup.Served
	s              *stand
	cmd            *exec.Cmd
	stdout, stderr *lockedBuffer
}

// serve starts respaldo serve and returns when it says that it is ready.
func (s *stand) serve(args ...string) *serving {
	s.t.Helper()
	v := &serving{s: s, cmd: s.command(append([]string{"serve", "--json"}, args...)...), stdout: &lockedBuffer{}, stderr: &lockedBuffer{}}
	v.cmd.Stdout, v.cmd.Stderr = v.stdout, v.stderr
	if err := v.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { v.cmd.Wait(); close(done) }()
	s.t.Cleanup(func() { v.cmd.Process.Kill(); <-done })
	guest.Eventually(s.t, 2*testLimit, func() error {
		select {
		case <-done:
			s.t.Fatalf("respaldo serve %v has ended\n%s%s", args, v.stdout, v.stderr)
		default:
		}
		return json.Unmarshal(v.stdout.Bytes(), &v.Served)
	})
	return v
}

// open connects as a user would: over the socket without an address.
func (v *serving) open(user, password, address string) *sql.DB {
	c := driver.NewConfig()
	c.Net, c.Addr, c.User, c.Passwd, c.Logger = "unix", v.Socket, user, password, &driver.NopLogger{}
	if address != "" {
		c.Net, c.Addr = "tcp", address
	}
	connector, err := driver.NewConnector(c)
	if err != nil {
		v.s.t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	v.s.t.Cleanup(func() { db.Close() })
	return db
}

// customers counts the rows that a user sees.
func (v *serving) customers(db *sql.DB) int {
	v.s.t.Helper()
	var n int
	if err := db.QueryRow("SELECT COUNT(*) FROM shop.customers").Scan(&n); err != nil {
		v.s.t.Error(err)
	}
	return n
}

// ends waits for its end and asserts the exit code.
func (v *serving) ends(code int) {
	v.s.t.Helper()
	guest.Eventually(v.s.t, testLimit, func() error {
		if v.cmd.ProcessState == nil {
			return fmt.Errorf("still running:\n%s", v.stderr)
		}
		return nil
	})
	if got := v.cmd.ProcessState.ExitCode(); got != code {
		v.s.t.Errorf("respaldo serve ended with exit code %d, not %d\n%s", got, code, v.stderr)
	}
}

func (s *stand) servesNow(t *testing.T) {
	v := s.serve("now")
	s.server.Exec(t, "INSERT INTO shop.customers VALUES (1000, 'came later')")
	tcp := v.open("ana", "her own", fmt.Sprintf("%s:%d", v.Bind, v.Port))
	if n := v.customers(tcp); n != 200 {
		t.Errorf("%d customers are served, not the 200 of then", n)
	}
	if n := v.customers(v.open("ana", "her own", "")); n != 200 {
		t.Errorf("%d customers over the socket", n)
	}
	if err := v.open("ana", "wrong", "").Ping(); err == nil {
		t.Error("a wrong password does")
	}
	if _, err := tcp.Exec("INSERT INTO shop.customers VALUES (1, 'x')"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a write into what is read-only: %v", err)
	}
	info, err := os.Stat(v.Login)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("root's option file: %v, %v", info, err)
	}
	made := s.backup("--prove", "none") // meanwhile
	if made.Backup.ID == "" || v.customers(tcp) != 200 {
		t.Errorf("a backup while it is served: %+v", made)
	}
	s.ok("stop")
	v.ends(0)
}

// lockedBuffer is read while a program writes into it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *lockedBuffer) String() string { return string(b.Bytes()) }
