package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// tagMade marks what was made for a server's data, beside tagMade=SERVER on a group that
// was made with it. It is not Tag: that one says what cleanup may remove.
const tagMade = "respaldo.prepared"

// MakeRequest says what volume is wanted for a server's data. Empty fields are chosen.
type MakeRequest struct {
	Server string
	Kind   respaldo.VolumeKind
	Device string // blank, taken whole; or
	Group  string // a group that exists, whose free space is taken; with Device, the name of the new one
	Name   string // of the logical volume, or of the Btrfs subvolume
	FSType string // ext4 or xfs, on LVM
	Wipe   bool   // what the device holds may be overwritten
	Bytes  int64  // of the volume
	// Free is the share of the room that stays free, as a fraction of one; below zero: chosen.
	Free   float64
	Needed int64 // bytes that must fit
}

// Making is a volume to be made, with everything decided. It can be stored, and read again
// after a crash.
type Making struct {
	Server   string              `json:"server"`
	Kind     respaldo.VolumeKind `json:"kind"`
	Device   string              `json:"device,omitempty"`
	Identity string              `json:"identity,omitempty"` // of the device
	Wipe     []string            `json:"wipe,omitempty"`     // signatures that go
	Group    string              `json:"group,omitempty"`
	NewGroup bool                `json:"new_group,omitempty"`
	Name     string              `json:"name"`
	Pool     string              `json:"pool,omitempty"`
	FSType   string              `json:"fs_type"`
	FSUUID   string              `json:"fs_uuid"`
	Bytes    int64               `json:"bytes"`
	// PoolBytes and MetadataBytes are a thin pool's; LVM keeps a spare of the latter's size.
	PoolBytes     int64    `json:"pool_bytes,omitempty"`
	MetadataBytes int64    `json:"metadata_bytes,omitempty"`
	ChunkBytes    int64    `json:"chunk_bytes,omitempty"`
	FreeBytes     int64    `json:"free_bytes"` // of the group, afterwards
	Reasons       []string `json:"reasons"`    // why it is as it is, for people
}

// Task is one command that makes a part of a volume, and the one that takes it away.
type Task struct {
	Name string // short and the same in every release: journals have it
	Says string
	Argv []string
	Undo []string // nil: goes with what it was made in
	// again takes Argv's place where an earlier attempt was cut short.
	again []string
	// guard refuses a device that is not what it was when this was planned; nil: names none.
	guard func(ctx context.Context) error
	made  func(ctx context.Context) (bool, error) // nil: cannot be told
	ours  func(ctx context.Context) (bool, error) // that Undo takes away something of ours; nil: made
	act   func(ctx context.Context) error         // in place of Argv
	sys   *System
}

