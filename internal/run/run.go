// Package run is the one door to external programs: argv and never a shell, LC_ALL=C,
// logged with its time and with secrets redacted, and replaceable in tests.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is one call of an external program.
type Cmd struct {
	Argv []string
	Env  []string // added to ours; LC_ALL=C is always set
	// CleanEnv is for programs that are not ours: they get Env and what any program needs (PATH,
	// HOME…), and nothing else of our environment, which may hold passwords.
	CleanEnv bool
	Dir      string
	Stdin    io.Reader
	// Stdout, if set, receives the output instead of Result.Stdout. Commands that
	// print much (dumps) want it.
	Stdout io.Writer
	// Uninterruptible commands run in their own process group and are not bound to the
	// context: once started they are waited for, whatever happens to us. A volume command
	// killed midway can leave its origin suspended (measured with lvcreate). The context
	// is looked at before the start only.
	Uninterruptible bool
	// Secret words are replaced by *** in logs and errors. They belong into Stdin or a
	// file all the same: ps shows an argv.
	Secret []string
	// Quiet calls are logged at debug level even when they fail: the caller expects it.
	Quiet bool
	// Ok lists exit codes besides 0 that are no error.
	Ok []int
	// Started, if set, is called with the process ID right after the start, before the
	// wait; the ledger notes volume commands through it.
	Started func(pid int)
	// SysProcAttr, if set, is used as it is, except that Uninterruptible adds Setpgid. With
	// Setpgid, what the program has started goes with it when the context ends.
	SysProcAttr *syscall.SysProcAttr
}

// String is the command as one would type it, secrets redacted.
func (c Cmd) String() string {
	words := make([]string, len(c.Argv))
	for i, w := range c.Argv {
		words[i] = Quote(redact(w, c.Secret))
	}
	return strings.Join(words, " ")
}

// Result is what a finished program left.
type Result struct {
	Stdout []byte
	Stderr []byte
	Exit   int
	Took   time.Duration
}

// Runner runs external programs to their end. It returns an *ExitError for an exit code
// that the command does not list as Ok, with the Result filled in all the same.
// Safe for concurrent use.
type Runner interface {
	Run(ctx context.Context, c Cmd) (Result, error)
}

// ExitError is a program that ran and failed.
type ExitError struct {
	Cmd    string
	Exit   int // -1 when a signal ended it
	Signal syscall.Signal
	Stderr string
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return strings.TrimSpace(fmt.Sprintf("%s: ended by %s %s", e.Cmd, unix.SignalName(e.Signal), e.Stderr))
	}
	msg := strings.TrimSpace(e.Stderr)
	if msg == "" {
		msg = "no message"
	}
	return fmt.Sprintf("%s: exit code %d: %s", e.Cmd, e.Exit, msg)
}

// Local runs programs on this machine.
type Local struct {
	Log *slog.Logger // nil is silent
}

// Run starts the program and waits for it. When ctx ends first, an interruptible program
// gets SIGTERM, and SIGKILL ten seconds later, with its process group if that is its own.
func (l Local) Run(ctx context.Context, c Cmd) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, context.Cause(ctx)
	}
	if len(c.Argv) == 0 {
		return Result{}, errors.New("run: empty command")
	}
	bound := ctx
	if c.Uninterruptible {
		bound = context.WithoutCancel(ctx)
	}
	cmd := exec.CommandContext(bound, program(c.Argv[0]), c.Argv[1:]...)
	grouped := c.SysProcAttr != nil && c.SysProcAttr.Setpgid && !c.Uninterruptible
	var cancelled time.Time // set before Wait returns an error of the context's
	cmd.Cancel = func() error {
		cancelled = time.Now()
		if !grouped {
			return cmd.Process.Signal(syscall.SIGTERM)
		}
		if syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) == syscall.ESRCH {
			return os.ErrProcessDone
		}
		return nil
	}
	cmd.WaitDelay = waitDelay
	cmd.Env = append(c.inherits(), c.Env...)
	cmd.Dir = c.Dir
	cmd.Stdin = c.Stdin
	stdout, closeOut := keeper(c.Uninterruptible)
	defer closeOut()
	stderr, closeErr := keeper(c.Uninterruptible)
	defer closeErr()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	if c.SysProcAttr != nil {
		attr := *c.SysProcAttr
		cmd.SysProcAttr = &attr
	}
	if c.Uninterruptible {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Setpgid = true // a Ctrl-C on the terminal must not reach it
	}

	start := time.Now()
	if err := cmd.Start(); err != nil {
		return Result{}, fmt.Errorf("%s: %w", c.Argv[0], err)
	}
	if c.Started != nil {
		c.Started(cmd.Process.Pid)
	}
	err := cmd.Wait()
	if grouped && !cancelled.IsZero() {
		endGroup(cmd.Process.Pid, cancelled.Add(waitDelay))
	}
	r := Result{Stdout: kept(stdout), Stderr: kept(stderr), Exit: cmd.ProcessState.ExitCode(), Took: time.Since(start)}
	err = l.judge(ctx, c, r, err)
	l.log(c, r, err)
	return r, err
}

