package backup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// A failed private server's log outlives its run, the hints say where, and a server that
// fails every night does not fill the disk.
func TestLogsOfFailuresAreKept(t *testing.T) {
	site := &Site{Server: "main", StateDir: t.TempDir(), RunDir: t.TempDir()}
	var last string
	others := filepath.Join(site.StateDir, "failed", "another-20260101T000000-1.log")
	if err := writeDurably(others, nil); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := os.Stat(others); err != nil {
			t.Errorf("another server's log: %v", err)
		}
	}()
	for range keptLogs + 3 {
		l, err := ledger.Open(site.StateDir, site.Server, "backup")
		if err != nil {
			t.Fatal(err)
		}
		scratch := t.TempDir()
		log := filepath.Join(scratch, mysql.InstanceLog)
		if err := os.WriteFile(log, []byte("of run "+l.Run()), 0o600); err != nil {
			t.Fatal(err)
		}
		inner := &respaldo.Error{Kind: respaldo.NotProved, What: "does not start", Hint: "its log is " + log}
		op := &operation{Site: site, ledger: l}
		kept := op.keepLog(scratch, errors.Join(inner, errors.New("another")))
		hints := respaldo.HintsOf(kept)
		if len(hints) != 1 || strings.Contains(hints[0], scratch) {
			t.Fatalf("hints %q", hints)
		}
		last = strings.TrimPrefix(hints[0], "its log is ")
		if text, err := os.ReadFile(last); err != nil || string(text) != "of run "+l.Run() {
			t.Errorf("the log that the hint names: %q, %v", text, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	logs, err := os.ReadDir(filepath.Dir(last))
	if err != nil || len(logs) != keptLogs+2 { // of before, of the last run, of another server
		t.Errorf("%d logs are kept: %v", len(logs), err)
	}
	if _, err := os.Stat(last); err != nil {
		t.Errorf("the newest is not among them: %v", err)
	}
}
