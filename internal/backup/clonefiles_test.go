package backup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/target"
	"github.com/respaldo-backup/respaldo/internal/transfer"
)

// arrivalAt is a clone of a server that goes into an empty directory of the test.
func arrivalAt(t *testing.T) arrival {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mysql")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return arrival{Manifest: respaldo.Manifest{Server: "shop", ServerID: "ours", Host: "db1"}, Targets: map[string]string{dataName: dir},
		Server: CloneServer{Bind: "127.0.0.1", Port: 3306}, Session: "run 1"}
}

func (a arrival) put(t *testing.T, suffix, text string) {
	t.Helper()
	if err := os.WriteFile(a.Targets[dataName]+suffix, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Only an earlier clone of the same server is brought up to date.
func TestCheckRefresh(t *testing.T) {
	record := func(server string, replica bool) func(arrival) error {
		return func(a arrival) error {
			a.Manifest.ServerID, a.Replica = server, nil
			if replica {
				a.Replica = &mysql.Source{}
			}
			return a.writeRecord()
		}
	}
	text := func(name, content string) func(arrival) error {
		return func(a arrival) error {
			return os.WriteFile(a.Targets[dataName]+name, []byte(content), 0o600)
		}
	}
	for _, c := range []struct {
		what    string
		there   func(arrival) error
		replica bool
		kind    respaldo.Kind
		says    string // "" is no refusal
	}{
		{"nothing", func(arrival) error { return nil }, false, respaldo.NotFound, "no earlier clone"},
		{"one that was cut short", text("/"+target.IncompleteMarker, ""), false, 0, ""},
		{"its own", record("ours", false), false, 0, ""},
		{"its own, now a replica", record("ours", false), true, 0, ""},
		{"a replica, again", record("ours", true), true, 0, ""},
		{"a replica, none any more", record("ours", true), false, respaldo.Refused, "replica"},
		{"another server's", record("theirs", false), false, respaldo.Refused, "another server"},
		{"a newer respaldo's", text(".respaldo.json", `{"format":99,"server_id":"ours"}`), false, respaldo.Refused, "newer respaldo"},
		{"somebody's own file", text(".respaldo.json", "notes"), false, respaldo.Refused, "not what respaldo writes"},
	} {
		a := arrivalAt(t)
		if err := c.there(a); err != nil {
			t.Fatal(err)
		}
		if a.Refresh = true; c.replica {
			a.Replica = &mysql.Source{}
		}
		err := a.checkRefresh()
		if (err == nil) != (c.says == "") || err != nil && (respaldo.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || len(respaldo.HintsOf(err)) == 0) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// A file of somebody else's beside the directory is not replaced, unless that is forced.
func TestFilesBesideACloneStay(t *testing.T) {
	for _, c := range []struct {
		what, name, text string
		start, force     bool
		refused          bool
	}{
		{"an option file", ".cnf", "[mysqld]\n", true, false, true},
		{"an option file, and no server asked for", ".cnf", "[mysqld]\n", false, false, false},
		{"an option file, forced", ".cnf", "[mysqld]\n", true, true, false},
		{"an option file of ours", ".cnf", optionFileHead + " of server shop\n[mysqld]\n", true, false, false},
		{"a file with the record's name", ".respaldo.json", "{}", false, false, true},
	} {
		a := arrivalAt(t)
		a.put(t, c.name, c.text)
		a.Start, a.Force = c.start, c.force
		if err := a.refuseBeside(); (err != nil) != c.refused || err != nil && respaldo.KindOf(err) != respaldo.Refused {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// said keeps what is reported.
type said struct{ warnings []string }

func (s *said) Step(string, string)        {}
func (s *said) Warn(message string)        { s.warnings = append(s.warnings, message) }
func (s *said) Progress(respaldo.Progress) {}

// A refresh leaves the option file to its user, and goes by what that says. What was no
// replica's is set aside for one.
func TestOptionFileOfAnEarlierClone(t *testing.T) {
	first := arrivalAt(t)
	first.Start = true
	report := &said{}
	op := &operation{Site: &Site{Report: report}}
	if err := op.writeOptions(first); err != nil {
		t.Fatal(err)
	}
	if err := first.writeRecord(); err != nil {
		t.Fatal(err)
	}
	dir := first.Targets[dataName]
	first.put(t, ".cnf", "[mysqld]\ndatadir="+dir+"\nsocket=elsewhere.sock\nport = 3400\nbind-address=0.0.0.0\n")
	if !first.complete() || !first.keeps() {
		t.Error("after its connection was cut, a sender does not find its own clone")
	}
	again := first
	again.Session, again.Refresh = "run 2", true
	if again.complete() {
		t.Error("another run's clone is taken for this one's")
	}
	d, at, err := cloneDaemon(again)
	if err != nil || d.Socket != filepath.Join(dir, "elsewhere.sock") || at.Port != 3400 || at.Bind != "0.0.0.0" {
		t.Errorf("it listens at %s and %+v, %v", d.Socket, at, err)
	}
	moved, _ := os.ReadFile(dir + ".cnf")
	again.put(t, ".cnf", "[mysqld]\ndatadir=/var/lib/mysql\nsocket=s\n")
	if _, _, err := cloneDaemon(again); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "another data directory") {
		t.Errorf("an option file of another server: %v", err)
	}
	again.put(t, ".cnf", string(moved))
	again.Replica = &mysql.Source{Host: "db1"}
	if again.keeps() {
		t.Error("a replica with the option file of none")
	}
	if err := op.writeOptions(again); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(dir + ".cnf")
	if err != nil || !strings.Contains(string(text), "\nread_only=ON\n") || !strings.Contains(string(text), "\nrelay_log="+mysql.RelayLog+"\n") {
		t.Errorf("%s\n%v", text, err)
	}
	if old, err := os.ReadFile(dir + ".cnf.old"); err != nil || !strings.Contains(string(old), "3400") || len(report.warnings) != 1 {
		t.Errorf("the old one: %s, %v, %q", old, err, report.warnings)
	}
	if err := again.writeRecord(); err != nil {
		t.Fatal(err)
	}
	if again.Session = "run 3"; !again.keeps() {
		t.Error("a replica's option file is written anew at each refresh")
	}
}

// A socket that somebody listens on is not taken away from them.
func TestSocketOfAnother(t *testing.T) {
	a := arrivalAt(t)
	dir := filepath.Dir(a.Targets[dataName])
	path := filepath.Join(dir, "s")
	if err := a.refuseSocket(path); err != nil {
		t.Error(err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := a.refuseSocket(path); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a living one: %v", err)
	}
	if err := a.refuseSocket(filepath.Join(a.Targets[dataName], strings.Repeat("x", 100))); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a long one: %v", err)
	}
}

func TestOptionsThatAreNotTheUsers(t *testing.T) {
	for _, line := range []string{"socket=/x", "port=1", "bind-address=::", "loose-datadir=/x", "pid-file=x", "log_err=x", "relay_log=x", "[client]", "!include /x", "a=1\nsocket=x", ""} {
		c := CloneServer{Options: []string{line}}
		if err := c.checkOptions(); respaldo.KindOf(err) != respaldo.Usage {
			t.Errorf("%q: %v", line, err)
		}
	}
	good := CloneServer{Options: []string{"innodb_buffer_pool_size=8G", "loose-port-open-timeout=3", "skip_name_resolve", "init_connect=SET NAMES 'utf8' # x"}}
	if err := good.checkOptions(); err != nil {
		t.Error(err)
	}
}

// pipes is a connection to a receiver in this process.
type pipes struct {
	io.Reader
	io.Writer
	close func()
}

func (p pipes) Close() error { p.close(); return nil }

// A connection that was cut when all was there: its sender has done what remains, another
// run's is refused as before.
func TestFinishAfterACut(t *testing.T) {
	a := arrivalAt(t)
	if err := a.writeRecord(); err != nil {
		t.Fatal(err)
	}
	a.put(t, "/ibdata1", "data")
	dir := t.TempDir()
	site := &Site{Server: Receivers, Program: "test", StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Report: &said{}}
	opener := transfer.Opener{Node: "there", Open: func(ctx context.Context) (transfer.Conn, error) {
		theirIn, out := io.Pipe()
		in, theirOut := io.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			site.Receive(ctx, theirIn, theirOut)
			theirOut.Close()
		}()
		return pipes{in, out, func() { out.Close(); in.Close(); <-ended }}, nil
	}}
	op := &operation{Site: &Site{Program: "test", Report: &said{}}}
	cut := errors.New("the connection broke")
	var done Cloned
	if err := op.finishAgain(t.Context(), opener, a, &done, cut); err != nil || done.Targets[dataName] != a.Targets[dataName] {
		t.Errorf("its own: %v, %+v", err, done)
	}
	a.Session = "run 2"
	if err := op.finishAgain(t.Context(), opener, a, &done, cut); err != cut {
		t.Errorf("another run's: %v", err)
	}
	if left, err := os.ReadDir(site.StateDir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What a killed receiver has left goes with any server's cleanup.
func TestCleanupSweepsReceivers(t *testing.T) {
	dir := t.TempDir()
	site := &Site{Server: "shop", StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Run: run.Local{}, Log: slog.New(slog.DiscardHandler), Report: &said{}}
	l, err := ledger.OpenSide(site.StateDir, Receivers, "receive", site.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	dead := &operation{Site: site, scope: l.Server(), ledger: l}
	left := filepath.Join(dead.socketDir(), l.Run(), "instance")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	alive, err := site.Cleanup(t.Context())
	if err != nil || len(alive.Removed) != 0 || !exists(left) {
		t.Errorf("of a living one: %v, %+v", err, alive)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	swept, err := site.Cleanup(t.Context())
	if err != nil || len(swept.Removed) != 1 || exists(left) {
		t.Errorf("of a dead one: %v, %+v", err, swept)
	}
}
