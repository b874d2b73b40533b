package mysql

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// notProved proves an image that must fail, and returns its problems.
func notProved(t *testing.T, r InstanceRequest, level respaldo.ProveLevel) string {
	t.Helper()
	proof, err := Prove(t.Context(), r, level)
	if respaldo.KindOf(err) != respaldo.NotProved {
		t.Fatalf("error %v of kind %d", err, respaldo.KindOf(err))
	}
	if proof.OK || len(proof.Problems) == 0 || proof.Level != level {
		t.Errorf("proof %+v", proof)
	}
	log := filepath.Join(r.Scratch, InstanceLog)
	if hints := strings.Join(respaldo.HintsOf(err), " "); !strings.Contains(hints, log) {
		t.Errorf("the hint %q does not name the log", hints)
	}
	if content, err := os.ReadFile(log); err != nil || len(content) == 0 {
		t.Errorf("the log is not kept: %v", err)
	}
	return strings.Join(proof.Problems, "\n")
}

// damage overwrites a part of a file.
func damage(t *testing.T, file string, at, length int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	garbage := make([]byte, length)
	for n := range garbage {
		garbage[n] = 0xA5
	}
	if _, err := f.WriteAt(garbage, at); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedImageIsNotProved(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-10.5", "mariadb-11.8", "mysql-9.7"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r := o.clean.request(t)
			damage(t, filepath.Join(r.Dirs[o.data], "shop/orders.ibd"), 4*16<<10, 4*16<<10)
			if problems := notProved(t, r, respaldo.ProveFull); !strings.Contains(problems, "orders") {
				t.Errorf("problems: %s", problems)
			}
			o.unharmed(t)
		})
	}
}

func TestTruncatedImageIsNotProved(t *testing.T) {
	t.Parallel()
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r := o.clean.request(t)
			if err := os.Truncate(filepath.Join(r.Dirs[o.data], "ibdata1"), 100<<10); err != nil {
				t.Fatal(err)
			}
			problems := notProved(t, r, respaldo.ProveQuick)
			if !strings.Contains(problems, "does not start") || !strings.Contains(problems, "ibdata1") && !strings.Contains(problems, "system tablespace") {
				t.Errorf("problems: %s", problems)
			}
		})
	}
}

// A damaged table is named, and the others are checked all the same.
func TestDamagedMyISAMTableIsNamed(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mysql-5.6")
	r := o.clean.request(t)
	if err := os.Truncate(filepath.Join(r.Dirs[o.data], "shop/old.MYD"), 7); err != nil {
		t.Fatal(err)
	}
	proof, err := Prove(t.Context(), r, respaldo.ProveQuick)
	if respaldo.KindOf(err) != respaldo.NotProved {
		t.Fatal(err)
	}
	for _, p := range proof.Problems {
		if !strings.HasPrefix(p, "shop.old: ") {
			t.Errorf("problem %q", p)
		}
	}
	if proof.Tables < 20 {
		t.Errorf("%d tables were checked", proof.Tables)
	}
}