// Do makes it. Begun tells that an earlier run may have: what is there already, and is
// ours, is left as it is. The command is not interrupted; started is told its process ID.
func (t Task) Do(ctx context.Context, begun bool, started func(pid int)) error {
	if t.made != nil && begun {
		if made, err := t.made(ctx); err != nil || made {
			return err
		}
	}
	if t.guard != nil {
		if err := t.guard(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if t.act != nil {
		return t.act(ctx)
	}
	argv := t.Argv
	if begun && t.again != nil {
		argv = t.again
	}
	_, err := t.sys.Run.Run(ctx, run.Cmd{Argv: argv, Uninterruptible: true, Started: started})
	return err
}

// Back takes it away, if it is there and ours.
func (t Task) Back(ctx context.Context) error {
	if t.Undo == nil {
		return nil
	}
	ours := t.ours
	if ours == nil {
		ours = t.made
	}
	if is, err := ours(ctx); err != nil || !is {
		return err
	}
	_, err := t.sys.Run.Run(ctx, run.Cmd{Argv: t.Undo, Uninterruptible: true})
	return err
}

// Node is the volume's device.
func (m Making) Node() string {
	if m.Kind == respaldo.Btrfs {
		return m.Device
	}
	return "/dev/" + m.Group + "/" + m.Name
}

func bytesArg(n int64) string { return fmt.Sprintf("%db", n) }

// Tasks are what has to be done to have the volume, in order; each is undone in reverse.
func (s *System) Tasks(m Making) []Task {
	var tasks []Task
	if len(m.Wipe) > 0 {
		tasks = append(tasks, Task{Name: "wipe", Says: fmt.Sprintf("wipe %s, which holds %s", m.Device, strings.Join(m.Wipe, ", ")),
			Argv: []string{"wipefs", "--all", m.Device}, guard: s.guard(m, m.Wipe...)})
	}
	if m.Kind == respaldo.Btrfs {
		tasks = append(tasks, s.btrfsTasks(m)...)
	} else {
		tasks = append(tasks, s.lvmTasks(m)...)
	}
	for i := range tasks {
		tasks[i].sys = s
	}
	return tasks
}

func (s *System) btrfsTasks(m Making) []Task {
	mkfs := func(force ...string) []string {
		return slices.Concat([]string{"mkfs.btrfs", "-q"}, force, []string{"-L", m.Name, "-U", m.FSUUID, m.Device})
	}
	ours := func(context.Context) (bool, error) { // by its own UUID, whatever the device is called by now
		fsType, uuid, err := probe(m.Device)
		return err == nil && fsType == m.FSType && uuid == m.FSUUID, nil
	}
	return []Task{
		{Name: "mkfs", Says: "make a Btrfs filesystem on the whole of " + m.Device, Argv: mkfs(), again: mkfs("-f"),
			Undo: []string{"wipefs", "--all", m.Device}, ours: ours,
			guard: func(ctx context.Context) error {
				if is, err := ours(ctx); err != nil || is {
					return err
				}
				return s.guard(m)(ctx)
			}},
		{Name: "subvolume", Says: "make the subvolume " + m.Name + ", which can be snapshotted while the top level cannot hold its own snapshots",
			Argv: []string{"btrfs", "subvolume", "create", "/" + m.Name}, // of the filesystem's top level
			guard: func(ctx context.Context) error {
				if is, err := ours(ctx); err != nil || is {
					return err
				}
				return &respaldo.Error{Kind: respaldo.Refused, What: m.Device + " does not hold the filesystem that was made on it", Hint: "names of devices change when a machine starts: lsblk -f shows what is what"}
			},
			made: func(context.Context) (bool, error) { return s.inTop(m.Device, subvolumeIn(m.Name)) },
			act: func(context.Context) error {
				_, err := s.inTop(m.Device, func(top *os.File) (bool, error) { return true, createSubvolume(top, m.Name) })
				return err
			}},
	}
}

func (s *System) inTop(device string, do func(top *os.File) (bool, error)) (bool, error) {
	top, err := s.openTop(device)
	if err != nil {
		return false, err
	}
	defer top.Close()
	return do(top)
}

func subvolumeIn(name string) func(*os.File) (bool, error) {
	return func(top *os.File) (bool, error) {
		var st unix.Stat_t
		err := unix.Lstat(under(top, name), &st)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return err == nil && st.Ino == btrfsRootInode, err
	}
}

func createSubvolume(top *os.File, name string) error {
	arg := make([]byte, volArgsSize) // struct btrfs_ioctl_vol_args: fd, name
	copy(arg[8:volArgsSize-1], name)
	if err := btrfsIoctl(top, iocSubvolCreate, arg); err != nil {
		return fmt.Errorf("cannot make the Btrfs subvolume %s: %w", name, err)
	}
	return unix.Syncfs(int(top.Fd()))
}

func (s *System) lvmTasks(m Making) []Task {
	var tasks []Task
	tag := tagMade + "=" + escapeTag(m.Server)
	if m.NewGroup {
		tasks = append(tasks,
			Task{Name: "pv", Says: "let LVM use the whole of " + m.Device, Argv: s.lvmArgv([]string{"pvcreate", "--yes", m.Device}),
				Undo:  s.lvmArgv([]string{"pvremove", m.Device}), // refuses one that is in a group
				guard: s.guard(m),
				made:  func(ctx context.Context) (bool, error) { return s.madePhysical(ctx, m) }},
			Task{Name: "group", Says: "make the volume group " + m.Group, Argv: s.lvmArgv([]string{"vgcreate", "--addtag", tag, m.Group, m.Device}),
				Undo:  s.lvmArgv([]string{"vgremove", m.Group}), // refuses one that holds volumes, without --force
				guard: s.guard(m, physicalVolume),
				made:  func(ctx context.Context) (bool, error) { return s.groupHasTag(ctx, m.Group, tag) }})
	}
	lv := m.Group + "/" + m.Name
	create := []string{"lvcreate", "--yes", "--wipesignatures", "y", "--addtag", tag, "--size", bytesArg(m.Bytes), "--name", m.Name, m.Group}
	says := fmt.Sprintf("make the logical volume %s of %s", lv, size(m.Bytes))
	if m.Pool != "" {
		pool := m.Group + "/" + m.Pool
		tasks = append(tasks, Task{Name: "pool", Says: fmt.Sprintf("make the thin pool %s of %s", pool, size(m.PoolBytes)),
			Argv: s.lvmArgv([]string{"lvcreate", "--yes", "--type", "thin-pool", "--addtag", tag, "--chunksize", bytesArg(m.ChunkBytes), "--zero", "n",
				"--size", bytesArg(m.PoolBytes), "--poolmetadatasize", bytesArg(m.MetadataBytes), "--name", m.Pool, m.Group}),
			Undo: s.lvmArgv([]string{"lvremove", "--yes", pool}),
			made: func(ctx context.Context) (bool, error) { return s.volumeHasTag(ctx, pool, tag) }})
		create = []string{"lvcreate", "--yes", "--wipesignatures", "y", "--addtag", tag, "--virtualsize", bytesArg(m.Bytes), "--thinpool", pool, "--name", m.Name}
		says = fmt.Sprintf("make the thin volume %s of %s", lv, size(m.Bytes))
	}
	mkfs := []string{"mkfs.ext4", "-q", "-m", "0", "-U", m.FSUUID, m.Node()} // no share of it is root's alone
	again := []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-U", m.FSUUID, m.Node()}
	if m.FSType == "xfs" {
		mkfs = []string{"mkfs.xfs", "-q", "-m", "uuid=" + m.FSUUID, m.Node()}
		again = []string{"mkfs.xfs", "-q", "-f", "-m", "uuid=" + m.FSUUID, m.Node()}
	}
	return append(tasks,
		Task{Name: "volume", Says: says, Argv: s.lvmArgv(create), Undo: s.lvmArgv([]string{"lvremove", "--yes", lv}),
			made: func(ctx context.Context) (bool, error) { return s.volumeHasTag(ctx, lv, tag) }},
		Task{Name: "mkfs", Says: "make an " + m.FSType + " filesystem on it", Argv: mkfs, again: again})
}

// physicalVolume is what wipefs calls what LVM puts on a device.
const physicalVolume = "LVM2_member"

// madePhysical tells that the very device of the plan is LVM's. Another one that has its
// name by now was not made by us.
func (s *System) madePhysical(ctx context.Context, m Making) (bool, error) {
	if m.sameDevice(s.identityOf(m.Device)) != nil {
		return false, nil
	}
	found, err := s.signatures(ctx, m.Device)
	return slices.Contains(found, physicalVolume), err
}

// groupHasTag tells that a group exists and is the one that we made.
func (s *System) groupHasTag(ctx context.Context, group, tag string) (bool, error) {
	groups, err := s.groups(ctx)
	for _, g := range groups {
		if g.name == group {
			if !slices.Contains(g.tags, tag) {
				return false, &respaldo.Error{Kind: respaldo.Refused, What: "there is a volume group " + group + " that was not made for this", Hint: "give another name: --vg"}
			}
			return true, nil
		}
	}
	return false, err
}

func (s *System) volumeHasTag(ctx context.Context, lv, tag string) (bool, error) {
	group, _, _ := strings.Cut(lv, "/")
	rows, err := s.lvs(ctx, group)
	if notFound(err) {
		return false, nil
	}
	for _, r := range rows {
		if r.VG+"/"+r.LV == lv {
			if !slices.Contains(r.tags(), tag) {
				return false, &respaldo.Error{Kind: respaldo.Refused, What: "there is a logical volume " + lv + " that was not made for this", Hint: "give another name: --lv"}
			}
			return true, nil
		}
	}
	return false, err
}

func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return formatUUID(b)
}
