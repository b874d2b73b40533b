package main

import (
	"bytes"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"strings"
	"testing"
	"time"
)

func TestSizesForPeople(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.00 KiB", 1536: "1.50 KiB", 10 << 20: "10.0 MiB", 150 << 20: "150 MiB",
		1023 << 20: "1.00 GiB", 3 << 30: "3.00 GiB", 1<<40 - 1: "1.00 TiB", 1<<63 - 1: "8.00 EiB", -2048: "-2.00 KiB",
	} {
		if got := backup.FormatBytes(bytes); got != want {
			t.Errorf("%d: %q, want %q", bytes, got, want)
		}
	}
}

func TestDurationsForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 850 * time.Nanosecond: "0.85 µs", 12345 * time.Microsecond: "12.3 ms", 999999 * time.Microsecond: "1.00 s",
		1240 * time.Millisecond: "1.24 s", 59999 * time.Millisecond: "1 min 0 s", 125 * time.Second: "2 min 5 s",
		3*time.Hour + 12*time.Minute + 40*time.Second: "3 h 13 min", 50 * time.Hour: "2 d 2 h", -2 * time.Second: "-2.00 s",
	} {
		if got := backup.FormatDuration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestTimesSayTheirZone(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	zone, _ := at.Zone()
	if got := formatTime(at.UTC()); got != "2026-03-04 05:06:07 "+zone {
		t.Errorf("%q", got)
	}
	if got := formatTime(time.Time{}); got != "-" {
		t.Errorf("no time: %q", got)
	}
}

func TestTables(t *testing.T) {
	list := newTable(left("ID"), flexible("WHERE"), right("SIZE"))
	list.row("a", "a place with a very long name indeed", "1 B")
	list.row("bü", "", "10.0 MiB")
	for width, want := range map[int]string{
		0:  "ID  WHERE                                     SIZE\na   a place with a very long name indeed       1 B\nbü  -                                     10.0 MiB\n",
		40: "ID  WHERE                           SIZE\na   a place with a very long …       1 B\nbü  -                           10.0 MiB\n",
		10: "ID  WHERE             SIZE\na   a place wit…       1 B\nbü  -             10.0 MiB\n",
	} {
		var out bytes.Buffer
		list.write(&out, width)
		if out.String() != want {
			t.Errorf("width %d:\n%s", width, out.String())
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if width >= 40 && len([]rune(line)) > width {
				t.Errorf("width %d: the line %q is longer", width, line)
			}
		}
	}
}

func TestFields(t *testing.T) {
	fields := newFields()
	fields.field("name", "x")
	fields.field("empty", "")
	fields.field("long name", "y")
	var out bytes.Buffer
	fields.write(&out, 0)
	if out.String() != "name       x\nlong name  y\n" {
		t.Errorf("%q", out.String())
	}
}
