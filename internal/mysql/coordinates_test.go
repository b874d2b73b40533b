package mysql

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
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
