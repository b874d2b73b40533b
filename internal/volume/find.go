package volume

import (
	"context"
	"fmt"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// Find returns the volume that a path lies on. What cannot be snapshotted is refused
// by name, with what to do about it.
func (s *System) Find(ctx context.Context, path string) (Volume, error) {
	loc, err := s.Locate(ctx, path)
	if err != nil {
		return nil, err
	}
	if loc.FSType == "btrfs" { // on whatever it lies, LVM included
		return s.findBtrfs(loc)
	}
	if err := refuseLocation(loc); err != nil {
		return nil, err
	}
	return s.findLVM(ctx, loc)
}

const moveHint = "move the data to an LVM logical volume or a Btrfs subvolume"

// refuseLocation says why nothing at this place can be snapshotted, or returns nil for a
// known filesystem directly on a logical volume.
func refuseLocation(loc Location) error {
	refuse := func(hint, format string, args ...any) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: loc.Path + " " + fmt.Sprintf(format, args...), Hint: hint}
	}
	switch {
	case loc.FSType == "zfs":
		return refuse(moveHint+"; ZFS is not supported yet", "lies on ZFS (%s)", loc.Source)
	case loc.FSType == "overlay":
		return refuse("run respaldo on the host that owns the data, not inside the container, or give the data a volume of its own",
			"lies on an overlay filesystem, a container's own root perhaps")
	case strings.HasPrefix(loc.FSType, "nfs"), loc.FSType == "cifs", loc.FSType == "ceph", strings.HasPrefix(loc.FSType, "fuse"):
		return refuse("run respaldo on the machine whose disks hold the data, or "+moveHint,
			"lies on %s (%s), not on a volume of this machine", loc.FSType, loc.Source)
	case len(loc.Stack) == 0:
		return refuse(moveHint, "lies on %s, which has no volume below it", loc.FSType)
	}
	top := loc.Stack[0]
	if top.Kind != LayerLVM {
		for _, below := range loc.Stack[1:] {
			if below.Kind == LayerLVM {
				return refuse("put the filesystem directly on a logical volume ("+string(top.Kind)+" below LVM is fine), or use Btrfs",
					"lies on %s, which is itself on %s: a snapshot below it cannot be opened yet", top, below)
			}
		}
		return refuse(moveHint, "lies on %s, which cannot be snapshotted", top)
	}
	switch loc.FSType {
	case "ext4", "ext3", "ext2", "xfs":
		return nil
	}
	return refuse("ext4 and XFS on LVM are supported, and Btrfs anywhere", "lies on %s, whose snapshots are not supported", loc.FSType)
}
