package backup

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// TestMain lets the test binary also be the private servers that tests start, and the
// process that has a file open.
func TestMain(m *testing.M) {
	mysql.InstanceMain()
	if path := os.Getenv("TEST_HOLD_OPEN"); path != "" {
		f, err := os.Open(path)
		if err != nil {
			os.Exit(1)
		}
		defer f.Close()
		os.Stdout.WriteString("open\n")
		io.Copy(io.Discard, os.Stdin) // until the test closes it
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// holdOpen has another process keep a file open for the length of the test, and returns
// that process's ID.
func holdOpen(t *testing.T, path string) (pid string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "TEST_HOLD_OPEN="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%q %v", line, err)
	}
	return strconv.Itoa(cmd.Process.Pid)
}
