package volume

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// defaultBusyFor is long enough for udev to let go of a new device, and for a cancelled
// reader to close its files.
const defaultBusyFor = 5 * time.Second

// mountFlags: nothing in a data directory is a device or is run. How mounts propagate
// is left as the host has it: a mount that a service's or container's namespace has
// copied is undone there together with ours only while the two are peers, and a copy
// left behind would keep the volume busy for ever.
const mountFlags = unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOATIME

// mountDevice mounts without mount(8): neither fstab nor a helper has a say. The system
// call replays a dirty journal on a read-only mount too, as our snapshots' devices are
// writable; noload and norecovery would show a torn filesystem and are never used.
func mountDevice(device, dir, fsType, options string, writable bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if m, err := mountedOn(dir); err != nil {
		return err
	} else if m != nil {
		return &respaldo.Error{Kind: respaldo.Leftovers, What: fmt.Sprintf("%s is already mounted at %s", m.Source, dir), Hint: "respaldo cleanup, or umount " + dir}
	}
	flags := uintptr(mountFlags)
	if !writable {
		flags |= unix.MS_RDONLY
	}
	err := unix.Mount(device, dir, fsType, flags, options)
	if err == nil {
		return nil
	}
	os.Remove(dir)
	e := &respaldo.Error{Kind: respaldo.SnapshotLost, What: fmt.Sprintf("cannot mount %s (%s) at %s", device, fsType, dir), Err: err}
	switch {
	case errors.Is(err, unix.EPERM):
		e.Kind, e.Hint = respaldo.Refused, "run respaldo as root"
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES):
		e.Hint = "the device is read-only, so the filesystem's journal cannot be replayed; make it writable: lvchange -prw"
	case errors.Is(err, unix.EBUSY):
		e.Hint = "it is mounted elsewhere in another way; see findmnt " + device
	default:
		e.Hint = "the kernel's log says more: dmesg | tail"
	}
	return e
}

// mountedOn is the topmost mount at exactly this directory, or nil.
func mountedOn(dir string) (*mountinfo.Info, error) {
	// The folder itself is not asked for more than whether it is a link: what is mounted
	// there may be dead (XFS on an overflowed snapshot answers EIO to everything).
	parent, err := filepath.EvalSymlinks(filepath.Dir(filepath.Clean(dir)))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	real := filepath.Join(parent, filepath.Base(dir))
	if fi, err := os.Lstat(real); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		if real, err = filepath.EvalSymlinks(real); err != nil {
			return nil, nil // a link to nowhere
		}
	}
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(real))
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// MountsUnder lists the mount points at and below a directory, in the order in which
// they can be unmounted.
func (s *System) MountsUnder(dir string) ([]string, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	prefix := strings.TrimSuffix(filepath.Clean(dir), "/") + "/"
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint+"/", prefix), false
	})
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	slices.Reverse(points) // the kernel lists later mounts later
	return points, err
}

// Unmount unmounts what is mounted at dir and removes dir if it is empty then. What is
// busy is tried again for some seconds, or until ctx ends; then the error says who holds
// it. It never detaches lazily: the device would stay busy without a visible cause.
func (s *System) Unmount(ctx context.Context, dir string) error {
	if err := s.unmount(ctx, dir); err != nil {
		return err
	}
	os.Remove(dir) // only if empty
	return nil
}

func (s *System) unmount(ctx context.Context, dir string) error {
	err := s.retryBusy(ctx, func() (busy bool, err error) {
		m, err := mountedOn(dir)
		if err != nil || m == nil {
			return false, err
		}
		err = unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) { // somebody else was faster
			err = nil
		}
		return errors.Is(err, unix.EBUSY), err
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return s.busyError(dir+" cannot be unmounted", dir)
	}
	return &respaldo.Error{Kind: respaldo.Leftovers, What: "cannot unmount " + dir, Err: err}
}

// retryBusy calls try until it is not busy, ctx ends, or BusyFor is over; the last error
// stands.
func (s *System) retryBusy(ctx context.Context, try func() (busy bool, err error)) error {
	patience := s.BusyFor
	if patience <= 0 {
		patience = defaultBusyFor
	}
	deadline := time.Now().Add(patience)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		busy, err := try()
		if !busy || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// probe reads a device's superblock: the type to mount it as, and the filesystem's UUID.
func probe(device string) (fsType, uuid string, err error) {
	f, err := os.Open(device)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	head := make([]byte, 0x10080)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", "", fmt.Errorf("%s: %w", device, err)
	}
	switch {
	case string(head[:4]) == "XFSB":
		return "xfs", formatUUID(head[32:48]), nil
	case binary.LittleEndian.Uint16(head[1024+0x38:]) == 0xef53: // ext2 and ext3 too: the driver is one
		return "ext4", formatUUID(head[1024+0x68 : 1024+0x78]), nil
	case string(head[0x10040:0x10048]) == "_BHRfS_M":
		return "btrfs", formatUUID(head[0x10020:0x10030]), nil
	}
	return "", "", fmt.Errorf("%s holds no filesystem that respaldo knows", device)
}

func formatUUID(b []byte) string {
	h := hex.EncodeToString(b)
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
