package mysql

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-mysql-org/go-mysql/replication"

	"github.com/respaldo-backup/respaldo"
)

// unlocked is the crashed image as one that was taken without a lock, its last binlog, and
// where that ended some groups earlier.
func (o *origin) unlocked(t *testing.T) (r InstanceRequest, last string, earlier int64) {
	t.Helper()
	r = o.crashed.request(t)
	r.Manifest.Quiesced = respaldo.Quiesced{Mode: respaldo.LockNone, FromImage: true}
	r.Manifest.Variables = maps.Clone(r.Manifest.Variables)
	r.Manifest.Variables["gtid_executed"] = "" // it was read after the crash, and would give it away
	names := o.binlogs(t, r.Dirs[o.data])
	last = filepath.Join(r.Dirs[o.data], names[len(names)-1])
	content, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	earlier = int64(len(content)) + 1
	for range 20 { // more than were being committed
		scan, err := scanBinlog(bytes.NewReader(content[:earlier-1]), 0)
		if err != nil {
			t.Fatal(err)
		}
		earlier = scan.End
	}
	return r, last, earlier
}

func (r *InstanceRequest) readCoordinates(t *testing.T) {
	t.Helper()
	var err error
	if r.Manifest.Quiesced.Coordinates, err = CoordinatesOf(t.Context(), r.Manifest, r.Dirs); err != nil {
		t.Fatal(err)
	}
}

// A binlog that lacks its end looks whole. What InnoDB has committed tells, or on MySQL 8 its
// GTIDs.
func TestBinlogBehindItsDataIsNotExact(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"mysql-5.6": "InnoDB has committed up to ", "mariadb-10.5": "InnoDB has committed up to ", "mariadb-11.8": "InnoDB has committed up to ",
		"mysql-9.7": "had GTID set",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r, last, earlier := o.unlocked(t)
			if err := os.Truncate(last, earlier); err != nil {
				t.Fatal(err)
			}
			r.readCoordinates(t)
			if at := r.Manifest.Quiesced.Coordinates; at.Position != uint64(earlier) {
				t.Fatalf("it was cut at %d and ends at %s", earlier, at)
			}
			if problems := notProved(t, r, respaldo.ProveQuick); !strings.Contains(problems, "not exact") || !strings.Contains(problems, want) {
				t.Errorf("problems: %s", problems)
			}
		})
	}
}

// Our own reading of a binlog, had it ended too early, is contradicted by the server's.
func TestServerContradictsWhatWasReadWrongly(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"mysql-5.6": " bytes of that binlog", "mysql-9.7": " bytes of that binlog", "mariadb-10.5": "and it has recovered", "mariadb-11.8": "and it has recovered"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r, _, earlier := o.unlocked(t)
			r.readCoordinates(t)
			i := startInstance(t, r)
			at, err := i.Coordinates(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if problem, err := i.askReader(t.Context(), at); problem != "" || err != nil {
				t.Errorf("what was read rightly: %s, %v", problem, err)
			}
			at.Position = uint64(earlier)
			if problem, err := i.askReader(t.Context(), at); !strings.Contains(problem, want) || err != nil {
				t.Errorf("what was read wrongly: %q, %v", problem, err)
			}
		})
	}
}

// What is damaged and goes on is no end, in the last binlog or in one before it.
func TestDamagedBinlogHasNoCoordinates(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mysql-5.6", "mariadb-11.8"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r, last, earlier := o.unlocked(t)
			whole, err := os.ReadFile(last)
			if err != nil {
				t.Fatal(err)
			}
			size := int64(binary.LittleEndian.Uint32(whole[earlier+9:])) // of a group's first event
			for what, at := range map[string]int64{"kind": 4, "size": 9, "end": 13, "body": replication.EventHeaderSize + 1} {
				content := bytes.Clone(whole)
				content[earlier+at] ^= 0x40
				if scan, err := scanBinlog(bytes.NewReader(content), 0); err == nil || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("wrong %s in mid-file: ends at %d of %d, %v", what, scan.End, len(content), err)
				}
			}
			content := bytes.Clone(whole)
			clear(content[earlier : earlier+size])
			if scan, err := scanBinlog(bytes.NewReader(content), 0); err == nil {
				t.Errorf("an event of zeros in mid-file: ends at %d of %d", scan.End, len(content))
			}
			// The next one was made already.
			dir, base := filepath.Split(last)
			next := base[:len(base)-3] + "999"
			index, err := os.OpenFile(filepath.Join(dir, "binlog.index"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer index.Close()
			if _, err := index.WriteString("./" + next + "\n"); err != nil {
				t.Fatal(err)
			}
			for cut, whole := range map[int64]bool{earlier: true, earlier + 5: false} {
				if err := os.Truncate(last, cut); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, next), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				at, err := CoordinatesOf(t.Context(), r.Manifest, r.Dirs)
				if whole && (err != nil || at.Position != uint64(earlier)) || !whole && (err == nil || !strings.Contains(explained(err), base+" of the image is damaged")) {
					t.Errorf("cut at %d with %s after it: %s, %v", cut, next, at, err)
				}
			}
		})
	}
}

// MariaDB 10.5 may tell the position of an older commit than the last that InnoDB has, which
// is no loss; a later release tells the last.
func TestOlderPositionIsNoLoss(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"mariadb-10.5": "", "mariadb-11.8": "InnoDB lacks the last"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, last, earlier := theOrigin(t, name).unlocked(t)
			r.readCoordinates(t)
			i := startInstance(t, r)
			at, err := i.Coordinates(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			told, err := os.OpenFile(i.LogPath(), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer told.Close()
			if _, err := fmt.Fprintf(told, "0 [Note] InnoDB: Last binlog file './%s', position %d\n", filepath.Base(last), earlier); err != nil {
				t.Fatal(err)
			}
			if problem, err := i.askInnoDB(t.Context(), at); err != nil || want == "" && problem != "" || !strings.Contains(problem, want) {
				t.Errorf("%q, %v", problem, err)
			}
		})
	}
}
