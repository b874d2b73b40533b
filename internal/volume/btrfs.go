package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// btrfsFolder holds our snapshots at the top of the filesystem, each NAME beside a
// NAME.json that says that it is ours.
const btrfsFolder = ".respaldo"

// Fuller than this no snapshot is begun: it would keep alive what the origin deletes.
const startBtrfsLimit = 0.90

type btrfsVolume struct {
	sys  *System
	desc respaldo.Volume
	path string // of the subvolume, from the top
}

// openTop opens the filesystem's top level through a mount that nobody else sees for
// longer than it takes to open it: it is detached at once and lives on in the open file
// alone, so that a kill leaves nothing mounted. Paths below are reached through under.
func (s *System) openTop(device string) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		e := &respaldo.Error{Kind: respaldo.Failed, What: "cannot open the top level of Btrfs on " + device, Err: err}
		if errors.Is(err, unix.EPERM) {
			e.Kind, e.Hint = respaldo.Refused, "run respaldo as root"
		}
		return nil, e
	}
	if err := os.MkdirAll(s.stateDir(), 0o700); err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp(s.stateDir(), "btrfs-")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(dir)
	if err := unix.Mount(device, dir, "btrfs", mountFlags, fmt.Sprintf("subvolid=%d", btrfsTopLevel)); err != nil {
		return fail(err)
	}
	top, err := os.Open(dir)
	if e := unix.Unmount(dir, unix.MNT_DETACH); err == nil && e != nil {
		top.Close()
		err = e
	}
	if err != nil {
		return fail(err)
	}
	return top, nil
}

// under is a path below an open directory, whatever became of its name.
func under(dir *os.File, path ...string) string {
	return filepath.Join(append([]string{fmt.Sprintf("/proc/self/fd/%d", dir.Fd())}, path...)...)
}

