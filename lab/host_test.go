package lab

import (
	"strings"
	"testing"
)

// What a machine lacks is named, all of it at once, with what to do about it.
func TestCheckHost(t *testing.T) {
	t.Setenv("RESPALDO_CACHE", t.TempDir()+"/a b")
	t.Setenv("PATH", t.TempDir())
	err := CheckHost(1 << 40)
	if err == nil {
		t.Fatal("a machine without apt-get, a path with a blank and too little memory are accepted")
	}
	for _, want := range []string{"apt-get install dpkg", "room in", "TMPDIR", "set RESPALDO_CACHE"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}
