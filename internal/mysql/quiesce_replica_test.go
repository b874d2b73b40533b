package mysql

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// replicas are the ways in which a replica can follow, and what each needs in each mode.
var replicas = []struct {
	pairSpec
	// paused are the modes in which its appliers must be stopped for the instant.
	paused string
	// always is what is done without RESPALDO_SOAK: modes, and "paths" for those that end a
	// pause; "slow" are those of them that wait for a second to pass.
	always string
}{
	{pairSpec{name: "mysql-5.6", replica: []string{"--relay-log-info-repository=FILE"}}, "none global", "none paths"},
	{pairSpec{name: "mysql-5.6", replica: []string{"--relay-log-info-repository=TABLE"}}, "", ""},
	{pairSpec{name: "mysql-5.6", gtid: true, replica: []string{"--relay-log-info-repository=FILE"}}, "", ""},
	{pairSpec{name: "mysql-9.7", gtid: true, replica: []string{"--replica-parallel-workers=4"}}, "global", ""},
	{pairSpec{name: "mysql-9.7", replica: []string{"--replica-parallel-workers=4", "--replica-preserve-commit-order=OFF"}}, "none global", ""},
	{pairSpec{name: "mysql-9.7", sources: 2, replica: []string{"--replica-parallel-workers=4", "--replica-preserve-commit-order=OFF"}}, "none global", ""},
	{pairSpec{name: "mariadb-10.5"}, "none backup global", ""},
	{pairSpec{name: "mariadb-10.11", sources: 2}, "none backup global", "paths slow"},
	{pairSpec{name: "mariadb-10.11", gtid: true}, "", ""},
	{pairSpec{name: "mariadb-11.8", gtid: true, replica: []string{"--slave-parallel-threads=4", "--slave-parallel-mode=optimistic"}}, "backup global", ""},
}

// A replica that applies under load is quiesced in each mode, and its files are copied in that
// instant: they hold the transactions up to the position that is told, and no other.
func TestReplicaImageIsAtItsUpstream(t *testing.T) {
	t.Parallel()
	for _, c := range replicas {
		does := func(what string) bool {
			return os.Getenv("RESPALDO_SOAK") != "" || slices.Contains(strings.Fields(c.always), what)
		}
		if c.always == "" && !does("") {
			continue
		}
		t.Run(strings.Join(append([]string{c.name}, c.replica...), " "), func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			p := startPair(t, c.pairSpec)
			if c.gtid {
				placed(t, mustFacts(t, p.server), respaldo.RelayLogRole, p.replica.path("relay"))
			}
			stop := p.load(t)
			for mode := range strings.FieldsSeq("none backup global") {
				if mode := respaldo.LockMode(mode); does(string(mode)) && (mode != respaldo.LockBackup || strings.HasPrefix(c.name, "mariadb")) {
					t.Run(string(mode), func(t *testing.T) {
						testReplicaImage(t, p, mode, strings.Contains(c.paused, string(mode)))
					})
				}
			}
			stop()
			if strings.Contains(c.paused, "none") && does("paths") {
				t.Run("paths", func(t *testing.T) { testPausePaths(t, p, does("slow")) })
			}
		})
	}
}

