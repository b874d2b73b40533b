package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// Process is one that keeps a mount or a device busy, and by what.
type Process struct {
	PID     int
	Command string
	How     string // "has /mnt/x open", "works in /mnt/x", "has it mounted in its own mount namespace"
}

const inNamespace = "has it mounted in its own mount namespace"

func (p Process) String() string { return fmt.Sprintf("%s (pid %d) %s", p.Command, p.PID, p.How) }

// Holders looks through /proc for whoever keeps a mount point or another folder, or the
// device given by its node, busy. Without root it sees the caller's own processes only.
func (s *System) Holders(path string) ([]Process, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	dev := st.Dev
	real := path
	if r, err := filepath.EvalSymlinks(path); err == nil {
		real = r
	}
	under := strings.TrimSuffix(real, "/") + "/"
	mounted := true // and so can be mounted elsewhere too
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev, under = st.Rdev, "" // only the node itself, and mounts of it
	} else if m, err := mountedOn(real); err != nil || m == nil {
		mounted = false
	}
	touches := func(target string) bool {
		return target == real || under != "" && strings.HasPrefix(target, under)
	}
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[string]bool{ours: true}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		proc := "/proc/" + e.Name()
		if how := howHeld(proc, touches); how != "" {
			found = append(found, Process{PID: pid, Command: readLine(proc + "/comm"), How: how})
			continue
		}
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || !mounted || seen[ns] {
			continue
		}
		seen[ns] = true
		if mountedIn(proc, dev) {
			found = append(found, Process{PID: pid, Command: readLine(proc + "/comm"), How: inNamespace})
		}
	}
	return found, nil
}

// howHeld reads links only: following one could hang on a dead device.
func howHeld(proc string, touches func(string) bool) string {
	if t, err := os.Readlink(proc + "/cwd"); err == nil && touches(t) {
		return "works in " + t
	}
	if t, err := os.Readlink(proc + "/root"); err == nil && touches(t) {
		return "has its root at " + t
	}
	for _, dir := range []string{"/fd", "/map_files"} {
		entries, _ := os.ReadDir(proc + dir)
		for _, e := range entries {
			if t, err := os.Readlink(proc + dir + "/" + e.Name()); err == nil && touches(t) {
				return "has " + t + " open"
			}
		}
	}
	return ""
}

func mountedIn(proc string, dev uint64) bool {
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	found, _ := mountinfo.GetMountsFromReader(f, ofDevice(dev))
	return len(found) > 0
}

func ofDevice(dev uint64) mountinfo.FilterFunc {
	return func(m *mountinfo.Info) (skip, stop bool) {
		return m.Major != int(unix.Major(dev)) || m.Minor != int(unix.Minor(dev)), false
	}
}

// mountsOf lists where a device is mounted in our own namespace.
func mountsOf(device string) []string {
	var st unix.Stat_t
	if unix.Stat(device, &st) != nil {
		return nil
	}
	mounts, _ := mountinfo.GetMounts(ofDevice(st.Rdev))
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points
}

// busyError says that something cannot be done because of who holds path.
func (s *System) busyError(what, path string) error {
	e := &respaldo.Error{Kind: respaldo.Leftovers, What: what + ": it is busy", Hint: "stop what holds it and run respaldo cleanup"}
	holders, _ := s.Holders(path)
	for i, h := range holders {
		if i == 5 {
			e.What += fmt.Sprintf("; and %d more", len(holders)-i)
			break
		}
		e.What += "; " + h.String()
	}
	return e
}

// heldError says who holds a device: mounts of it, devices stacked on it. Nil when there
// is nothing to be seen.
func (s *System) heldError(device, name string) error {
	if points := mountsOf(device); len(points) > 0 {
		return s.busyError(name+" is mounted at "+strings.Join(points, ", "), points[0])
	}
	var st unix.Stat_t
	if unix.Stat(device, &st) != nil {
		return nil
	}
	stacked, _ := filepath.Glob(fmt.Sprintf("%s/dev/block/%d:%d/holders/*", s.sys(), unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if len(stacked) == 0 {
		return nil
	}
	l := s.layer(stacked[0])
	return &respaldo.Error{Kind: respaldo.Leftovers, What: name + " is in use by " + l.String(), Hint: "take that down and run respaldo cleanup"}
}
