package run

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asTerminal makes the test binary a program of its own, in a process group of its own as
// on a terminal, that runs one command. Its value says whether an uninterruptible one.
const asTerminal = "RUN_TEST_TERMINAL"

func TestMain(m *testing.M) {
	if kind := os.Getenv(asTerminal); kind != "" {
		onTerminal(kind == "uninterruptible")
		os.Exit(0)
	}
	if os.Getenv(asKilled) != "" {
		dieMeanwhile()
	}
	os.Exit(m.Run())
}

func onTerminal(uninterruptible bool) {
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // as our programs: it does not end us
	_, err := Local{}.Run(context.Background(), Cmd{
		Argv:  []string{"sh", "-c", "echo ready; cat; echo finished"},
		Stdin: os.Stdin, Stdout: os.Stdout, Uninterruptible: uninterruptible,
	})
	fmt.Println("error:", err)
}

// waiting is a command that has started when its Started is called, and goes on when the
// returned file is closed.
func waiting(t *testing.T, script string) (Cmd, *os.File) {
	t.Helper()
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); hold.Close() })
	return Cmd{Argv: []string{"sh", "-c", script}, Stdin: in}, hold
}

// asKilled makes the test binary a program that is killed while its uninterruptible command
// runs. Its value is the file that the command makes at its end.
const asKilled = "RUN_TEST_KILLED"

func dieMeanwhile() {
	_, err := Local{}.Run(context.Background(), Cmd{Argv: []string{"sh", "-c", "cat; echo said; echo said >&2; : >\"$" + asKilled + "\""}, Stdin: os.Stdin,
		Uninterruptible: true, Started: func(int) { syscall.Kill(os.Getpid(), syscall.SIGKILL) }})
	fmt.Println("still there:", err)
	os.Exit(1)
}

// It ends by itself, whatever it has to say to nobody: a broken pipe would end it midway.
func TestUninterruptibleCommandOutlivesUs(t *testing.T) {
	ended := filepath.Join(t.TempDir(), "ended")
	if err := syscall.Mkfifo(ended, 0o600); err != nil {
		t.Fatal(err)
	}
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	us := exec.Command(os.Args[0])
	us.Env, us.Stdin = append(os.Environ(), asKilled+"="+ended), in
	out, err := us.CombinedOutput()
	if us.ProcessState == nil || us.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("not killed: %v %s", err, out)
	}
	hold.Close()
	opened := make(chan error, 1)
	go func() { // returns when the command's last statement opens the other end
		_, err := os.ReadFile(ended)
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the command ended before its end")
	}
}

var errInterrupted = errors.New("interrupted")

// A volume command that was killed midway left its origin suspended: once started, it is
// waited for, and what it says counts.
func TestUninterruptibleCommandOutlivesItsContext(t *testing.T) {
	for _, exit := range []int{0, 7} {
		ctx, cancel := context.WithCancelCause(t.Context())
		c, hold := waiting(t, fmt.Sprintf("cat; echo trouble >&2; exit %d", exit))
		c.Uninterruptible = true
		c.Started = func(int) {
			cancel(errInterrupted)
			fmt.Fprint(hold, "went on")
			hold.Close()
		}
		r, err := Local{}.Run(ctx, c)
		if string(r.Stdout) != "went on" || string(r.Stderr) != "trouble\n" || r.Exit != exit {
			t.Errorf("result %+v", r)
		}
		var failed *ExitError
		if exit == 0 && err != nil || exit != 0 && (!errors.As(err, &failed) || failed.Exit != exit) {
			t.Errorf("exit code %d: error %v", exit, err)
		}
		c.Started = func(int) { t.Error("started after the interruption") }
		if _, err := (Local{}).Run(ctx, c); !errors.Is(err, errInterrupted) {
			t.Errorf("after the interruption: %v", err)
		}
	}
}

func TestOrdinaryCommandIsEndedByItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c, _ := waiting(t, "exec cat")
	var pid int
	c.Started = func(p int) {
		pid = p
		cancel(errInterrupted)
	}
	if _, err := (Local{}).Run(ctx, c); !errors.Is(err, errInterrupted) {
		t.Errorf("error %v", err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("process %d is left: %v", pid, err)
	}
}

// What a shell has started does not outlive it where the group is its own: the child has
// nothing of ours open, so nobody would wait for it.
func TestGroupIsEndedByItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c, hold := waiting(t, "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! ; wait")
	hold.Close()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var child string
	c.Stdout = writerFunc(func(p []byte) (int, error) {
		child = strings.TrimSpace(string(p))
		cancel(errInterrupted)
		return len(p), nil
	})
	if _, err := (Local{}).Run(ctx, c); !errors.Is(err, errInterrupted) {
		t.Errorf("error %v", err)
	}
	status, _ := os.ReadFile("/proc/" + child + "/status")
	if child == "" || len(status) > 0 && !strings.Contains(string(status), "State:\tZ") { // whoever inherits it may be slow to take notice
		t.Errorf("process %q is left:\n%s", child, status)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A terminal sends Ctrl-C to all processes of the group in its foreground.
func TestCtrlCReachesOrdinaryCommandsOnly(t *testing.T) {
	for kind, want := range map[string]string{
		"ordinary":        "ended by SIGINT",
		"uninterruptible": "finished\nerror: <nil>",
	} {
		t.Run(kind, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), asTerminal+"="+kind)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Stderr = os.Stderr
			hold, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			out := bufio.NewReader(stdout)
			if line, err := out.ReadString('\n'); line != "ready\n" {
				t.Errorf("said %q, %v", line, err)
			}
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Error(err)
			}
			hold.Close()
			rest, err := io.ReadAll(out)
			if err := errors.Join(err, cmd.Wait()); err != nil {
				t.Error(err)
			}
			if !strings.Contains(string(rest), want) {
				t.Errorf("after Ctrl-C: %q, want %q", rest, want)
			}
		})
	}
}

