package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's device-mapper ioctl (include/uapi/linux/dm-ioctl.h), for the one question
// that is asked every second while a snapshot is open. Starting dmsetup for it costs
// a hundred times as much, and fails first on a machine that runs out of memory.
const (
	dmControl      = "/dev/mapper/control"
	dmTableStatus  = 0xc138fd0c // _IOWR(0xfd, 12, struct dm_ioctl)
	dmNoFlush      = 1 << 11    // keeps a thin pool from committing for us
	dmBufferFull   = 1 << 8
	dmHeaderSize   = 312
	dmNameOffset   = 48
	dmNameSize     = 128
	dmTargetHeader = 40
)

// dmStatus is what dmsetup status prints of one device, a line for each target, and nothing
// for a device that does not exist.
func dmStatus(name string) (string, error) {
	if len(name) >= dmNameSize {
		return "", fmt.Errorf("device-mapper name %q is too long", name)
	}
	control, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	b := make([]byte, 16<<10)
	for i, v := range []uint32{4, 0, 0, uint32(len(b)), dmHeaderSize} { // version, data_size, data_start
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	binary.NativeEndian.PutUint32(b[28:], dmNoFlush)
	copy(b[dmNameOffset:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), dmTableStatus, uintptr(unsafe.Pointer(&b[0])))
	switch {
	case errno == unix.ENXIO:
		return "", nil
	case errno != 0:
		return "", &os.PathError{Op: "DM_TABLE_STATUS", Path: name, Err: errno}
	case binary.NativeEndian.Uint32(b[28:])&dmBufferFull != 0:
		return "", errors.New("device-mapper has more to say about " + name + " than was expected")
	}
	return dmTargets(name, b), nil
}

// dmTargets reads struct dm_target_spec and the text behind it, as often as the header
// says; next counts from the start of the first.
func dmTargets(name string, b []byte) string {
	var text strings.Builder
	data := b[binary.NativeEndian.Uint32(b[16:]):]
	next := uint32(0)
	for range binary.NativeEndian.Uint32(b[20:]) {
		t := data[next:]
		start, length := binary.NativeEndian.Uint64(t), binary.NativeEndian.Uint64(t[8:])
		fmt.Fprintf(&text, "%s: %d %d %s %s\n", name, start, length, cString(t[24:dmTargetHeader]), cString(t[dmTargetHeader:]))
		next = binary.NativeEndian.Uint32(t[20:])
	}
	return text.String()
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
