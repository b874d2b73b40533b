package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
)

// The test binary, started with this variable set, is respaldo itself, with a few commands
// more that behave as badly as a test needs it.
const asProgram = "RESPALDO_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, newFailCmd, newWaitCmd, newStuckCmd, newStoryCmd, newServerCmd, newParentCmd))
	}
	os.Exit(m.Run())
}

func testCommand(use string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Args: args, Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args) }}
}

// fail N fails with an error of kind N.
func newFailCmd(a *app) *cobra.Command {
	return testCommand("fail KIND", exactArgs("KIND"), func(_ context.Context, args []string) error {
		kind, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		a.secrets.add("s3cr\"et")
		return &respaldo.Error{Kind: respaldo.Kind(kind), What: "it failed on s3cr\"et", Hint: "try again", Err: errors.New("the cause")}
	})
}

// wait waits for an interruption and takes its time to clean up; "wait leave" cannot.
func newWaitCmd(a *app) *cobra.Command {
	return testCommand("wait", cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		fmt.Fprintln(a.stdout, "ready")
		<-ctx.Done()
		fmt.Fprintln(a.stdout, "cleaned")
		if len(args) > 0 {
			return &respaldo.Error{Kind: respaldo.Leftovers, What: "a mount is busy", Err: context.Cause(ctx)}
		}
		// As a layer would that knows nothing of signals.
		return &respaldo.Error{Kind: respaldo.RepoFailed, What: "cannot write to the repository", Err: context.Cause(ctx)}
	})
}

// stuck never ends by itself.
func newStuckCmd(a *app) *cobra.Command {
	return testCommand("stuck", exactArgs(), func(ctx context.Context, _ []string) error {
		fmt.Fprintln(a.stdout, "ready")
		<-ctx.Done()
		fmt.Fprintln(a.stdout, "cleaning")
		select {}
	})
}

// story reports what a backup would.
func newStoryCmd(a *app) *cobra.Command {
	return testCommand("story", exactArgs(), func(context.Context, []string) error {
		p := a.progress()
		p.Step("snapshot", "vg/data-1")
		for done := int64(0); done <= 10; done++ {
			p.Progress(respaldo.Progress{Phase: "saving", Done: done << 20, Total: 10 << 20})
		}
		p.console.flush()
		a.log.Info("a log line")
		p.Warn("the pool is nearly full")
		p.Step("saved", "10.0 MiB")
		return a.show(map[string]string{"id": "abc"}, func(p *page) { p.printf("backup abc\n") })
	})
}

// server says which server was chosen.
func newServerCmd(a *app) *cobra.Command {
	return testCommand("which", exactArgs(), func(context.Context, []string) error {
		s, err := a.serverOf(a.flags.server)
		if err != nil {
			return err
		}
		return a.show(map[string]string{"server": s.Name, "repository": s.Repository.URL}, func(p *page) {
			p.printf("%s in %s\n", s.Name, s.Repository.URL)
		})
	})
}

// parent has a child.
func newParentCmd(a *app) *cobra.Command {
	parent := &cobra.Command{Use: "parent", Hidden: true}
	parent.AddCommand(testCommand("child", exactArgs("NAME"), func(context.Context, []string) error { return nil }))
	return parent
}

// program is respaldo with these arguments and nothing of the test's environment that it
// would listen to.
func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{asProgram + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.TempDir(), "LANG=C.UTF-8", "TERM=xterm", "TZ=UTC"}
	return cmd
}

type result struct {
	code           int
	stdout, stderr string
}

func respaldoRuns(t *testing.T, args ...string) result {
	t.Helper()
	cmd := program(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// deadline ends a program that would let the test hang; a test that needs it fails by the
// exit code.
func deadline(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
}

// lineOf reads lines until one is the wanted one.
func lineOf(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var line strings.Builder
	b := make([]byte, 1)
	for {
		n, err := r.Read(b)
		if n == 1 && b[0] != '\n' {
			line.WriteByte(b[0])
			continue
		}
		if n == 1 && line.String() == want {
			return
		}
		if err != nil {
			t.Fatalf("the program never said %q: %v", want, err)
		}
		line.Reset()
	}
}
