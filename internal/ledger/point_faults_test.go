//go:build faults

package ledger

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// faulty starts another run with a fault armed and returns it with its output's lines.
func faulty(t *testing.T, fault string, words ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asOtherRun+"="+strings.Join(words, " "), "RESPALDO_FAULT="+fault)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

func TestTraceListsTheSteps(t *testing.T) {
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	cmd, lines := faulty(t, "trace:"+trace, filepath.Join(dir, "state"), "acquire=snapshot", "acquire=mount", "release-all")
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	want := "snapshot.intended snapshot.acquired mount.intended mount.acquired mount.released snapshot.released"
	if strings.Join(strings.Fields(string(got)), " ") != want {
		t.Errorf("trace: %q", got)
	}
}

func TestKillAtEveryStep(t *testing.T) {
	for _, c := range []struct{ at, did, left string }{
		{"mount.intended", "", "mount"},
		{"mount.acquired", "acquire mount", "mount"},
		{"mount.intended#2", "acquire mount", "mount mount"},
		{"mount.acquired#2", "acquire mount, acquire mount", "mount mount"},
		{"mount.released", "acquire mount, acquire mount, release mount", "mount mount"},
		{"mount.released#2", "acquire mount, acquire mount, release mount, release mount", "mount"},
	} {
		t.Run(c.at, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			cmd, lines := faulty(t, "kill:"+c.at, dir, "acquire=mount", "acquire=mount", "release-all")
			var did []string
			for lines.Scan() {
				did = append(did, lines.Text())
			}
			cmd.Wait()
			if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed: %v", cmd.ProcessState)
			}
			if got := strings.Join(did, ", "); got != c.did {
				t.Errorf("it did %q, want %q", got, c.did)
			}
			if got := kinds(open(t, dir).Leftovers()); got != c.left {
				t.Errorf("leftovers %q, want %q", got, c.left)
			}
		})
	}
}

func TestStopWaitsToBeCutOff(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	cmd, lines := faulty(t, "stop:mount.acquired", dir, "acquire=mount")
	for lines.Scan() && lines.Text() != "LAB-AT mount.acquired" {
	}
	if lines.Text() != "LAB-AT mount.acquired" {
		t.Error("it never said that it was there")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if got := kinds(open(t, dir).Leftovers()); got != "mount" {
		t.Errorf("leftovers %q", got)
	}
}

func TestSignalToItself(t *testing.T) {
	for fault, want := range map[string]syscall.Signal{"int": syscall.SIGINT, "term": syscall.SIGTERM} {
		// Nobody in the other run handles signals besides the point itself, which takes
		// the signal and goes on: the run ends as if nothing had been.
		cmd, lines := faulty(t, fault+":mount.acquired", filepath.Join(t.TempDir(), "state"), "acquire=mount", "release-all")
		var did []string
		for lines.Scan() {
			did = append(did, lines.Text())
		}
		if err := cmd.Wait(); err != nil || len(did) != 2 {
			t.Errorf("%v: %v, %v", want, err, did)
		}
	}
}

func TestMistakesInTheVariable(t *testing.T) {
	for _, fault := range []string{"kill", "kill:", "burn:mount.acquired", "kill:mount.acquired#0", "kill:mount.acquired#x"} {
		cmd, lines := faulty(t, fault, filepath.Join(t.TempDir(), "state"), "acquire=mount")
		for lines.Scan() {
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("RESPALDO_FAULT=%s was taken", fault)
		}
	}
}
