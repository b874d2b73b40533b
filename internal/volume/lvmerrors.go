package volume

import (
	"errors"
	"fmt"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// lvmTroubles are what LVM's commands say (LC_ALL=C) and what to do about it. The words
// are those of lib/metadata/*.c and tools/*.c, unchanged from 2.03.02 to 2.03.31.
var lvmTroubles = []struct {
	says string
	kind respaldo.Kind // 0: what the caller thinks
	hint string
	room bool
}{
	{says: "already exists in volume group", kind: respaldo.Refused, hint: "choose another snapshot name, or see what has this one: respaldo snapshot list"},
	{says: "insufficient free space", hint: "free space in the volume group (lvs, vgs), or add a disk with vgextend", room: true},
	{says: "Insufficient free space", hint: "free space in the volume group (lvs, vgs), or add a disk with vgextend", room: true},
	{says: "Insufficient suitable", hint: "free space in the volume group (lvs, vgs), or add a disk with vgextend", room: true},
	{says: "has insufficient free", hint: "free space in the volume group (lvs, vgs), or add a disk with vgextend", room: true},
	{says: "is above threshold", hint: "extend the thin pool with lvextend, or remove what fills it", room: true},
	{says: "free metadata space", hint: "extend the pool's metadata: lvextend --poolmetadatasize", room: true},
	{says: "Can't get lock for", hint: "another LVM command is holding the volume group; wait for it to end and try again"},
	{says: "Cannot process volume group", hint: "see what vgs and pvs say about the volume group"},
	{says: "contains a filesystem in use", kind: respaldo.Leftovers, hint: "unmount it; findmnt shows where it is mounted"},
	{says: "in use", kind: respaldo.Leftovers, hint: "see what has it open: lsblk, fuser -v"},
	{says: "support missing from kernel", hint: "load the kernel's module: modprobe dm-snapshot (thick) or dm-thin-pool (thin)"},
	{says: "target(s) not detected in your kernel", hint: "load the kernel's module: modprobe dm-snapshot (thick) or dm-thin-pool (thin)"},
	{says: "Permission denied", kind: respaldo.Refused, hint: "run respaldo as root"},
	{says: "while PVs are missing", hint: "a disk of the volume group is missing; see vgs and pvs"},
	{says: "Read-only locking type", hint: "LVM is configured read-only (global/locking_type)"},
}

// lvmError turns a failed command into an error for people. The kind is the caller's
// unless the command's words are plainer.
func lvmError(kind respaldo.Kind, what string, err error) error {
	e := &respaldo.Error{Kind: kind, What: what, Err: err}
	var exit *run.ExitError
	if !errors.As(err, &exit) {
		if run.NotInstalled(err) {
			e.Kind, e.Hint = respaldo.Refused, "install LVM's tools (package lvm2)"
		}
		return e
	}
	if exit.Signal != 0 {
		e.Hint = "somebody ended it, or memory ran out (see dmesg); what it left is put in order, so try again"
	}
	for _, t := range lvmTroubles {
		if strings.Contains(exit.Stderr, t.says) {
			if t.kind != 0 {
				e.Kind = t.kind
			}
			if t.room {
				e.Err = fmt.Errorf("%w: %w", ErrNoRoom, err)
			}
			e.Hint = t.hint
			break
		}
	}
	return e
}

// notFound tells a volume or group that does not exist from other failures.
func notFound(err error) bool {
	var exit *run.ExitError
	return errors.As(err, &exit) && (strings.Contains(exit.Stderr, "Failed to find logical volume") ||
		strings.Contains(exit.Stderr, "Volume group \"") && strings.Contains(exit.Stderr, "not found"))
}
