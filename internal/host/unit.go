package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// unitOf finds the unit whose server a process is. Its control group alone does not say so:
// a supervisor, cron or a login is a unit too, and whatever they started lies in its group.
func (h *Host) unitOf(ctx context.Context, pid int) (string, error) {
	unit, group, err := h.groupOf(pid)
	if err != nil {
		return "", refuseService(err.Error())
	}
	if unit == "" {
		return "", refuseService(fmt.Sprintf("process %d does not belong to a unit of systemd's", pid))
	}
	words, err := h.show(ctx, "MainPID", unit)
	if err != nil {
		return "", err
	}
	if len(words) != 1 {
		return "", refuseService("systemd does not say what " + unit + " runs")
	}
	family := h.family(pid)
	if slices.ContainsFunc(family, func(p int) bool { return words[0] == strconv.Itoa(p) }) {
		return unit, nil
	}
	if words[0] != "0" {
		return "", refuseService(fmt.Sprintf("process %d was started by %s, which runs something else (process %s)", pid, unit, words[0]))
	}
	// An init script, or a daemon without a PIDFile: systemd does not know the main process.
	other, err := h.stranger(family, group)
	if err != nil {
		return "", refuseService(err.Error())
	}
	if other != 0 {
		return "", refuseService(fmt.Sprintf("process %d was started by %s, and so was process %d", pid, unit, other))
	}
	return unit, nil
}

// groupOf reads a process's control group, "0::/system.slice/mariadb.service", and the unit
// that it is of. A program started by hand lies in its user's session, one in a container in
// a scope: these are no unit.
func (h *Host) groupOf(pid int) (unit, group string, err error) {
	groups, err := os.ReadFile(h.proc(pid, "cgroup"))
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(groups)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		if controllers != "" && controllers != "name=systemd" {
			continue
		}
		unit := path.Base(group)
		if strings.HasSuffix(unit, ".service") && !strings.HasPrefix(group, "/user.slice/") {
			return unit, group, nil
		}
	}
	return "", "", nil
}

// family is the server and, where that started it, mysqld_safe.
func (h *Host) family(pid int) []int {
	family := []int{pid}
	parent := h.parentOf(pid)
	line, _ := os.ReadFile(h.proc(parent, "cmdline"))
	for word := range strings.SplitSeq(string(line), "\x00") { // /bin/sh /usr/bin/mysqld_safe
		if name := path.Base(word); name == "mysqld_safe" || name == "mariadbd-safe" {
			return append(family, parent)
		}
	}
	return family
}

// stranger is a process of a control group that is neither of the family nor started by one
// of it (mysqld_safe has a logger); 0 where there is none.
func (h *Host) stranger(family []int, group string) (int, error) {
	entries, err := os.ReadDir(h.path("/proc"))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(family, pid) {
			continue
		}
		_, in, err := h.groupOf(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		if in == group && !slices.Contains(family, h.parentOf(pid)) {
			return pid, nil
		}
	}
	return 0, nil
}

// parentOf is 0 for a process that has ended.
func (h *Host) parentOf(pid int) int {
	status, _ := os.ReadFile(h.proc(pid, "status"))
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			parent, _ := strconv.Atoi(strings.TrimSpace(value))
			return parent
		}
	}
	return 0
}

func (h *Host) proc(pid int, file string) string {
	return h.path("/proc/" + strconv.Itoa(pid) + "/" + file)
}
