package volume

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Mounted is how a volume is mounted, so that the mount can be undone and made again. It can
// be written down as JSON.
type Mounted struct {
	// At is the mount point; empty for a Btrfs subvolume that is reached through its parent's
	// mount, which stays.
	At      string `json:"at,omitempty"`
	Device  string `json:"device,omitempty"`
	FSType  string `json:"fs_type,omitempty"`
	Options string `json:"options,omitempty"` // as mount(8) takes them
	// Path is where the volume's top is seen while it is mounted.
	Path string `json:"path"`
}

// Mounted looks how a volume is mounted, and refuses what could not be mounted again as it
// was, or not with another volume in its place: several mounts, mounts below it, the root
// filesystem, a Btrfs subvolume that fstab names by its ID or that has others in it. The options are those of
// /etc/fstab, or where it does not name the mount point the kernel's.
func (s *System) Mounted(ctx context.Context, v respaldo.Volume) (Mounted, []string, error) {
	m, warnings, err := s.mountOfVolume(v)
	if err != nil || v.Kind != respaldo.Btrfs {
		return m, warnings, err
	}
	// They would not go back, but away with what the volume was, and keep that from being removed.
	nested, err := s.Nested(ctx, m.Path)
	if err == nil && len(nested) > 0 {
		err = &respaldo.Error{Kind: respaldo.Refused, What: strings.Join(nested, ", ") + " is a subvolume of its own in " + v.Name + ", and would not go back with it",
			Hint: "move it out of " + m.Path + ", or delete it (btrfs subvolume delete); to go back now, restore a backup"}
	}
	return m, warnings, err
}

func (s *System) mountOfVolume(v respaldo.Volume) (Mounted, []string, error) {
	refuse := func(hint, format string, args ...any) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf(format, args...), Hint: hint}
	}
	if v.MountPoint == "/" && v.Kind != respaldo.Btrfs {
		return Mounted{}, nil, refuse("restore a backup instead", "%s is the root filesystem, which cannot be unmounted", v.Name)
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return Mounted{}, nil, err
	}
	root := "/"
	if v.Kind == respaldo.Btrfs {
		root = filepath.Join("/", v.Name)
	}
	var of []*mountinfo.Info
	var through *mountinfo.Info // a mount of what the subvolume lies in
	for _, m := range all {
		dev, err := s.mountedDevice(m)
		if err != nil || dev == "" || s.layer(s.sys()+"/dev/block/"+dev).Node != v.Device {
			continue
		}
		switch {
		case m.Root == root:
			of = append(of, m)
		case root == "/" || strings.HasPrefix(m.Root, root+"/"):
			return Mounted{}, nil, refuse("unmount it, and run again", "a folder of %s is mounted by itself at %s (a bind mount)", v.Name, m.Mountpoint)
		case m.Mountpoint == v.MountPoint:
			through = m
		}
	}
	switch {
	case len(of) == 0 && through != nil:
		rel, err := filepath.Rel(through.Root, root)
		return Mounted{Path: filepath.Join(through.Mountpoint, rel)}, nil, err
	case len(of) == 0:
		return Mounted{}, nil, refuse("mount it, and run again", "%s is not mounted at %s", v.Name, v.MountPoint)
	case len(of) > 1:
		var points []string
		for _, m := range of {
			points = append(points, m.Mountpoint)
		}
		return Mounted{}, nil, refuse("unmount all but "+v.MountPoint+", and run again", "%s is mounted more than once: %s", v.Name, strings.Join(points, ", "))
	}
	m := of[0]
	if m.Mountpoint == "/" {
		return Mounted{}, nil, refuse("restore a backup instead", "%s is the root filesystem, which cannot be unmounted", v.Name)
	}
	if below, err := s.MountsUnder(m.Mountpoint); err != nil {
		return Mounted{}, nil, err
	} else if len(below) > 1 {
		return Mounted{}, nil, refuse("unmount it, and run again", "something else is mounted below %s: %s", m.Mountpoint, strings.Join(below[:len(below)-1], ", "))
	}
	mounted := Mounted{At: m.Mountpoint, Path: m.Mountpoint, Device: v.Device, FSType: m.FSType, Options: kernelOptions(m, root)}
	line, err := fstabLine("/etc/fstab", m.Mountpoint)
	if err != nil {
		return Mounted{}, nil, &respaldo.Error{Kind: respaldo.Refused, What: "cannot read /etc/fstab", Err: err, Hint: "see what is wrong with it"}
	}
	var warnings []string
	if line != nil {
		if warnings, err = judgeFstab(line, v, root); err != nil {
			return Mounted{}, nil, err
		}
		mounted.Options = line[3]
	}
	return mounted, warnings, nil
}

