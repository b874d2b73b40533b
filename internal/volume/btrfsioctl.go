package volume

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's own interface (linux/btrfs.h) instead of btrfs-progs: a snapshot is one
// system call with no fork under the lock, and a kill cannot leave it half done.
const (
	btrfsRootInode = 256 // BTRFS_FIRST_FREE_OBJECTID: the root of every subvolume, and of nothing else
	btrfsTopLevel  = 5   // BTRFS_FS_TREE_OBJECTID

	iocSnapCreateV2   = 0x50009417
	iocSubvolCreate   = 0x5000940e
	iocSnapDestroy    = 0x5000940f
	iocSpaceInfo      = 0xc0109414
	iocDevInfo        = 0xd000941e
	iocFSInfo         = 0x8400941f
	iocGetSubvolInfo  = 0x81f8943c // Linux 4.18
	iocSubvolSetFlags = 0x4008941a

	subvolReadOnly = 1 << 1
	volArgsSize    = 4096
)

func btrfsIoctl(f *os.File, request uint, arg []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&arg[0])))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

// snapArgs is struct btrfs_ioctl_vol_args_v2: fd, transid, flags, 4 unused, name.
func snapArgs(source *os.File, name string, writable bool) []byte {
	arg := make([]byte, volArgsSize)
	binary.NativeEndian.PutUint64(arg, uint64(source.Fd()))
	if !writable {
		binary.NativeEndian.PutUint64(arg[16:], subvolReadOnly)
	}
	copy(arg[56:volArgsSize-1], name)
	return arg
}

// destroySubvolume unlinks a subvolume from its parent; its space is freed behind us.
func destroySubvolume(parent *os.File, name string) error {
	arg := make([]byte, volArgsSize) // struct btrfs_ioctl_vol_args: fd, name
	copy(arg[8:volArgsSize-1], name)
	return btrfsIoctl(parent, iocSnapDestroy, arg)
}

// subvolume is what we need of struct btrfs_ioctl_get_subvol_info_args.
type subvolume struct {
	id      uint64
	uuid    string
	created time.Time
}

func subvolumeOf(f *os.File) (subvolume, error) {
	arg := make([]byte, 504)
	if err := btrfsIoctl(f, iocGetSubvolInfo, arg); err != nil {
		return subvolume{}, fmt.Errorf("subvolume of %s: %w", f.Name(), err)
	}
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(arg[at:]) }
	return subvolume{id: u64(0), uuid: formatUUID(arg[296:312]),
		created: time.Unix(int64(u64(392)), int64(binary.NativeEndian.Uint32(arg[400:])))}, nil
}

// btrfsUsage is how a filesystem's space is used, in bytes of data that fit, copies not
// counted twice.
type btrfsUsage struct {
	fsid      string
	device    int64 // all members, raw
	data      float64
	dataRoom  float64 // data's chunks, and what can still become some
	meta      float64 // with the reserve that the kernel keeps
	metaRoom  float64
	unusedRaw float64
}

func usageOf(f *os.File) (btrfsUsage, error) {
	var u btrfsUsage
	fail := func(err error) (btrfsUsage, error) { return u, fmt.Errorf("space of Btrfs at %s: %w", f.Name(), err) }
	info := make([]byte, 1024)
	if err := btrfsIoctl(f, iocFSInfo, info); err != nil {
		return fail(err)
	}
	maxID, members := binary.NativeEndian.Uint64(info), binary.NativeEndian.Uint64(info[8:])
	u.fsid = formatUUID(info[16:32])
	for id := uint64(1); id <= maxID; id++ {
		dev := make([]byte, volArgsSize)
		binary.NativeEndian.PutUint64(dev, id)
		if err := btrfsIoctl(f, iocDevInfo, dev); err == unix.ENODEV {
			continue // removed since
		} else if err != nil {
			return fail(err)
		}
		used, total := binary.NativeEndian.Uint64(dev[24:]), binary.NativeEndian.Uint64(dev[32:])
		u.device += int64(total)
		u.unusedRaw += float64(total) - float64(used)
	}
	head := make([]byte, 16)
	if err := btrfsIoctl(f, iocSpaceInfo, head); err != nil {
		return fail(err)
	}
	slots := binary.NativeEndian.Uint64(head[8:]) + 4 // more may come between the calls
	spaces := make([]byte, 16+24*slots)
	binary.NativeEndian.PutUint64(spaces, slots)
	if err := btrfsIoctl(f, iocSpaceInfo, spaces); err != nil {
		return fail(err)
	}
	count := min(binary.NativeEndian.Uint64(spaces[8:]), slots)
	u.count(bytes.NewReader(spaces[16:16+24*count]), members)
	return u, nil
}

const (
	groupData     = 1
	groupMetadata = 4
	groupReserve  = 1 << 49
)

// count adds up struct btrfs_ioctl_space_info: flags, total, used.
func (u *btrfsUsage) count(spaces *bytes.Reader, members uint64) {
	dataCopies, metaCopies := 1.0, 1.0
	var s struct{ Flags, Total, Used uint64 }
	for binary.Read(spaces, binary.NativeEndian, &s) == nil {
		switch {
		case s.Flags&groupReserve != 0:
			u.meta += float64(s.Total - min(s.Used, s.Total))
			continue
		case s.Flags&groupData != 0:
			u.data += float64(s.Used)
			u.dataRoom += float64(s.Total)
			dataCopies = max(dataCopies, copiesOf(s.Flags, members))
		}
		if s.Flags&groupMetadata != 0 { // mixed groups are both
			u.meta += float64(s.Used)
			u.metaRoom += float64(s.Total)
			metaCopies = max(metaCopies, copiesOf(s.Flags, members))
		}
	}
	u.dataRoom += u.unusedRaw / dataCopies
	u.metaRoom += u.unusedRaw / metaCopies
}

// copiesOf is how many raw bytes a byte takes in a block group's profile.
func copiesOf(flags, members uint64) float64 {
	n := float64(members)
	switch {
	case flags&(1<<10) != 0: // RAID1C4
		return 4
	case flags&(1<<9) != 0: // RAID1C3
		return 3
	case flags&(1<<4|1<<5|1<<6) != 0: // RAID1, DUP, RAID10
		return 2
	case flags&(1<<7) != 0 && members > 1: // RAID5
		return n / (n - 1)
	case flags&(1<<8) != 0 && members > 2: // RAID6
		return n / (n - 2)
	}
	return 1
}