func TestSecretsAreNotTold(t *testing.T) {
	const secret = "pass word's"
	for _, c := range []Cmd{
		{Argv: []string{"sh", "-c", "exit 0", "--password=" + secret}},
		{Argv: []string{"sh", "-c", `echo "wrong: $0" >&2; exit 3`, secret}},
		{Argv: []string{"sh", "-c", `echo "wrong: $0" >&2; exit 3`, secret}, Quiet: true},
		{Argv: []string{"sh", "-c", `echo "wrong: $0" >&2; kill -9 $$`, secret}},
	} {
		c.Secret = []string{"", secret}
		var log bytes.Buffer
		_, err := Local{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}.Run(t.Context(), c)
		told := fmt.Sprint(log.String(), err, c.String())
		if strings.Contains(told, secret) || strings.Contains(told, Quote(secret)) || !strings.Contains(log.String(), "***") {
			t.Errorf("told: %s", told)
		}
		var failed *ExitError
		if errors.As(err, &failed) != strings.Contains(c.Argv[2], "wrong") || failed != nil && failed.Stderr != "wrong: ***\n" {
			t.Errorf("error %v", err)
		}
		if strings.Contains(log.String(), "level=WARN") == (c.Quiet || err == nil) {
			t.Errorf("log: %s", &log)
		}
	}
}

// The exit codes of a command that mean something else than failure.
func TestOkExitCodes(t *testing.T) {
	c := Cmd{Argv: []string{"sh", "-c", "exit 5"}, Ok: []int{4, 5}}
	if r, err := (Local{}).Run(t.Context(), c); err != nil || r.Exit != 5 {
		t.Errorf("exit code %d: %v", r.Exit, err)
	}
}

// We read what programs print: it must be in no language but C.
func TestEnvironment(t *testing.T) {
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	r, err := Local{}.Run(t.Context(), Cmd{Argv: []string{"sh", "-c", `echo "$LC_ALL $MORE"; pwd`}, Env: []string{"MORE=added"}, Dir: "/"})
	if want := "C added\n/\n"; err != nil || string(r.Stdout) != want {
		t.Errorf("%q, %v; want %q", r.Stdout, err, want)
	}
}

// cron and su start us with a PATH in which LVM's programs are not to be found.
func TestProgramsOfAdministratorsAreFound(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	r, err := Local{}.Run(t.Context(), Cmd{Argv: []string{"chroot", "/nowhere-at-all", "true"}})
	var failed *ExitError
	if NotInstalled(err) || !errors.As(err, &failed) {
		t.Errorf("chroot without /usr/sbin in PATH: %+v, %v", r, err)
	}
}

func TestNotInstalled(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want bool
	}{
		{[]string{"no-such-program"}, true},
		{[]string{"/no/such/program"}, true},
		{[]string{"sh", "-c", "exit 127"}, false}, // of something that it called
		{[]string{"sh", "-c", "true"}, false},
	} {
		if _, err := (Local{}).Run(t.Context(), Cmd{Argv: c.argv}); NotInstalled(err) != c.want {
			t.Errorf("%q: %v", c.argv, err)
		}
	}
}

// What a person copies from a log and pastes into a shell is the same command.
func TestQuotedCommandsCanBePasted(t *testing.T) {
	argv := []string{"printf", `%s\n`, "plain", "", "two words", "it's", "$HOME `id` \\ \"x\"", "ünï\n*"}
	typed := Cmd{Argv: argv}.String()
	pasted, err := Local{}.Run(t.Context(), Cmd{Argv: []string{"sh", "-c", typed}})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(slices.Concat(argv[2:], []string{""}), "\n"); string(pasted.Stdout) != want {
		t.Errorf("%s printed %q, want %q", typed, pasted.Stdout, want)
	}
}

// A program that is not ours inherits nothing that may be a secret.
func TestCleanEnv(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
	t.Setenv("TZ", "Europe/Madrid")
	r, err := Local{}.Run(t.Context(), Cmd{Argv: []string{"/usr/bin/env"}, Env: []string{"MINE=1"}, CleanEnv: true})
	text := string(r.Stdout)
	if err != nil || strings.Contains(text, "s3cret") || !strings.Contains(text, "TZ=Europe/Madrid\n") || !strings.Contains(text, "MINE=1\n") || !strings.Contains(text, "PATH=") {
		t.Errorf("%v\n%s", err, text)
	}
}
