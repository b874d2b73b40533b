//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

func TestMain(m *testing.M) {
	code := 1
	if err := servers.Ensure(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if err := lab.Cleanup(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// packages have guest tests; what their guest needs beside the default.
var packages = map[string]lab.Spec{
	"./internal/volume": {Disks: twoDisks, Deadline: 10 * time.Minute},
	"./lab/guest":       {Disks: twoDisks, Memory: 1536},
}

// twoDisks are what most tests of volumes want: one for a volume group, one for Btrfs.
var twoDisks = []lab.Disk{{Bytes: 4 << 30}, {Bytes: 2 << 30}}

// TestGuest runs the guest tests of every package, each package in a guest of its own.
// go test -run 'TestGuest/volume/TestX' runs one of them.
func TestGuest(t *testing.T) {
	for pkg, spec := range packages {
		t.Run(path.Base(pkg), func(t *testing.T) {
			t.Parallel()
			lab.RunTests(t, spec, pkg, "")
		})
	}
}

// TestEveryGuestTestRuns finds a package whose guest tests nobody runs.
func TestEveryGuestTestRuns(t *testing.T) {
	err := filepath.WalkDir("..", func(file string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		text, err := os.ReadFile(file)
		pkg := "./" + filepath.Dir(strings.TrimPrefix(file, "../"))
		if _, ok := packages[pkg]; !ok && strings.HasPrefix(string(text), "//go:build guest\n") {
			t.Errorf("%s has guest tests: add %s to packages above", file, pkg)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWedgedGuestIsKilled(t *testing.T) {
	t.Parallel()
	g, err := lab.Boot(context.Background(), lab.Spec{Name: "wedged", Argv: []string{"/usr/bin/sleep", "1000"}, Deadline: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = g.Wait(); err == nil || !strings.Contains(err.Error(), "still running after 10s") || !strings.Contains(err.Error(), g.Console()) {
		t.Errorf("the error does not say that the guest was wedged and where its console is: %v", err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}
