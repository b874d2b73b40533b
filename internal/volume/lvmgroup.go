package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/internal/run"
)

// lookEvery is how often something that lasts milliseconds is looked at: the resolution of
// what is measured here, where the machine keeps up. On a machine with one processor, looking
// twice as often took visibly from the server.
const lookEvery = time.Millisecond

// groupLocks is where LVM's commands lock volume groups, by files (global/locking_dir in
// lvm.conf). It is empty where a command that waits for such a lock cannot be relied on.
func (s *System) groupLocks(ctx context.Context) string {
	argv := []string{"lvmconfig", "--typeconfig", "full", "global/locking_dir", "global/wait_for_locks", "global/use_lvmlockd", "global/locking_type"}
	if s.LVMConfig != "" {
		argv = append(argv, "--mergedconfig")
	}
	r, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Quiet: true})
	if err != nil {
		return ""
	}
	return parseGroupLocks(string(r.Stdout))
}

func parseGroupLocks(text string) (dir string) {
	waits, files := false, false
	for line := range strings.Lines(text) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "locking_dir":
			dir = strings.Trim(value, `"`)
		case "wait_for_locks":
			waits = value == "1"
		case "locking_type": // LVM 2.03 has this one only
			files = value == "1"
		case "use_lvmlockd":
			if value != "0" {
				return ""
			}
		}
	}
	if !waits || !files || !filepath.IsAbs(dir) {
		return ""
	}
	return dir
}

// groupLock is LVM's own lock on a volume group, held by us: its commands wait for it before
// they read the group's metadata, with their configuration read and the disks scanned.
type groupLock struct {
	file  *os.File
	inode uint64
}

// lockGroup takes the lock as LVM does (lib/misc/lvm-flock.c): flock of a file that may have
// been replaced meanwhile. It waits while an LVM command has it, up to the patience given.
func lockGroup(ctx context.Context, dir, vg string, patience time.Duration) (*groupLock, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		f, err := os.OpenFile(filepath.Join(dir, "V_"+vg), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o700)
		if err != nil {
			return nil, err
		}
		var ours, now unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && unix.Fstat(int(f.Fd()), &ours) == nil && unix.Stat(f.Name(), &now) == nil && ours.Ino == now.Ino && ours.Dev == now.Dev {
			return &groupLock{f, ours.Ino}, nil
		}
		f.Close()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("volume group %s is locked by another LVM command: %w", vg, context.Cause(ctx))
		}
	}
}

// release lets the lock go, also where a process that was just forked has the file still.
func (l *groupLock) release() {
	unix.Flock(int(l.file.Fd()), unix.LOCK_UN)
	l.file.Close()
}

// seen looks in /proc/locks for a process of a group that waits for the lock, or has it.
func (l *groupLock) seen(group int, waits bool) bool {
	text, err := os.ReadFile("/proc/locks")
	return err == nil && slices.ContainsFunc(lockers(string(text), l.inode, waits), func(pid int) bool {
		of, err := unix.Getpgid(pid)
		return err == nil && of == group
	})
}

// lockers are the processes that wait for a lock, or have it, by lines like these
// (proc_locks(5)):
//
//	1: FLOCK  ADVISORY  WRITE 1500 00:1f:85 0 EOF
//	1: -> FLOCK  ADVISORY  WRITE 1523 00:1f:85 0 EOF
func lockers(locks string, inode uint64, waits bool) (pids []int) {
	file := fmt.Sprint(":", inode)
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		blocked := len(f) > 1 && f[1] == "->"
		if blocked {
			f = f[1:]
		}
		if len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], file) && blocked == waits {
			if pid, err := strconv.Atoi(f[4]); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
