package mysql

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// testBinlogTail takes the tail of binlogs that are rotated and purged as soon as the
// lock is gone: it must be what they were under the lock.
func testBinlogTail(t *testing.T, b *box) {
	b.exec(t, "FLUSH LOGS", "INSERT INTO d.t (v) VALUES (7)")
	s := b.server(t)
	f := mustFacts(t, s)
	mode, _, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil {
		t.Fatal(err)
	}
	var tail *BinlogTail
	var want []byte
	q, err := s.Quiesce(context.Background(), QuiesceRequest{Mode: mode, Budget: 20 * time.Second, Facts: f}, func(_ context.Context, at respaldo.Coordinates) (err error) {
		if want, err = os.ReadFile(b.path("binlogs", at.File)); err != nil {
			return err
		}
		tail, err = f.OpenBinlogTail(at)
		return err
	})
	if err != nil {
		t.Fatal(explained(err))
	}
	defer tail.Close()
	b.exec(t, "INSERT INTO d.t (v) VALUES (8)", "FLUSH LOGS", "FLUSH LOGS", "INSERT INTO d.t (v) VALUES (9)")
	if b.name == "mysql-9.7" {
		b.exec(t, "RESET BINARY LOGS AND GTIDS")
	} else {
		b.exec(t, "RESET MASTER")
	}
	dir := b.mkdir(t, "tail")
	names, err := tail.CopyTo(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 || names[len(names)-1] != q.Coordinates.File {
		t.Fatalf("copied %q, coordinates %s", names, q.Coordinates)
	}
	got, err := os.ReadFile(filepath.Join(dir, q.Coordinates.File))
	if err != nil {
		t.Fatal(err)
	}
	if uint64(len(got)) != q.Coordinates.Position || !bytes.HasPrefix(want, got) {
		t.Errorf("%d bytes of %s, coordinates %s", len(got), names[len(names)-1], q.Coordinates)
	}
	index, err := os.ReadFile(filepath.Join(dir, "mysql-bin.index"))
	if err != nil {
		t.Fatal(err)
	}
	if string(index) != "./"+strings.Join(names, "\n./")+"\n" {
		t.Errorf("index: %s", index)
	}
}

// TestUpstream has replicas, over two channels where the flavor calls them so, whose
// coordinates must name the source's position up to which they have applied.
func TestUpstream(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-11.8", "mysql-9.7"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			source := startBox(t, name, func(_ *box, spec *servers.Spec) { spec.Port = port })
			replica := startBox(t, name, func(b *box, spec *servers.Spec) {
				spec.Args = []string{"--server-id=2", "--relay-log=" + filepath.Join(b.mkdir(t, "relay"), "relay")}
			})
			source.exec(t, "CREATE USER 'repl'@'%' IDENTIFIED BY 'pw'", "GRANT REPLICATION SLAVE ON *.* TO 'repl'@'%'", "CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY)", "INSERT INTO d.t VALUES (1), (2)")
			if name == "mysql-9.7" {
				replica.exec(t, fmt.Sprintf("CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=%d, SOURCE_USER='repl', SOURCE_PASSWORD='pw', GET_SOURCE_PUBLIC_KEY=1, SOURCE_AUTO_POSITION=1 FOR CHANNEL 'east'", port), "START REPLICA FOR CHANNEL 'east'")
			} else {
				replica.exec(t, fmt.Sprintf("CHANGE MASTER 'east' TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='repl', MASTER_PASSWORD='pw', MASTER_SSL_VERIFY_SERVER_CERT=0, MASTER_USE_GTID=slave_pos", port), "START SLAVE 'east'")
			}
			want, err := source.server(t).Coordinates(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			s := replica.server(t)
			var at respaldo.Coordinates
			waitFor(t, "the replica to catch up with "+want.String(), func() bool {
				if at, err = s.Coordinates(context.Background()); err != nil {
					t.Fatal(explained(err))
				}
				return len(at.Upstream) == 1 && at.Upstream[0].Position == want.Position
			})
			u := at.Upstream[0]
			if u.Channel != "east" || u.Host != "127.0.0.1" || u.Port != port || u.File != want.File || want.GTIDSet == "" || u.GTIDSet != want.GTIDSet {
				t.Errorf("upstream %+v, the source is at %+v", u, want)
			}
			f := mustFacts(t, s)
			if !f.Replica || len(f.Upstream) != 1 {
				t.Errorf("replica %t, upstream %+v", f.Replica, f.Upstream)
			}
			placed(t, f, respaldo.RelayLogRole, replica.path("relay"))
			mode, _, err := ChooseLock(f, respaldo.LockAuto)
			if err != nil {
				t.Fatal(err)
			}
			q, err := s.Quiesce(context.Background(), QuiesceRequest{Mode: mode, Budget: 20 * time.Second, Facts: f}, func(_ context.Context, at respaldo.Coordinates) error { return nil })
			if err != nil {
				t.Fatal(explained(err))
			}
			if len(q.Coordinates.Upstream) != 1 || q.Coordinates.Upstream[0] != u {
				t.Errorf("under the lock: %+v, before it: %+v", q.Coordinates.Upstream, u)
			}
		})
	}
}
