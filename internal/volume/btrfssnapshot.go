package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

// infoFormat is the number of NAME.json; a newer one is still ours, but not read.
const infoFormat = 1

type btrfsInfo struct {
	Format int `json:"format"`
	respaldo.Snapshot
}

// writeInfo puts NAME.json beside the snapshot to be.
func writeInfo(folder *os.File, d respaldo.Snapshot) error {
	text, err := json.MarshalIndent(btrfsInfo{infoFormat, d}, "", "  ")
	if err != nil {
		return err
	}
	return disk.Replace(under(folder, d.Name+".json"), append(text, '\n'), 0o600)
}

// btrfsSnapshotsOn lists what says that it is ours, with or without a subvolume beside it.
func (s *System) btrfsSnapshotsOn(device string) ([]Snapshot, error) {
	top, err := s.openTop(device)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	entries, err := os.ReadDir(under(top, btrfsFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var found []Snapshot
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info := btrfsInfo{}
		text, err := os.ReadFile(under(top, btrfsFolder, e.Name()))
		if err == nil {
			err = json.Unmarshal(text, &info)
		}
		if err != nil || info.Format > infoFormat {
			s.log().Warn("cannot read what a snapshot says about itself", "file", "/"+btrfsFolder+"/"+e.Name(), "device", device, "err", err)
			info.Snapshot = respaldo.Snapshot{}
		}
		d := info.Snapshot
		d.Name, d.Kind, d.Path = name, respaldo.Btrfs, "/"+btrfsFolder+"/"+name
		snap := &btrfsSnapshot{sys: s, device: device, desc: d}
		if sub, err := snap.subvolume(top); err == nil && sub.created.After(d.Created) {
			snap.desc.Created = sub.created // an earlier one is that of the server's own subvolume, kept by a rollback
		}
		found = append(found, snap)
	}
	return found, nil
}

type btrfsSnapshot struct {
	sys    *System
	device string
	desc   respaldo.Snapshot
}

func (s *btrfsSnapshot) Describe() respaldo.Snapshot { return s.desc }

func (s *btrfsSnapshot) subvolume(top *os.File) (subvolume, error) {
	f, err := os.Open(under(top, s.desc.Path))
	if err != nil {
		return subvolume{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return subvolume{}, err
	}
	if st.Ino != btrfsRootInode {
		return subvolume{}, fmt.Errorf("%s is no subvolume", s.desc.Path)
	}
	return subvolumeOf(f)
}

func (s *btrfsSnapshot) Mount(ctx context.Context, dir string, writable bool) error {
	if err := mountDevice(s.device, dir, "btrfs", "subvol="+s.desc.Path, writable); err != nil {
		return err
	}
	if !writable {
		return nil
	}
	if err := unix.Access(dir, unix.W_OK); errors.Is(err, unix.EROFS) {
		return errors.Join(&respaldo.Error{Kind: respaldo.Refused, What: "Btrfs snapshot " + s.desc.Name + " is read-only", Hint: "mount a clone of it"}, s.Unmount(ctx, dir))
	}
	return nil
}

func (s *btrfsSnapshot) Unmount(ctx context.Context, dir string) error {
	return s.sys.Unmount(ctx, dir)
}

func (s *btrfsSnapshot) Fill(ctx context.Context) (respaldo.Fill, error) {
	top, err := s.sys.openTop(s.device)
	if err != nil {
		return respaldo.Fill{}, err
	}
	defer top.Close()
	u, err := usageOf(top)
	if err != nil {
		return respaldo.Fill{}, err
	}
	fill := u.fill()
	_, err = s.subvolume(top)
	fill.Valid = err == nil
	return fill, nil
}

func (s *btrfsSnapshot) Extend(ctx context.Context) error {
	return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + s.desc.Name + " cannot grow: it shares its filesystem with the origin", Err: ErrNoRoom,
		Hint: "give the filesystem more space"}
}

func (s *btrfsSnapshot) Remove(ctx context.Context) error {
	top, err := s.sys.openTop(s.device)
	if err != nil {
		return err
	}
	defer top.Close()
	fail := func(err error) error {
		return &respaldo.Error{Kind: respaldo.Leftovers, What: "cannot remove Btrfs snapshot " + s.desc.Path + " on " + s.device, Err: err}
	}
	info := under(top, s.desc.Path+".json")
	_, noSubvolume := os.Lstat(under(top, s.desc.Path))
	if !exists(info) {
		if noSubvolume != nil {
			os.Remove(under(top, btrfsFolder)) // only if empty
			return nil
		}
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("Btrfs subvolume %s on %s has no %s.json beside it, so it is not ours to remove", s.desc.Path, s.device, s.desc.Name),
			Hint: "if it is, remove it with btrfs subvolume delete"}
	}
	if noSubvolume == nil {
		// The kernel would unmount it silently wherever it is mounted.
		if points := s.mounts(); len(points) > 0 {
			return s.sys.busyError("Btrfs snapshot "+s.desc.Name+" is mounted at "+strings.Join(points, ", "), points[0])
		}
		folder, err := os.Open(under(top, btrfsFolder))
		if err != nil {
			return fail(err)
		}
		defer folder.Close()
		err = s.sys.retryBusy(ctx, func() (busy bool, err error) {
			err = destroySubvolume(folder, s.desc.Name)
			return errors.Is(err, unix.EBUSY), err
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fail(err)
		}
	}
	if err := os.Remove(info); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	os.Remove(under(top, btrfsFolder)) // only if empty
	return nil
}

// mounts lists where the snapshot is mounted in our namespace.
func (s *btrfsSnapshot) mounts() []string {
	mounts, _ := mountinfo.GetMounts(mountinfo.FSTypeFilter("btrfs"))
	var points []string
	for _, m := range mounts {
		if m.Root == s.desc.Path || strings.HasPrefix(m.Root, s.desc.Path+"/") {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// Clone implements Cloner.
func (s *btrfsSnapshot) Clone(ctx context.Context, r Request) (Snapshot, error) {
	top, err := s.sys.openTop(s.device)
	if err != nil {
		return nil, err
	}
	p, err := prepareBtrfs(s.sys, top, respaldo.Volume{Name: s.desc.Volume, Device: s.device}, s.desc.Path, r, true)
	if err != nil {
		top.Close()
		return nil, err
	}
	if err := p.Take(ctx); err != nil {
		return nil, errors.Join(err, p.Cancel(context.WithoutCancel(ctx)))
	}
	return p.Finish()
}
