package main

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

func TestInterruptedOnce(t *testing.T) {
	caught := make(chan os.Signal, 1) // what we ignore, under nohup, our children would ignore, too
	signal.Notify(caught, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(caught)
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		cmd := program("wait", "--json")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		deadline(t, cmd)
		lineOf(t, stdout, "ready")
		cmd.Process.Signal(sig)
		rest, _ := io.ReadAll(stdout)
		cmd.Wait()
		if cmd.ProcessState.ExitCode() != code || !strings.HasPrefix(string(rest), "cleaned\n") || !strings.Contains(string(rest), `"kind": "interrupted"`) {
			t.Errorf("%v: %v, %q", sig, cmd.ProcessState, rest)
		}
		for _, word := range []string{"interrupted: cleaning up; once more", "interrupted by " + map[syscall.Signal]string{syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP"}[sig]} {
			if !strings.Contains(stderr.String(), word) {
				t.Errorf("%v: stderr does not say %q: %q", sig, word, stderr.String())
			}
		}
	}
}

func TestInterruptedTwice(t *testing.T) {
	cmd := program("stuck")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline(t, cmd)
	lineOf(t, stdout, "ready")
	cmd.Process.Signal(syscall.SIGTERM)
	lineOf(t, stdout, "cleaning")
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if cmd.ProcessState.ExitCode() != 130 || !strings.Contains(stderr.String(), "ended at once") || !strings.Contains(stderr.String(), "respaldo cleanup") {
		t.Errorf("%v, %q", cmd.ProcessState, stderr.String())
	}
}

func TestLeftoversAreToldEvenWhenInterrupted(t *testing.T) {
	cmd := program("wait", "leave")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline(t, cmd)
	lineOf(t, stdout, "ready")
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 11 {
		t.Errorf("exit code %d", code)
	}
}

// Ctrl-Z must not stop a program that may be holding writers, and a reader that goes away
// must not kill it.
func TestWhatDoesNotEndOrStopIt(t *testing.T) {
	cmd := program("wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline(t, cmd)
	lineOf(t, stdout, "ready")
	stdout.Close()
	cmd.Process.Signal(syscall.SIGTSTP)
	cmd.Process.Signal(syscall.SIGINT) // "cleaned" goes to the closed pipe
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("%v, %q", cmd.ProcessState, stderr.String())
	}
}

func TestResultThatNobodyReads(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	defer writer.Close()
	cmd := program("version")
	cmd.Stdout = writer
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Run()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "cannot write the result") {
		t.Errorf("%v, %q", cmd.ProcessState, stderr.String())
	}
}
