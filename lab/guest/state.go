package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// State is what the system has that an operation might leave behind.
type State map[string]bool

// Look notes what there is before an operation: mounts, logical volumes, device-mapper
// devices and which of them are suspended, Btrfs subvolumes, processes. Locks held in SQL
// are not among it: see Load.Moves.
func Look(t T) State {
	t.Helper()
	s := State{}
	for _, m := range mounts() {
		s[fmt.Sprintf("mount of %s on %s", m.source, m.point)] = true
	}
	for _, d := range devices(t) {
		s["device "+d.name] = true
		if d.suspended {
			s["suspended device "+d.name] = true
		}
	}
	for _, lv := range strings.Fields(Run(t, "lvs", "--noheadings", "-o", "vg_name,lv_name", "--separator", "/")) {
		s["logical volume "+lv] = true
	}
	for _, sub := range subvolumes(t) {
		s["subvolume "+sub] = true
	}
	for _, p := range processes() {
		s["process "+p] = true
	}
	return s
}

// NothingLeft fails the test when the system has anything now that it had not when the
// State was taken. Words in keep excuse whatever contains them: the name of a snapshot
// that was asked to stay. Processes get a few seconds to die.
func (s State) NothingLeft(t T, keep ...string) {
	t.Helper()
	var left []string
	Eventually(t, 5*time.Second, func() error {
		left = nil
		onlyProcesses := true
		for item := range Look(t) {
			if s[item] || excused(item, keep) {
				continue
			}
			left = append(left, item)
			onlyProcesses = onlyProcesses && strings.HasPrefix(item, "process ")
		}
		if len(left) > 0 && onlyProcesses {
			return fmt.Errorf("processes remain")
		}
		return nil
	}, func(error) {})
	sort.Strings(left)
	for _, item := range left {
		t.Errorf("left behind: %s", item)
	}
}

func excused(item string, keep []string) bool {
	for _, k := range keep {
		if strings.Contains(item, k) {
			return true
		}
	}
	return false
}

// Eventually asks until there is no error, or gives the last one to failed after the
// limit; t.Fatal if failed is left out. It asks four times a second: looking is expensive
// in a guest.
func Eventually(t T, limit time.Duration, ask func() error, failed ...func(error)) {
	t.Helper()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			if len(failed) > 0 {
				failed[0](err)
				return
			}
			t.Fatalf("still so after %s: %v", limit, err)
		}
	}
}

type device struct {
	name      string
	suspended bool
}

// devices are the device-mapper's.
func devices(t T) []device {
	t.Helper()
	var found []device
	for _, line := range strings.Split(strings.TrimSpace(Run(t, "dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "name,suspended")), "\n") {
		if f := strings.Fields(line); len(f) == 2 {
			found = append(found, device{f[0], f[1] == "Suspended"})
		}
	}
	return found
}

func subvolumes(t T) []string {
	t.Helper()
	var found []string
	seen := map[string]bool{}
	for _, m := range mounts() {
		if m.fstype != "btrfs" || seen[m.source] {
			continue
		}
		seen[m.source] = true
		for _, line := range strings.Split(Run(t, "btrfs", "subvolume", "list", m.point), "\n") {
			if _, path, ok := strings.Cut(line, " path "); ok {
				found = append(found, m.source+" "+path)
			}
		}
	}
	return found
}

// processes are all but this one and the kernel's own.
func processes() []string {
	entries, _ := filepath.Glob("/proc/[0-9]*")
	var found []string
	for _, e := range entries {
		pid := filepath.Base(e)
		if line := commandLine(pid); line != "" && pid != strconv.Itoa(os.Getpid()) {
			found = append(found, pid+" "+line)
		}
	}
	return found
}

// commandLine is empty for a kernel thread and for a process that has ended.
func commandLine(pid string) string {
	text, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	line := strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
	return line[:min(len(line), 200)]
}