func (s *System) findBtrfs(loc Location) (Volume, error) {
	if loc.Device == "" {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "cannot find the device of Btrfs at " + loc.MountPoint, Hint: "see findmnt " + loc.MountPoint}
	}
	top, err := s.openTop(loc.Device)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	path := loc.Inner
	for path != "/" {
		var st unix.Stat_t
		if err := unix.Lstat(under(top, path), &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Ino == btrfsRootInode {
			break
		}
		path = filepath.Dir(path)
	}
	if loc.Inner == "/" {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: loc.Path + " is the top level of its Btrfs filesystem, where the snapshots themselves would appear inside it",
			Hint: "put the data into a subvolume or a folder: btrfs subvolume create"}
	}
	f, err := os.Open(under(top, path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sub, err := subvolumeOf(f)
	if err != nil {
		return nil, err
	}
	usage, err := usageOf(f)
	if err != nil {
		return nil, err
	}
	return &btrfsVolume{sys: s, path: path, desc: respaldo.Volume{Kind: respaldo.Btrfs, Name: subvolumeName(path), ID: usage.fsid + "/" + sub.uuid,
		Device: loc.Device, FSType: "btrfs", FSUUID: usage.fsid, MountPoint: loc.MountPoint, Bytes: usage.device}}, nil
}

// subvolumeName is the path without its leading slash; the top level stays "/".
func subvolumeName(path string) string {
	if path == "/" {
		return path
	}
	return strings.TrimPrefix(path, "/")
}

func (v *btrfsVolume) Describe() respaldo.Volume { return v.desc }

func (v *btrfsVolume) Space(ctx context.Context) (Space, error) {
	top, err := v.sys.openTop(v.desc.Device)
	if err != nil {
		return Space{}, err
	}
	defer top.Close()
	u, err := usageOf(top)
	if err != nil {
		return Space{}, err
	}
	// The snapshot is one transaction commit; without dirty pages a few writes and a flush.
	return Space{Origin: v.desc.Bytes, Free: int64(u.dataRoom - u.data), Fill: u.fill(), Pause: 100 * time.Millisecond}, nil
}

func (u btrfsUsage) fill() respaldo.Fill {
	return respaldo.Fill{Data: u.data / max(u.dataRoom, 1), Metadata: u.meta / max(u.metaRoom, 1), Valid: true}
}

func (v *btrfsVolume) Prepare(ctx context.Context, r Request) (Pending, error) {
	top, err := v.sys.openTop(v.desc.Device)
	if err != nil {
		return nil, err
	}
	p, err := prepareBtrfs(v.sys, top, v.desc, v.path, r, false)
	if err != nil {
		top.Close()
		return nil, err // not p: a nil *btrfsPending is no nil Pending
	}
	return p, nil
}

func (v *btrfsVolume) Snapshots(ctx context.Context) ([]Snapshot, error) {
	all, err := v.sys.btrfsSnapshotsOn(v.desc.Device)
	all = slices.DeleteFunc(all, func(s Snapshot) bool { return s.Describe().Volume != v.desc.Name })
	sortSnapshots(all)
	return all, err
}

type btrfsPending struct {
	sys      *System
	device   string
	desc     respaldo.Snapshot
	top      *os.File // keeps the detached mount alive
	source   *os.File
	folder   *os.File
	arg      []byte
	taken    bool
	finished bool // taken or cancelled
	pause    time.Duration
}

// prepareBtrfs opens all that the system call needs and writes NAME.json, so that there
// is never a snapshot of ours that does not say so. It takes top over unless it fails.
func prepareBtrfs(s *System, top *os.File, v respaldo.Volume, source string, r Request, writable bool) (*btrfsPending, error) {
	if r.Name == "" {
		r.Name = NewName(r.Server, time.Now())
	}
	if err := checkName(r.Name, ""); err != nil {
		return nil, err
	}
	if err := checkName(r.Name+".json", ""); err != nil { // leaves room for it
		return nil, err
	}
	if err := refuseFullBtrfs(top, v.Device); err != nil {
		return nil, err
	}
	for _, taken := range []string{r.Name, r.Name + ".json"} {
		if _, err := os.Lstat(under(top, btrfsFolder, taken)); err == nil {
			return nil, nameTaken(r.Name, "/"+btrfsFolder+" on "+v.Device)
		}
	}
	p := &btrfsPending{sys: s, device: v.Device, top: top, desc: respaldo.Snapshot{Name: r.Name, Server: r.Server, Run: r.Run, Kind: respaldo.Btrfs,
		Volume: v.Name, Path: "/" + btrfsFolder + "/" + r.Name, Kept: r.Kept, Expires: r.Expires}}
	err := func() error {
		var err error
		if p.source, err = os.Open(under(top, source)); err != nil {
			return err
		}
		if err := os.Mkdir(under(top, btrfsFolder), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if p.folder, err = os.Open(under(top, btrfsFolder)); err != nil {
			return err
		}
		p.arg = snapArgs(p.source, r.Name, writable)
		p.desc.Created = time.Now()
		err = writeInfo(p.folder, p.desc)
		p.desc.Created = time.Time{}
		return err
	}()
	if err != nil {
		p.closeFiles(p.source, p.folder)
		return nil, &respaldo.Error{Kind: respaldo.Failed, What: "cannot prepare a Btrfs snapshot on " + v.Device, Err: err}
	}
	return p, nil
}

func (v *btrfsVolume) Refusal(context.Context, Request) error {
	top, err := v.sys.openTop(v.desc.Device)
	if err != nil {
		return err
	}
	defer top.Close()
	return refuseFullBtrfs(top, v.desc.Device)
}

// refuseFullBtrfs keeps a snapshot from being begun that Watch would soon give up.
func refuseFullBtrfs(top *os.File, device string) error {
	u, err := usageOf(top)
	if err != nil {
		return err
	}
	f := u.fill()
	if f.Data < startBtrfsLimit && f.Metadata < startBtrfsLimit {
		return nil
	}
	return &respaldo.Error{Kind: respaldo.Refused, Err: ErrNoRoom,
		What: fmt.Sprintf("Btrfs on %s is too full: data %.0f%%, metadata %.0f%%; snapshots are begun below %.0f%%", device, f.Data*100, f.Metadata*100, startBtrfsLimit*100),
		Hint: "add a device, delete what is not needed, or try btrfs balance"}
}

func (p *btrfsPending) closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (p *btrfsPending) Describe() respaldo.Snapshot { return p.desc }
func (p *btrfsPending) Bytes() int64                { return 0 }
func (p *btrfsPending) Pause() time.Duration        { return p.pause }

// Ready has nothing to do that Prepare has not done.
func (p *btrfsPending) Ready(context.Context) error { return nil }

func (p *btrfsPending) Take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if p.finished {
		return errors.New("the snapshot was taken or cancelled before")
	}
	start := time.Now()
	err := btrfsIoctl(p.folder, iocSnapCreateV2, p.arg)
	p.pause = time.Since(start)
	p.sys.log().Debug("btrfs snapshot", "of", p.desc.Volume, "name", p.desc.Name, "took", p.pause, "err", err)
	if err != nil {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "cannot snapshot Btrfs subvolume " + p.desc.Volume, Err: err,
			Hint: "the kernel's log may say more: dmesg | tail"}
	}
	p.finished, p.taken = true, true
	p.desc.Created = start
	return nil
}

func (p *btrfsPending) Finish() (Snapshot, error) {
	if !p.taken {
		return nil, nil
	}
	p.closeFiles(p.source, p.folder, p.top)
	return &btrfsSnapshot{sys: p.sys, device: p.device, desc: p.desc}, nil
}

func (p *btrfsPending) Cancel(ctx context.Context) error {
	if p.finished {
		return nil
	}
	p.finished = true
	p.closeFiles(p.source, p.folder, p.top)
	return (&btrfsSnapshot{sys: p.sys, device: p.device, desc: p.desc}).Remove(ctx)
}

// btrfsSnapshots looks at every Btrfs filesystem that is mounted.
func (s *System) btrfsSnapshots(ctx context.Context) ([]Snapshot, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("btrfs"))
	if err != nil {
		return nil, err
	}
	var found []Snapshot
	var failed []error
	seen := map[string]bool{}
	for _, m := range mounts {
		dev, err := s.mountedDevice(m)
		if err != nil || dev == "" || seen[dev] {
			continue
		}
		seen[dev] = true
		list, err := s.btrfsSnapshotsOn(s.layer(s.sys() + "/dev/block/" + dev).Node)
		found = append(found, list...)
		failed = append(failed, err)
	}
	return found, errors.Join(failed...)
}