// keeper is where the output of a program goes. One that may outlive us gets a file in
// memory: a pipe would break with us, and end by SIGPIPE what writes to it then.
func keeper(outlives bool) (io.ReadWriter, func()) {
	if outlives {
		if fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC); err == nil {
			file := os.NewFile(uintptr(fd), "output")
			return file, func() { file.Close() }
		}
	}
	return &bytes.Buffer{}, func() {}
}

// kept is what a program has written there.
func kept(out io.ReadWriter) []byte {
	if file, ok := out.(io.Seeker); ok {
		file.Seek(0, io.SeekStart)
	}
	text, _ := io.ReadAll(out)
	return text
}

// waitDelay is how long a program that was told to end may take.
const waitDelay = 10 * time.Second

// endGroup returns when nothing is left of a process group that was told to end: what its
// first process has started may take as long as that itself, and is then killed.
func endGroup(group int, until time.Time) {
	for syscall.Kill(-group, 0) == nil {
		if time.Now().After(until) {
			syscall.Kill(-group, syscall.SIGKILL)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ordinary are the variables that any program may need and nobody keeps a secret in.
var ordinary = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TERM", "TMPDIR", "RESPALDO_CONFIG"}

func (c Cmd) inherits() (env []string) {
	if !c.CleanEnv {
		return append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	}
	for _, name := range ordinary {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// program finds a program also where administrators' programs lie: cron and su start us
// with a PATH that lacks those directories.
func program(name string) string {
	if _, err := exec.LookPath(name); err == nil || strings.Contains(name, "/") {
		return name
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path
		}
	}
	return name // the error will say that it was not found
}

func (l Local) judge(ctx context.Context, c Cmd, r Result, err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !c.Uninterruptible && ctx.Err() != nil:
		return fmt.Errorf("%s: %w", c.Argv[0], context.Cause(ctx))
	case !errors.As(err, &exit):
		return fmt.Errorf("%s: %w", c.Argv[0], err)
	}
	for _, ok := range c.Ok {
		if r.Exit == ok {
			return nil
		}
	}
	failed := &ExitError{Cmd: c.String(), Exit: r.Exit, Stderr: redact(string(r.Stderr), c.Secret)}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		failed.Signal = status.Signal()
	}
	return failed
}

func (l Local) log(c Cmd, r Result, err error) {
	if l.Log == nil {
		return
	}
	attrs := []any{"cmd", c.String(), "took", r.Took.Round(time.Millisecond)}
	if err == nil || c.Quiet {
		l.Log.Debug("ran", append(attrs, "exit", r.Exit)...)
		return
	}
	l.Log.Warn("command failed", append(attrs, "exit", r.Exit, "stderr", strings.TrimSpace(redact(string(r.Stderr), c.Secret)))...)
}

func redact(s string, secrets []string) string {
	for _, secret := range secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "***")
		}
	}
	return s
}

// Quote makes a word safe to paste into a POSIX shell.
func Quote(word string) string {
	if word != "" && strings.IndexFunc(word, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-+=./:,@%", r))
	}) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
