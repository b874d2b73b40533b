package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Device is a whole disk or a partition, looked at before something is made of it.
type Device struct {
	Path       string   // as asked for
	Bytes      int64    // its size
	Signatures []string // what wipefs finds on it: "ext4", "LVM2_member", "gpt"
	Group      string   // the volume group that it belongs to
}

// Device looks at a block device. One that is in use in any way is refused: mounted, swap,
// part of a mapping, of an array or of a Btrfs, with partitions, read-only, or held by a
// program. What it holds while nobody uses it is for the caller to judge.
func (s *System) Device(ctx context.Context, path string) (Device, error) {
	d := Device{Path: path}
	refuse := func(hint, format string, args ...any) (Device, error) {
		return d, &respaldo.Error{Kind: respaldo.Refused, What: path + " " + fmt.Sprintf(format, args...), Hint: hint}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return d, &respaldo.Error{Kind: respaldo.NotFound, What: "cannot look at the device " + path, Hint: "lsblk lists them", Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return refuse("lsblk lists them", "is no block device")
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	dir := s.sys() + "/dev/block/" + dev
	const another = "give another device"
	if parts, _ := filepath.Glob(dir + "/*/partition"); len(parts) > 0 {
		return refuse("give one of its partitions, or another device", "has %d partitions", len(parts))
	}
	if holders, _ := filepath.Glob(dir + "/holders/*"); len(holders) > 0 {
		return refuse(another, "is part of %s", s.layer(holders[0]).Name)
	}
	if readLine(dir+"/ro") == "1" {
		return refuse(another, "is read-only")
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return d, err
	}
	for _, m := range mounts {
		if of, err := s.mountedDevice(m); err == nil && of == dev {
			return refuse(another, "is mounted at %s", m.Mountpoint)
		}
	}
	for line := range strings.Lines(readFile("/proc/swaps")) {
		f := strings.Fields(line)
		var other unix.Stat_t
		if len(f) > 0 && unix.Stat(f[0], &other) == nil && other.Mode&unix.S_IFMT == unix.S_IFBLK && other.Rdev == st.Rdev {
			return refuse(another, "is swap space")
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0) // the kernel's own word on whether it is in use
	if errors.Is(err, unix.EBUSY) {
		return refuse(another, "is in use")
	}
	if errors.Is(err, os.ErrPermission) {
		return refuse("run respaldo as root", "cannot be opened")
	}
	if err != nil {
		return d, &respaldo.Error{Kind: respaldo.Refused, What: "cannot open the device " + path, Hint: another, Err: err}
	}
	defer f.Close()
	if d.Bytes, err = f.Seek(0, 2); err != nil {
		return d, err
	}
	if d.Signatures, err = s.signatures(ctx, path); err != nil {
		return d, err
	}
	d.Group, err = s.groupOf(ctx, path)
	return d, err
}

// signatures asks wipefs, which knows more of them than anybody, and changes nothing.
func (s *System) signatures(ctx context.Context, path string) ([]string, error) {
	r, err := s.Run.Run(ctx, run.Cmd{Argv: []string{"wipefs", "--no-act", "--json", path}})
	if err != nil {
		return nil, err
	}
	var report struct {
		Signatures []struct {
			Type string `json:"type"`
		} `json:"signatures"`
	}
	if len(strings.TrimSpace(string(r.Stdout))) > 0 { // nothing at all on a blank device
		if err := json.Unmarshal(r.Stdout, &report); err != nil {
			return nil, fmt.Errorf("cannot read the report of wipefs: %w", err)
		}
	}
	var found []string
	for _, one := range report.Signatures {
		found = append(found, one.Type)
	}
	return found, nil
}

// groupOf is the volume group of a physical volume; empty without LVM, or if it is none.
func (s *System) groupOf(ctx context.Context, path string) (string, error) {
	r, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv([]string{"pvs", "--noheadings", "--options", "pv_name,vg_name"}), Quiet: true})
	if run.NotInstalled(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	real := realDevice(path)
	for line := range strings.Lines(string(r.Stdout)) {
		if f := strings.Fields(line); len(f) == 2 && realDevice(f[0]) == real {
			return f[1], nil
		}
	}
	return "", nil
}

func realDevice(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// refuseHolding refuses a device with anything on it, unless it may be wiped; a member of a
// volume group in any case.
func (d Device) refuseHolding(wipe bool) error {
	switch {
	case d.Group != "":
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s belongs to the volume group %s", d.Path, d.Group),
			Hint: "use the group's free space: --vg " + d.Group + "; or take the device out of it first: vgreduce"}
	case len(d.Signatures) > 0 && !wipe:
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is not blank: it holds %s", d.Path, strings.Join(d.Signatures, ", ")),
			Hint: "if nobody needs what is on it, all of which would be lost, say so by its name: --wipe " + d.Path}
	}
	return nil
}

// StillFree refuses a device that has been used for something since the making was planned.
func (s *System) StillFree(ctx context.Context, m Making) error {
	if m.Device == "" {
		return nil // LVM's commands look for themselves
	}
	d, err := s.Device(ctx, m.Device)
	if err != nil {
		return err
	}
	return d.refuseHolding(slices.Equal(d.Signatures, m.Wipe))
}
