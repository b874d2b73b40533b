package backup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

func hooked(t *testing.T) (s *Site, said *heard, out string) {
	t.Helper()
	said = &heard{}
	out = filepath.Join(t.TempDir(), "environment")
	return &Site{Server: "shop", Run: run.Local{}, Report: said,
		Redact: func(text string) string { return strings.ReplaceAll(text, "s3cret", "***") }}, said, out
}

// A hook is told what there is to know, and no secret: neither in what it is told, nor in
// what it inherits.
func TestHooksEnvironment(t *testing.T) {
	for _, name := range []string{"RESPALDO_PASSWORD", "MYSQL_PWD", "AWS_SECRET_ACCESS_KEY", "ANYTHING"} {
		t.Setenv(name, "s3cret")
	}
	s, said, out := hooked(t)
	s.Hooks = Hooks{OnFailure: []string{"/bin/sh", "-c", `env > "$0"`, out}, After: []string{"/bin/sh", "-c", `env > "$0"`, out},
		ExitCode: func(error) int { return 143 }}
	s.tellHooks(t.Context(), Made{}, &respaldo.Error{Kind: respaldo.Interrupted, What: "interrupted; it's s3cret"})
	text := read(t, out)
	for _, line := range []string{"RESPALDO_EVENT=on_failure", "RESPALDO_SERVER=shop", "RESPALDO_BACKUP_ID=", "RESPALDO_ERROR=interrupted; it's ***", "RESPALDO_EXIT_CODE=143", "PATH=" + os.Getenv("PATH")} {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	if strings.Contains(text, "s3cret") || strings.Contains(text, "ANYTHING") {
		t.Errorf("it inherits\n%s", text)
	}
	s.tellHooks(t.Context(), Made{Backup: respaldo.Backup{ID: "4711"}}, nil)
	text = read(t, out)
	for _, line := range []string{"RESPALDO_EVENT=after", "RESPALDO_BACKUP_ID=4711", "RESPALDO_ERROR=", "RESPALDO_EXIT_CODE=0"} {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	if len(said.warnings) > 0 {
		t.Errorf("warned of %q", said.warnings)
	}
}

// A hook that fails, hangs or is not there is a warning; before a backup it is a refusal.
func TestHooksThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		argv []string
		says string
	}{
		"fails":   {[]string{"/bin/sh", "-c", "echo the disk is not there >&2; exit 7"}, "exit code 7: the disk is not there"},
		"hangs":   {[]string{"/bin/sleep", "1000"}, "it took longer than 20ms (timeout in [hooks])"},
		"missing": {[]string{"/no/such/program"}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			s, said, _ := hooked(t)
			s.Hooks = Hooks{Before: c.argv, After: c.argv, OnFailure: c.argv, Timeout: 5 * time.Second}
			if name == "hangs" {
				s.Hooks.Timeout = 20 * time.Millisecond
			}
			s.tellHooks(t.Context(), Made{}, nil)
			s.tellHooks(t.Context(), Made{}, errors.New("failed"))
			if len(said.warnings) != 2 || !strings.Contains(said.warnings[0], "hook after failed") || !strings.Contains(said.warnings[1], "hook on_failure failed") ||
				!strings.Contains(said.warnings[1], c.says) {
				t.Errorf("warned of %q", said.warnings)
			}
			err := (&operation{Site: s}).before(t.Context())
			if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), c.says) {
				t.Errorf("before: %v", err)
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
