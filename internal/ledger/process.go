package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Attributes that NoteProcess writes.
const (
	attrPID   = "pid"
	attrStart = "pid_start"
)

type process struct {
	Boot  string
	PID   int
	Start uint64
}

func currentProcess() (process, error) {
	boot, err := bootID()
	if err != nil {
		return process{}, err
	}
	start, err := startOf(os.Getpid())
	if err != nil {
		return process{}, err
	}
	return process{Boot: boot, PID: os.Getpid(), Start: start}, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// ThisBoot tells whether the machine has run on since the entry was noted. After a reboot
// its mounts and processes are gone, its volumes are not.
func (e Entry) ThisBoot() bool {
	boot, err := bootID()
	return err == nil && boot == e.Boot
}

// Process returns the process noted with NoteProcess, if that very process, and not a
// later one with its ID, is still alive. A zombie is not.
func (e Entry) Process() (pid int, alive bool) {
	pid, err := strconv.Atoi(e.Attrs[attrPID])
	if err != nil || !e.ThisBoot() {
		return pid, false
	}
	start, err := startOf(pid)
	return pid, err == nil && strconv.FormatUint(start, 10) == e.Attrs[attrStart]
}

// startOf reads when a live process started, in clock ticks after boot: the 22nd field of
// /proc/PID/stat, counted from the last parenthesis because a program may put some into
// its own name (proc_pid_stat(5)).
func startOf(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 20 {
		return 0, errors.New("cannot read /proc/" + strconv.Itoa(pid) + "/stat")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