// An image that starts and recovers but is not at the position of the lock is worth
// nothing for rolling forward, and is not proved.
func TestImageElsewhereThanTheLockIsNotProved(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-10.11", "mysql-5.6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			at := o.clean.manifest.Quiesced.Coordinates
			i := startInstance(t, o.clean.request(t))
			for _, c := range []struct {
				name string
				lock respaldo.Coordinates
				want string
			}{
				{"later", o.earlier, "8 transaction(s) later"},
				{"earlier", respaldo.Coordinates{File: at.File, Position: at.Position + 1000, GTIDSet: at.GTIDSet}, "the image's binlog ends at"},
				{"between", respaldo.Coordinates{File: at.File, Position: at.Position - 31, GTIDSet: at.GTIDSet}, "inside a transaction"},
				{"in another file", respaldo.Coordinates{File: "binlog.000099", Position: 4, GTIDSet: at.GTIDSet}, "does not have that binlog"},
				{"other GTIDs", respaldo.Coordinates{File: at.File, Position: at.Position, GTIDSet: o.earlier.GTIDSet}, "GTID set " + o.earlier.GTIDSet},
			} {
				i.request.Manifest.Quiesced.Coordinates = c.lock
				got, err := i.Coordinates(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				problems, err := i.compare(t.Context(), got)
				if err != nil {
					t.Fatal(err)
				}
				if text := strings.Join(problems, "\n"); !strings.Contains(text, c.want) {
					t.Errorf("%s: problems %q lack %q", c.name, text, c.want)
				}
			}
			// As if recovery had finished a statement, which MariaDB then logs.
			i.request.Manifest.Quiesced.Coordinates = at
			if _, err := i.DB().Exec("CREATE TABLE shop.finished (id INT)"); err != nil {
				t.Fatal(err)
			}
			problems, err := i.compare(t.Context(), at)
			if err != nil || !strings.Contains(strings.Join(problems, "\n"), "recovery itself wrote 1 statement(s)") {
				t.Errorf("problems %v, %v", problems, err)
			}
		})
	}
}

// A server that writes its redo log once a second leaves images whose binlog is ahead of
// their data. Stopped in the middle of its work it always does.
func TestImageWithoutTheLastCommitsIsNotProved(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-10.11", "mysql-5.6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			r := scatter(t, name, []string{"--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0"}, func(o *origin) error {
				if err := o.exec(t.Context(), "INSERT INTO shop.orders (note) VALUES ('InnoDB has it')"); err != nil {
					return err
				}
				end, _ := o.redo(t)
				waitFor(t, "the redo log was written", func() bool {
					_, written := o.redo(t)
					return written >= end
				})
				return o.crashUnderLoad()
			})
			r.Manifest.Quiesced.Coordinates = respaldo.Coordinates{} // they are of before the load
			if problems := notProved(t, r, respaldo.ProveQuick); !strings.Contains(problems, "InnoDB lacks the last") {
				t.Errorf("problems: %s", problems)
			}
		})
	}
}

// redo is how far InnoDB's log goes, and how far of it is in the file.
func (o *origin) redo(t *testing.T) (end, written int) {
	t.Helper()
	status, err := queryRows(t.Context(), o.db, "SHOW ENGINE INNODB STATUS")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(status[0]["status"]) {
		fmt.Sscanf(line, "Log sequence number %d", &end)
		fmt.Sscanf(line, "Log flushed up to %d", &written)
	}
	if end == 0 || written == 0 {
		t.Fatal("InnoDB does not tell the state of its log")
	}
	return end, written
}

// A torn transaction at the end of the last binlog, as a crash leaves it, is not part of
// the image's coordinates.
func TestTornBinlogTailIsNotCounted(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	at := o.clean.manifest.Quiesced.Coordinates
	content, err := os.ReadFile(filepath.Join(o.clean.copy, at.File))
	if err != nil {
		t.Fatal(err)
	}
	whole := content[:at.Position] // without the shutdown's stop event
	for _, c := range []struct {
		name string
		file string
		want int64
	}{
		{"whole", string(whole), int64(at.Position)},
		{"cut in an event", string(whole[:at.Position-5]), -1},
		{"zeros follow", string(whole) + strings.Repeat("\x00", 5000), int64(at.Position)},
		{"commit missing", string(whole[:at.Position-31]), -1},
		{"just begun", "\xfebin", 4},
		{"empty", "", 0},
	} {
		scan, err := scanBinlog(strings.NewReader(c.file), int64(o.earlier.Position))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		switch {
		case c.want >= 0 && scan.End != c.want:
			t.Errorf("%s: ends at %d, not at %d", c.name, scan.End, c.want)
		case c.want > 4 && (scan.Groups != 8 || !scan.Boundary):
			t.Errorf("%s: %+v", c.name, scan)
		case c.want < 0 && (scan.Groups != 7 || scan.End >= int64(len(c.file))):
			t.Errorf("%s: %+v", c.name, scan)
		}
	}
	if _, err := scanBinlog(strings.NewReader("something else"), 0); err == nil {
		t.Error("a file that is no binlog was read")
	}
}

