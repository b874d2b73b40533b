//go:build lab

package lab_test

import (
	"context"
	"errors"
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
	"./cmd/respaldo":    {Disks: twoDisks, Memory: 2048, Deadline: 15 * time.Minute, Respaldo: true},
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

// Two guests run side by side, joined by a cable; then the power of one is cut, and
// nothing of it runs on.
func TestTwoGuests(t *testing.T) {
	t.Parallel()
	left, right, err := lab.NewLink("10.9.0.1/24", "10.9.0.2/24")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	one, err := lab.Boot(ctx, lab.Spec{Name: "one", Memory: 256, Link: left, Argv: []string{"/usr/bin/sleep", "1000"}, Deadline: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	two, err := lab.Boot(ctx, lab.Spec{Name: "two", Memory: 256, Link: right, Argv: []string{"/usr/bin/ping", "-n", "-c1", "-w30", "10.9.0.1"}, Deadline: time.Minute})
	if err != nil {
		one.Kill()
		t.Fatal(err)
	}
	if code, err := two.Wait(); err != nil || code != 0 {
		t.Errorf("the guests do not reach each other: exit code %d, %v", code, err)
	}
	one.Kill()
	if _, err := one.Wait(); !errors.Is(err, lab.ErrKilled) {
		t.Errorf("a guest whose power was cut ended with %v", err)
	}
	for _, g := range []*lab.Guest{one, two} {
		if left := processesOf(g); len(left) > 0 {
			t.Errorf("still running: %s", left)
		}
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}
}

// processesOf finds what a guest's kernel, and each of the guest's processes, is on the
// host: all carry the kernel's command line.
func processesOf(g *lab.Guest) []string {
	var found []string
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		text, _ := os.ReadFile(file)
		if strings.Contains(string(text), g.Dir()) {
			found = append(found, filepath.Base(filepath.Dir(file)))
		}
	}
	return found
}

// The disks of a guest whose power is cut are what the next guest finds.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	disk := []lab.Disk{{Path: filepath.Join(t.TempDir(), "disk"), Bytes: 256 << 20}}
	lab.CutPower(t, lab.Spec{Disks: disk, Memory: 512, Env: []string{"LAB_POWER=cut"}}, "./lab/guest", "TestFsyncSurvives", "LAB-AT written")
	lab.RunTests(t, lab.Spec{Disks: disk, Memory: 512, Env: []string{"LAB_POWER=back"}}, "./lab/guest", "TestFsyncSurvives")
}
