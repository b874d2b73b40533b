package backup

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Hooks are the user's own programs around a backup, argv each; empty ones are not run.
// None runs while the server is held. What becomes of After and OnFailure changes nothing.
type Hooks struct {
	Before    []string // when it fails, there is no backup
	After     []string // a backup that succeeded
	OnFailure []string // or did not: refused and interrupted ones, too
	Timeout   time.Duration
	// ExitCode is what the program will end with for an error; nil: the error's kind.
	ExitCode func(error) int
}

// before asks whether there shall be a backup, when this operation has the server for
// itself and has touched nothing yet.
func (op *operation) before(ctx context.Context) error {
	err := op.hook(ctx, "before", op.Hooks.Before, Made{}, nil)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: "the hook before the backup failed, so there is none",
		Hint: "see why it failed, or take it out of [hooks] in the configuration", Err: err}
}

// tellHooks runs when everything is released, interrupted or not: a hook may use respaldo,
// and one that unmounts the repository's disk must be able to.
func (s *Site) tellHooks(ctx context.Context, made Made, err error) {
	event, argv := "after", s.Hooks.After
	if err != nil {
		event, argv = "on_failure", s.Hooks.OnFailure
	}
	if failed := s.hook(context.WithoutCancel(ctx), event, argv, made, err); failed != nil {
		s.Report.Warn(fmt.Sprintf("the hook %s failed: %v", event, failed))
	}
}

// hook runs one program to its end or its timeout. It gets none of our environment that may
// hold secrets, and a process group of its own: a Ctrl-C is ours to answer.
func (s *Site) hook(ctx context.Context, event string, argv []string, made Made, cause error) error {
	if len(argv) == 0 {
		return nil
	}
	timeout := s.Hooks.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Minute
	}
	bound, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %s (timeout in [hooks])", timeout))
	defer cancel()
	_, err := s.Run.Run(bound, run.Cmd{
		Argv: argv, Env: s.hookEnv(event, made, cause), CleanEnv: true, Quiet: true,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	})
	if err == nil {
		s.Report.Step("hook", event+": "+filepath.Base(argv[0]))
	}
	return err
}

// hookEnv says what there is to know. The kernel takes no NUL and no variable above 128 KiB.
func (s *Site) hookEnv(event string, made Made, cause error) []string {
	text, code := "", 0
	if cause != nil {
		text = strings.ReplaceAll(s.redact(cause.Error()), "\x00", "")
		text = text[:min(len(text), 16<<10)]
		code = int(respaldo.KindOf(cause))
		if s.Hooks.ExitCode != nil {
			code = s.Hooks.ExitCode(cause)
		}
	}
	return []string{"RESPALDO_EVENT=" + event, "RESPALDO_SERVER=" + s.Server, "RESPALDO_BACKUP_ID=" + made.Backup.ID,
		"RESPALDO_ERROR=" + text, "RESPALDO_EXIT_CODE=" + strconv.Itoa(code)}
}

func (s *Site) redact(text string) string {
	if s.Redact == nil {
		return text
	}
	return s.Redact(text)
}