// A proof that is cancelled (a snapshot is about to overflow, Ctrl-C) leaves nothing that
// goes on writing, whatever it is about: here it reads a binlog that does not end, and its
// server is stopped, so that a polite end would take all of stopTimeout.
func TestCancelledProofEndsAtOnce(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mysql-5.6")
	r := o.clean.request(t)
	binlogs := o.binlogs(t, o.clean.copy)
	binlog := filepath.Join(r.Dirs[o.data], binlogs[len(binlogs)-1])
	why := errors.New("the snapshot is about to overflow")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	started, ready, ended := make(chan int, 1), make(chan error, 1), make(chan error, 1)
	r.Started = func(pid int) { started <- pid }
	r.Ready = func() { ready <- errors.Join(os.Remove(binlog), unix.Mkfifo(binlog, 0o600)) }
	go func() {
		_, err := Prove(ctx, r, respaldo.ProveQuick)
		ended <- err
	}()
	select {
	case err := <-ready:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-ended:
		t.Fatalf("the proof ended before it was cancelled: %v", err)
	}
	var writer int
	waitFor(t, "the binlog is read", func() (opened bool) {
		var err error
		writer, err = unix.Open(binlog, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err == nil
	})
	if err := os.Remove(binlog); err != nil { // nobody else opens it
		t.Error(err)
	}
	pid := <-started
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Error(err)
	}
	cancel(why)
	tooLate := time.After(stopTimeout / 2)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for alive := true; alive; alive = alive && unix.Kill(pid, 0) == nil {
		select {
		case <-tooLate:
			t.Error("the server on the image lives on")
			alive = false
		case <-tick.C:
		}
	}
	unix.Close(writer)
	if err := <-ended; !errors.Is(err, why) || respaldo.KindOf(err) == respaldo.NotProved {
		t.Errorf("error %v", err)
	}
}

func TestProveNoneIsUnproved(t *testing.T) {
	proof, err := Prove(t.Context(), InstanceRequest{}, respaldo.ProveNone)
	if err != nil || proof.OK || proof.Level != respaldo.ProveNone || !proof.At.IsZero() {
		t.Errorf("%+v, %v", proof, err)
	}
}

// With an account, the image's own grants hold.
func TestInstanceWithAccountChecksGrants(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mysql-5.6")
	r := o.clean.request(t)
	r.Account = &Account{User: "root", Password: "wrong"}
	_, err := StartInstance(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "Access denied") {
		t.Errorf("error %v", err)
	}
	r.Account = &Account{User: "root"}
	i := startInstance(t, r)
	if _, err := i.DB().Exec("CREATE USER somebody@localhost"); err != nil { // refused under --skip-grant-tables
		t.Error(err)
	}
}

// The quick sample has every system table, is spread over the others, and differs from
// image to image.
func TestSampleIsSpread(t *testing.T) {
	all := []table{{schema: "mysql", name: "db", system: true}}
	for n := range 1000 {
		all = append(all, table{schema: "shop", name: fmt.Sprintf("t%04d", n)})
	}
	taken := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	chosen := sample(all, taken)
	if len(chosen) != 1+sampleTables || chosen[0].name != "db" {
		t.Fatalf("chose %v", chosen)
	}
	seen, parts := map[string]bool{}, map[byte]bool{}
	for _, c := range chosen[1:] {
		seen[c.name], parts[c.name[2]] = true, true
	}
	if len(seen) != sampleTables || len(parts) != 10 {
		t.Errorf("the sample is not spread: %v", chosen)
	}
	if again := sample(all, taken); fmt.Sprint(again) != fmt.Sprint(chosen) {
		t.Error("the same image gets another sample")
	}
	if other := sample(all, taken.Add(time.Hour)); fmt.Sprint(other) == fmt.Sprint(chosen) {
		t.Error("the next image gets the same sample")
	}
}
