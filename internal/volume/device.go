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
	// Identity is what it is known by when names have changed, as they do between boots.
	Identity string
}

// Device looks at a block device. One that is in use in any way is refused: mounted, swap,
// part of a mapping, of an array or of a Btrfs, with partitions, read-only, or open for
// writing by a program. What it holds while nobody uses it is for the caller to judge.
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
	dir := s.sysDir(st.Rdev)
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
	if writer := writerOf(st.Rdev); writer != "" { // a plain open, of which the kernel says nothing below
		return refuse("stop that, or give another device", "is open for writing by %s", writer)
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
	d.Identity = s.identity(dir)
	d.Group, err = s.groupOf(ctx, path)
	return d, err
}

// writerOf names a process that has a block device open for writing, by whatever name below /dev.
// Who only reads it does no harm: udev does so whenever one was closed.
func writerOf(rdev uint64) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		proc, fd, _ := strings.Cut(link, "/fd/")
		if target, err := os.Readlink(link); err != nil || !strings.HasPrefix(target, "/dev/") || proc == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue
		}
		info, err := os.Lstat(link) // its mode is that of the open
		if err != nil || info.Mode().Perm()&0o200 == 0 {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(link, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == rdev {
			return fmt.Sprintf("process %s (%s), as its file %s", filepath.Base(proc), readLine(proc+"/comm"), fd)
		}
	}
	return ""
}

// identity reads what the kernel knows a device by, from its directory in sysfs. One that
// has no such thing, as the plain disks of a virtual machine, is known by its name and its
// number for as long as the machine runs.
func (s *System) identity(dir string) string {
	part := ""
	real := realDevice(dir)
	if number := readLine(real + "/partition"); number != "" {
		part = fmt.Sprintf(" partition %s at %s", number, readLine(real+"/start"))
		real = filepath.Dir(real)
	}
	known := ""
	for _, name := range []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"} {
		if value := strings.TrimSpace(readLine(filepath.Join(real, name))); value != "" {
			known = name + " " + value
			break
		}
	}
	if known == "" {
		known = fmt.Sprintf("%s %s since boot %s", filepath.Base(real), readLine(real+"/dev"), readLine("/proc/sys/kernel/random/boot_id"))
	}
	return fmt.Sprintf("%s%s, %s sectors", known, part, readLine(dir+"/size"))
}

// identityOf is a device's, and empty if there is none of the name.
func (s *System) identityOf(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return s.identity(s.sysDir(st.Rdev))
}

func (s *System) sysDir(rdev uint64) string {
	return fmt.Sprintf("%s/dev/block/%d:%d", s.sys(), unix.Major(rdev), unix.Minor(rdev))
}

// sameDevice refuses a device that is not the one of the plan.
func (m Making) sameDevice(identity string) error {
	if m.Identity == "" || m.Identity == identity { // of an older release's journal
		return nil
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s cannot be told to be the device that was planned with: it is known by %q, and was by %q", m.Device, identity, m.Identity),
		Hint: "names of devices can change when a machine starts (lsblk -o NAME,SIZE,SERIAL,WWN shows what is what); respaldo prepare --undo leaves this one alone, then prepare again"}
}

// onlyHolds refuses a device with anything on it but what it may hold: what was to be wiped,
// or comes from us.
func (m Making) onlyHolds(d Device, may []string) error {
	for _, signature := range d.Signatures {
		if !slices.Contains(may, signature) {
			return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s holds %s, which was not there when this was planned", m.Device, signature), Hint: "see what it is: wipefs " + m.Device}
		}
	}
	if d.Group != "" && d.Group != m.Group {
		return d.refuseHolding(true)
	}
	return nil
}

// guard looks at the making's device before something is made on it.
func (s *System) guard(m Making, may ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := m.sameDevice(s.identityOf(m.Device)); err != nil {
			return err
		}
		d, err := s.Device(ctx, m.Device)
		if err != nil {
			return err
		}
		return m.onlyHolds(d, may)
	}
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
	if err := m.sameDevice(d.Identity); err != nil {
		return err
	}
	return d.refuseHolding(slices.Equal(d.Signatures, m.Wipe))
}
