package mysql

import "testing"

func TestCountGTIDs(t *testing.T) {
	for set, want := range map[string]int{
		"":                                       0,
		"3e11fa47-71ca-11e1-9e33-c80aa9429562:7": 1,
		"3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:9,aa:3":                 7,
		"3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:nightly:1-2,bb:10-1009": 1007,
	} {
		if got := countGTIDs(set); got != want {
			t.Errorf("%q has %d GTIDs, not %d", set, got, want)
		}
	}
}

func TestDirectlyAfter(t *testing.T) {
	for names, want := range map[[2]string]bool{
		{"binlog.000042", "binlog.000041"}:           true,
		{"db1.bin.1000000", "db1.bin.999999"}:        true,
		{"binlog.000043", "binlog.000041"}:           false,
		{"binlog.000041", "binlog.000041"}:           false,
		{"binlog.000040", "binlog.000041"}:           false,
		{"other.000042", "binlog.000041"}:            false,
		{"binlog", "binlog.000041"}:                  false,
		{"binlog.000001.gz", "binlog.000000.000000"}: false,
	} {
		if got := directlyAfter(names[0], names[1]); got != want {
			t.Errorf("%s after %s: %v", names[0], names[1], got)
		}
	}
}

func TestMariaSince(t *testing.T) {
	for _, c := range []struct {
		then, now, set string
		count          int
	}{
		{"0-1-42", "0-1-42", "", 0},
		{"0-1-42", "0-1-50", "0-1-50", 8},
		{"0-1-42,5-2-7", "5-2-9,0-1-42", "5-2-9", 2},
		{"0-1-42", "0-1-43,7-1-3", "0-1-43,7-1-3", 4},
	} {
		if set, count := mariaSince(c.then, c.now); set != c.set || count != c.count {
			t.Errorf("from %s to %s: %q, %d; not %q, %d", c.then, c.now, set, count, c.set, c.count)
		}
	}
}