func testReplicaImage(t *testing.T, p *pair, mode respaldo.LockMode, mustPause bool) {
	f := coveredFacts(t, p.server)
	if f.pausing(mode) != mustPause {
		t.Errorf("pausing %t: %s", f.pausing(mode), f.pauseReason(mode))
	}
	image := filepath.Join(t.TempDir(), "image")
	q, err := p.quiesced(t.Context(), quiet(f, mode), func(context.Context, respaldo.Coordinates) error {
		if running := len(mustFacts(t, p.server).applying()) > 0; running == mustPause {
			t.Errorf("the appliers run: %t", running)
		}
		return p.replica.freeze(image)
	})
	if err != nil {
		t.Fatal(explained(err))
	}
	told := q.Coordinates.Upstream
	m := respaldo.Manifest{Version: f.Version, Variables: f.Variables, Layout: f.Layout, BinlogOn: true, Binary: f.Process.Binary, Quiesced: q}
	i, err := StartInstance(t.Context(), InstanceRequest{Manifest: m, Dirs: map[string]string{p.replica.data: image}, Scratch: shortDir(t)})
	if err != nil {
		t.Fatal(explained(err))
	}
	defer stopInstance(t, i)
	inside, err := i.upstream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inside) != len(p.sources) || len(told) > 0 && len(told) != len(inside) {
		t.Fatalf("told %+v, the image has %+v", told, inside)
	}
	for n := range p.sources {
		var rows int
		if err := i.DB().QueryRow(fmt.Sprintf("SELECT COUNT(*) FROM d%d.t", n+1)).Scan(&rows); err != nil {
			t.Fatal(err)
		}
		for _, at := range [][]respaldo.Upstream{told, inside} {
			for _, u := range at {
				if u.Channel == p.channel[n] && u.Inexact == "" {
					p.upTo(t, n, u, rows)
				}
			}
		}
		if exact := append(told, inside...); len(exact) == 0 || exact[0].Inexact != "" {
			t.Errorf("no exact upstream: %+v", exact)
		}
	}
}

// quiesced quiesces the replica, with nobody to note that its appliers stop.
func (p *pair) quiesced(ctx context.Context, req QuiesceRequest, fn func(context.Context, respaldo.Coordinates) error) (respaldo.Quiesced, error) {
	return p.server.QuiesceReplica(ctx, req, unnoted, fn)
}

func unnoted(_ Pause, stop func() error, _ func(context.Context) error) error { return stop() }

// freeze copies a server's files as they are at one instant, as a snapshot does: none of
// its threads runs meanwhile.
func (b *box) freeze(to string) error {
	pid := b.running.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	return copyTree(b.data, to)
}

// load has every source write transactions of one row each, until stop.
func (p *pair) load(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	for n, source := range p.sources {
		for range 2 {
			go func() {
				pace := time.NewTicker(25 * time.Millisecond) // which the replica can keep up with
				defer pace.Stop()
				for ctx.Err() == nil {
					<-pace.C
					if _, err := source.root.Exec(fmt.Sprintf("INSERT INTO d%d.t (v) VALUES (1)", n+1)); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
	}
	return func() {
		cancel()
		for range 2 * len(p.sources) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}

// upTo fails unless a source had written that many rows at a position, by each of the ways
// in which it is told.
func (p *pair) upTo(t *testing.T, n int, u respaldo.Upstream, rows int) {
	t.Helper()
	if u.File == "" && u.GTIDSet == "" {
		t.Errorf("no position in %+v", u)
	}
	if u.File != "" {
		events, err := queryRows(t.Context(), p.sources[n].root, "SHOW BINLOG EVENTS IN "+quoteText(u.File))
		if err != nil {
			t.Fatal(err)
		}
		written := 0
		for _, e := range events {
			if end, _ := strconv.ParseUint(e["end_log_pos"], 10, 64); e["event_type"] == "Xid" && end <= u.Position {
				written++
			}
		}
		if written != rows {
			t.Errorf("the image has %d rows, and the source had written %d at %s:%d", rows, written, u.File, u.Position)
		}
	}
	if u.GTIDSet != "" {
		if written := p.ofSource(n, u.GTIDSet) - p.ofSource(n, p.before[n].GTIDSet); written != rows {
			t.Errorf("the image has %d rows, and the source had written %d at %s", rows, written, u.GTIDSet)
		}
	}
}

// ofSource counts a source's own transactions in a set.
func (p *pair) ofSource(n int, set string) (count int) {
	number := func(s string) int {
		v, _ := strconv.Atoi(s)
		return v
	}
	if p.server.Version().Flavor == respaldo.MariaDB {
		gtid := byDomain(set)[strconv.Itoa(n+1)]
		return number(gtid[strings.LastIndex(gtid, "-")+1:])
	}
	for part := range strings.SplitSeq(set, ",") {
		uuid, intervals, _ := strings.Cut(part, ":")
		if uuid != p.uuid[n] {
			continue
		}
		for interval := range strings.SplitSeq(intervals, ":") {
			from, to, found := strings.Cut(interval, "-")
			if !found {
				to = from
			}
			count += number(to) - number(from) + 1
		}
	}
	return count
}
