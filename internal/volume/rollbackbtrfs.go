package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

func (v *btrfsVolume) planRollback(ctx context.Context, snap Snapshot, r *Rollback) error {
	refuse := func(what, hint string) error { return &respaldo.Error{Kind: respaldo.Refused, What: what, Hint: hint} }
	if v.path == "/" {
		return refuse(fmt.Sprintf("the data is a folder of the top level of Btrfs on %s, and a top level cannot be replaced", v.desc.Device),
			"put the data into a subvolume of its own (btrfs subvolume create, see respaldo prepare); to go back now, restore a backup, or copy the files out of "+r.Snapshot.Path)
	}
	taken, ok := snap.(*btrfsSnapshot)
	if !ok || taken.device != v.desc.Device {
		return refuse("snapshot "+r.Snapshot.Name+" lies on another filesystem than the data", "see respaldo snapshot list")
	}
	if points := taken.mounts(); len(points) > 0 {
		return inUse(v.sys.busyError("Btrfs snapshot "+r.Snapshot.Name+" is mounted at "+strings.Join(points, ", "), points[0]))
	}
	r.Copy = r.State.Name // the two change places
	if err := checkName(r.Copy+".json", ""); err != nil {
		return err
	}
	top, err := v.sys.openTop(v.desc.Device)
	if err != nil {
		return err
	}
	defer top.Close()
	if _, err := os.Lstat(under(top, btrfsFolder, r.Copy+".json")); err == nil {
		return nameTaken(r.Copy, "/"+btrfsFolder+" on "+v.desc.Device)
	}
	return nil
}

// swapBtrfs has the copy and the volume's subvolume change places, by one system call.
// Mounts by name (subvol=) find the new one; those by ID would go on showing the former.
func (s *System) swapBtrfs(ctx context.Context, r *Rollback, o SwitchOptions) error {
	top, err := s.openTop(r.Volume.Device)
	if err != nil {
		return err
	}
	defer top.Close()
	fail := func(err error) error {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot put the copy of snapshot " + r.Snapshot.Name + " in the place of subvolume " + r.Volume.Name, Err: err,
			Hint: "see btrfs subvolume list -u, and dmesg"}
	}
	place, aside := under(top, r.Volume.Name), under(top, btrfsFolder, r.Copy)
	there, err := uuidAt(place)
	if err != nil {
		return fail(err)
	}
	folder, err := os.Open(under(top, btrfsFolder))
	if err != nil {
		return fail(err)
	}
	defer folder.Close()
	if there != r.CopyID {
		if other, err := uuidAt(aside); err != nil || other != r.CopyID || !strings.HasSuffix(r.Volume.ID, "/"+there) {
			return fail(errors.Join(errors.New("the subvolumes are not what they were"), err))
		}
		// That it stays is said before it is what it says: a cleanup without our notes leaves it.
		if err := writeInfo(folder, r.State); err != nil {
			return fail(err)
		}
		o.step("state.kept")
		if err := disk.Exchange(place, aside); err != nil {
			return fail(err)
		}
		o.step("exchanged")
	}
	former, err := os.Open(aside)
	if err != nil {
		return fail(err)
	}
	defer former.Close()
	if err := setReadOnly(former); err != nil {
		return fail(err)
	}
	if err := writeInfo(folder, r.State); err != nil {
		return fail(err)
	}
	if err := unix.Syncfs(int(top.Fd())); err != nil {
		return fail(err)
	}
	o.step("synced")
	return nil
}

func uuidAt(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sub, err := subvolumeOf(f)
	return sub.uuid, err
}

// setReadOnly makes a subvolume one that nobody can write to.
func setReadOnly(f *os.File) error {
	flags := make([]byte, 8)
	binary.NativeEndian.PutUint64(flags, subvolReadOnly)
	return btrfsIoctl(f, iocSubvolSetFlags, flags)
}