// judgeFstab refuses a line that would mount something else after the volume was replaced.
func judgeFstab(line []string, v respaldo.Volume, root string) (warnings []string, err error) {
	refuse := func(what string) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: "/etc/fstab mounts " + line[1] + " " + what,
			Hint: "write subvol=" + root + " there instead; a rollback gives the name to another subvolume, with another ID"}
	}
	spec := strings.ToUpper(line[0])
	byContent := strings.HasPrefix(spec, "UUID=") || strings.HasPrefix(spec, "LABEL=") || strings.HasPrefix(spec, "/DEV/DISK/BY-UUID/") || strings.HasPrefix(spec, "/DEV/DISK/BY-LABEL/")
	if v.Kind != respaldo.Btrfs {
		if byContent {
			warnings = append(warnings, fmt.Sprintf("/etc/fstab mounts %s by %s, which the volume's snapshots carry too: write /dev/%s there", line[1], line[0], v.Name))
		}
		return warnings, nil
	}
	named := false
	for o := range strings.SplitSeq(line[3], ",") {
		if strings.HasPrefix(o, "subvolid=") {
			return nil, refuse("by " + o)
		}
		named = named || strings.HasPrefix(o, "subvol=")
	}
	if !named {
		return nil, refuse("as the filesystem's default subvolume")
	}
	return nil, nil
}

// kernelOptions are those of a mount that mount(8) takes back.
func kernelOptions(m *mountinfo.Info, root string) string {
	var options []string
	seen := map[string]bool{}
	for o := range strings.SplitSeq(m.Options+","+m.VFSOptions, ",") {
		name, _, _ := strings.Cut(o, "=")
		switch {
		case o == "", seen[o], name == "seclabel", name == "subvol", name == "subvolid":
			continue
		}
		seen[o] = true
		options = append(options, o)
	}
	if m.FSType == "btrfs" {
		options = append(options, "subvol="+root)
	}
	return strings.Join(options, ",")
}

// fstabLine returns the fields of the line for a mount point, nil where there is none.
func fstabLine(path, at string) ([]string, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`) // fstab(5)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") || filepath.Clean(unescape.Replace(fields[1])) != at {
			continue
		}
		if len(fields) == 3 {
			fields = append(fields, "defaults")
		}
		fields[1] = at
		return fields, nil
	}
	return nil, lines.Err()
}

// IsMounted tells whether a volume is mounted, or another filesystem where it was.
func (s *System) IsMounted(m Mounted) (bool, error) {
	if m.At == "" {
		return true, nil
	}
	there, err := mountedOn(m.At)
	return there != nil, err
}

// MountAgain mounts a volume as it was. One that is mounted there already is left alone.
func (s *System) MountAgain(ctx context.Context, m Mounted) error {
	if is, err := s.IsMounted(m); is || err != nil {
		return err
	}
	if _, err := s.Run.Run(ctx, run.Cmd{Argv: []string{"mount", "-t", m.FSType, "-o", m.Options, m.Device, m.At}, Uninterruptible: true}); err != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot mount " + m.Device + " at " + m.At + " again", Err: err,
			Hint: fmt.Sprintf("see dmesg | tail; by hand: mount -o %s %s %s", m.Options, m.Device, m.At)}
	}
	return nil
}

// UnmountVolume undoes the mount, and leaves its directory. Whoever keeps it busy for some
// seconds is named. A volume that is not mounted by itself is only asked about.
func (s *System) UnmountVolume(ctx context.Context, m Mounted) error {
	if m.At == "" {
		if holders, err := s.Holders(m.Path); err != nil || len(holders) == 0 {
			return err
		}
		return s.busyError(m.Path, m.Path)
	}
	return s.unmount(ctx, m.At)
}

// Inhabitants names the processes that hold a volume besides one, by PID. Mount namespaces
// of services are not counted: an unmount reaches them too, as a rule.
func (s *System) Inhabitants(m Mounted, besides int) ([]Process, error) {
	holders, err := s.Holders(m.Path)
	var others []Process
	for _, h := range holders {
		if h.PID != besides && h.How != inNamespace {
			others = append(others, h)
		}
	}
	return others, err
}
