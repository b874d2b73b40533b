//go:build lab

package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_BOOT") != "" {
		bootAndWait()
	}
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

type testPackage struct {
	name, pkg string
	pattern   string // of its tests; everything if empty
	spec      lab.Spec
}

// The command has so many guest tests that several guests share them: one alone would end
// long after everything else. The first has what the others have not.
const (
	inGuestOfTheirOwn = "Crash|PowerCut|Systemd|SystemdPower|Clone|Exact"
	inSecondGuest     = "Rollback|RollbackCrash|Serve|Status"
	inThirdGuest      = "BackupAndRestore|Dump|Snapshots"
)

// packages have guest tests; what their guest needs beside the default. The longest come first.
var packages = []testPackage{
	{"respaldo", "./cmd/respaldo", "", lab.Spec{Disks: twoDisks, Memory: 2048, Deadline: 30 * time.Minute, Respaldo: true,
		Skip: "^Test(" + inGuestOfTheirOwn + "|" + inSecondGuest + "|" + inThirdGuest + ")$"}},
	{"rollback", "./cmd/respaldo", "^Test(" + inSecondGuest + ")$", lab.Spec{Name: "rollback", Disks: twoDisks, Memory: 2048, Deadline: 30 * time.Minute, Respaldo: true}},
	{"backup", "./cmd/respaldo", "^Test(" + inThirdGuest + ")$", lab.Spec{Name: "backup", Disks: twoDisks, Memory: 2048, Deadline: 30 * time.Minute, Respaldo: true}},
	{"volume", "./internal/volume", "", lab.Spec{Disks: twoDisks, Deadline: 20 * time.Minute}},
	{"guest", "./lab/guest", "", lab.Spec{Disks: twoDisks, Memory: 1536, Deadline: 10 * time.Minute}},
	{"repo", "./internal/repo", "", lab.Spec{Disks: twoDisks, Memory: 1536, Deadline: 10 * time.Minute}},
}

// twoDisks are what most tests of volumes want: one for a volume group, one for Btrfs.
var twoDisks = []lab.Disk{{Bytes: 4 << 30}, {Bytes: 2 << 30}}

// TestGuest runs the guest tests of every package, in guests of their own.
// go test -run 'TestGuest/volume/TestX' runs one of them.
func TestGuest(t *testing.T) {
	t.Parallel()
	for _, p := range packages {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			lab.RunTests(t, p.spec, p.pkg, p.pattern)
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
		known := slices.ContainsFunc(packages, func(p testPackage) bool { return p.pkg == pkg })
		if !known && strings.HasPrefix(string(text), "//go:build guest") {
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
		if left := running(g.Dir()); len(left) > 0 {
			t.Errorf("still running: %s", left)
		}
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}
}

// running finds what a guest's kernel, and each of the guest's processes, is on the host:
// all carry the kernel's command line, which names the guest's folder.
func running(dir string) []string {
	var found []string
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		text, _ := os.ReadFile(file)
		if strings.Contains(string(text), dir) {
			found = append(found, filepath.Base(filepath.Dir(file)))
		}
	}
	return found
}

// The disks of a guest whose power is cut are what the next guest finds.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	disk := []lab.Disk{{Path: filepath.Join(t.TempDir(), "disk"), Bytes: 256 << 20}}
	if !lab.CutPower(t, lab.Spec{Disks: disk, Memory: 512, Env: []string{"LAB_POWER=cut"}}, "./lab/guest", "TestFsyncSurvives", "LAB-AT written") {
		t.Fatal("the test ended before the power was cut")
	}
	lab.RunTests(t, lab.Spec{Disks: disk, Memory: 512, Env: []string{"LAB_POWER=back"}}, "./lab/guest", "TestFsyncSurvives")
}

// bootAndWait is the process that TestNoOrphans kills.
func bootAndWait() {
	up := func(line string) { fmt.Println(line) }
	g, err := lab.Boot(context.Background(), lab.Spec{Name: "orphan", Memory: 256, OnLine: up, Argv: []string{"/usr/bin/sh", "-c", "sleep 1000 & echo up; wait"}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(g.Dir())
	g.Wait()
	os.Exit(0)
}

// When the tests are killed, not even their guests' processes stay.
func TestNoOrphans(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LAB_TEST_BOOT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	var dir string
	for up := false; (dir == "" || !up) && lines.Scan(); {
		if lines.Text() == "up" {
			up = true
		} else {
			dir = lines.Text()
		}
	}
	if !filepath.IsAbs(dir) || len(running(dir)) < 2 {
		t.Fatalf("no guest runs in %q", dir)
	}
	cmd.Process.Kill()
	cmd.Wait()
	guest.Eventually(t, 10*time.Second, func() error {
		if left := running(dir); len(left) > 0 {
			return fmt.Errorf("still running: %s", left)
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
