//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"os"
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

// disks are what most tests of volumes want: one for a volume group, one for Btrfs.
var disks = []lab.Disk{{Bytes: 4 << 30}, {Bytes: 2 << 30}}

func TestWedged(t *testing.T) {
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

// TestGuest, TestVolume, … run the guest tests of a package; go test -run 'TestVolume/X'
// runs one of them.
func TestGuest(t *testing.T) {
	t.Parallel()
	lab.RunTests(t, lab.Spec{Disks: disks, Memory: 1536}, "./lab/guest", "")
}
