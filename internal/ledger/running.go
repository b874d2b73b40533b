package ledger

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Alive tells whether the very process that intended the entry still runs: what it holds is
// in use then, and no leftover.
func (e Entry) Alive() bool {
	if !e.ThisBoot() {
		return false
	}
	start, err := startOf(e.PID)
	return err == nil && start == e.Start
}

// Running names the operation that has the server's ledger open now, and since when; "" if
// none has. It takes no lock, which an operation that begins at this instant would find taken.
func Running(dir, server string) (operation string, since time.Time) {
	path := filepath.Join(dir, server+".lock")
	content, err := os.ReadFile(path)
	var h holder
	if err != nil || json.Unmarshal(content, &h) != nil || h.PID == 0 {
		return "", time.Time{}
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", time.Time{}
	}
	// A killed holder leaves its name in the file, and its process ID to others (proc_locks(5)).
	locks, _ := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF
		if len(f) >= 6 && f[1] == "FLOCK" && f[4] == fmt.Sprint(h.PID) && strings.HasSuffix(f[5], fmt.Sprintf(":%d", info.Sys().(*syscall.Stat_t).Ino)) {
			return h.Operation, h.Started
		}
	}
	return "", time.Time{}
}
