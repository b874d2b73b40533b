package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// lvmSnapshot is a thick or thin snapshot of ours, or what a killed lvcreate left of one.
type lvmSnapshot struct {
	sys  *System
	desc respaldo.Snapshot
	vg   string
	pool string // thin only
}

func (s *lvmSnapshot) Describe() respaldo.Snapshot { return s.desc }

func (s *lvmSnapshot) name() string { return s.vg + "/" + s.desc.Name }

// row is the snapshot as LVM has it now; ok is false when it is gone.
func (s *lvmSnapshot) row(ctx context.Context) (row lvRow, ok bool, err error) {
	rows, err := s.sys.lvs(ctx, s.name())
	switch {
	case notFound(err):
		return row, false, nil
	case err != nil:
		return row, false, lvmError(respaldo.Failed, "cannot look at snapshot "+s.name(), err)
	}
	for _, r := range rows {
		if r.LV == s.desc.Name {
			return r, true, nil
		}
	}
	return row, false, nil
}

func (s *lvmSnapshot) Mount(ctx context.Context, dir string, writable bool) error {
	if !exists(s.desc.Path) { // after a reboot a thin snapshot waits inactive
		argv := []string{"lvchange", "--activate", "y", "--ignoreactivationskip", s.name()}
		if _, err := s.sys.Run.Run(ctx, run.Cmd{Argv: s.sys.lvmArgv(argv), Uninterruptible: true}); err != nil {
			return lvmError(respaldo.SnapshotLost, "cannot activate snapshot "+s.name(), err)
		}
	}
	fsType, _, err := probe(s.desc.Path)
	if err != nil {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "cannot read snapshot " + s.name(), Err: err,
			Hint: "has it overflowed? lvs shows an I in its attributes then, and its data at 100%"}
	}
	options := ""
	if fsType == "xfs" {
		options = "nouuid" // its UUID is the origin's, which is mounted
	}
	return mountDevice(s.desc.Path, dir, fsType, options, writable)
}

func (s *lvmSnapshot) Unmount(ctx context.Context, dir string) error { return s.sys.Unmount(ctx, dir) }

// Fill asks device-mapper itself: no lock is taken, so it answers while an LVM command works.
func (s *lvmSnapshot) Fill(context.Context) (respaldo.Fill, error) {
	var status string
	for _, device := range []string{dmName(s.vg, s.desc.Name), s.poolDevice()} {
		if device == "" {
			continue
		}
		lines, err := dmStatus(device)
		if err != nil {
			return respaldo.Fill{}, &respaldo.Error{Kind: respaldo.SnapshotLost, What: "cannot ask device-mapper about snapshot " + s.name(), Err: err,
				Hint: "run respaldo as root; see dmsetup status"}
		}
		status += lines
	}
	return parseFill(status, dmName(s.vg, s.desc.Name), s.poolDevice()), nil
}

// poolDevice is the layer in which the pool lives when LVM puts a linear device of the
// pool's own name on top.
func (s *lvmSnapshot) poolDevice() string {
	if s.pool == "" {
		return ""
	}
	return dmName(s.vg, s.pool) + "-tpool"
}

// parseFill reads the status lines of a thick snapshot, or of a thin one and its pool
// (kernel: Documentation/admin-guide/device-mapper/snapshot.rst, thin-provisioning.rst).
// Invalid, Overflow, Merge failed, Fail and Error stand where numbers should be.
func parseFill(status, snapshot, pool string) respaldo.Fill {
	var fill respaldo.Fill
	var alive, poolAlive bool
	for line := range strings.Lines(status) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
		f := strings.Fields(rest)
		switch {
		case len(f) < 4:
		case name == snapshot && f[2] == "snapshot":
			fill.Data, alive = ratio(f[3])
			if !alive {
				fill.Data = 1
			}
		case name == snapshot && f[2] == "thin":
			_, err := strconv.ParseUint(f[3], 10, 64)
			alive = err == nil
		case pool != "" && name == pool && f[2] == "thin-pool" && len(f) >= 6:
			var data, meta bool
			fill.Metadata, meta = ratio(f[4])
			fill.Data, data = ratio(f[5])
			poolAlive = data && meta
		}
	}
	fill.Valid = alive && (pool == "" || poolAlive)
	return fill
}

// ratio reads "used/total".
func ratio(s string) (float64, bool) {
	used, total, ok := strings.Cut(s, "/")
	u, err1 := strconv.ParseFloat(used, 64)
	t, err2 := strconv.ParseFloat(total, 64)
	if !ok || err1 != nil || err2 != nil || t <= 0 {
		return 0, false
	}
	return u / t, true
}

// errWhole is why a snapshot is not extended that has room for every block of its origin.
var errWhole = errors.New("it cannot overflow")

func (s *lvmSnapshot) Extend(ctx context.Context) error {
	noRoom := func(why string) error {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + s.name() + " cannot grow: " + why, Err: ErrNoRoom,
			Hint: "give the volume group more free space, or back up when fewer writes are made"}
	}
	if s.pool != "" {
		return noRoom("it shares its thin pool with the origin")
	}
	row, ok, err := s.row(ctx)
	if err != nil {
		return err
	}
	if _, ours := decodeTags(row.tags()); !ok || !ours {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + s.name() + " is gone, or not respaldo's any more"}
	}
	enough := cowMax(bytesOf(row.OriginSize), row.extent())
	if row.size() >= enough {
		return &respaldo.Error{Kind: respaldo.SnapshotLost, What: "snapshot " + s.name() + " is as large as it can ever need", Err: errWhole,
			Hint: "there is nothing to do"}
	}
	step := min(roundUp(max(row.size()/2, cowMinimum), row.extent()), row.free()/row.extent()*row.extent(), enough-row.size())
	if step <= 0 {
		return noRoom("volume group " + s.vg + " has no free space left")
	}
	argv := []string{"lvextend", "--size", "+" + strconv.FormatInt(step, 10) + "b", s.name()}
	if _, err := s.sys.Run.Run(ctx, run.Cmd{Argv: s.sys.lvmArgv(argv), Uninterruptible: true}); err != nil {
		return lvmError(respaldo.SnapshotLost, "cannot extend snapshot "+s.name(), err)
	}
	return nil
}

// Remove lets LVM itself check the tag, by --select and under the group's lock, so that
// no volume of another's can slip in between a look and the removal.
func (s *lvmSnapshot) Remove(ctx context.Context) error {
	row, ok, err := s.row(ctx)
	switch {
	case err != nil:
		return err
	case !ok:
		return s.sweepDevices(ctx)
	}
	if _, ours := decodeTags(row.tags()); !ours {
		return &respaldo.Error{Kind: respaldo.Refused, What: "logical volume " + s.name() + " has not the tag " + Tag + ", so it is not ours to remove",
			Hint: "if it is, remove it with lvremove"}
	}
	if err := s.sys.heldError(s.desc.Path, s.name()); err != nil {
		return err
	}
	argv := []string{"lvremove", "--yes", "--select", "lv_uuid=" + row.UUID + " && lv_tags=" + Tag, s.vg}
	return s.sys.retryBusy(ctx, func() (busy bool, err error) {
		_, err = s.sys.Run.Run(ctx, run.Cmd{Argv: s.sys.lvmArgv(argv), Uninterruptible: true, Quiet: true})
		if err != nil && s.pool != "" && s.dropUnfinishedThin(ctx, err) {
			_, err = s.sys.Run.Run(ctx, run.Cmd{Argv: s.sys.lvmArgv(argv), Uninterruptible: true, Quiet: true})
		}
		switch {
		case err == nil:
			return false, s.gone(ctx)
		case notFound(err):
			return false, nil
		}
		if held := s.sys.heldError(s.desc.Path, s.name()); held != nil {
			return false, held
		}
		err = lvmError(respaldo.Leftovers, "cannot remove snapshot "+s.name(), err)
		return strings.Contains(err.Error(), "in use"), err
	})
}

// gone makes sure: a selection that matches nothing is a success to lvremove.
func (s *lvmSnapshot) gone(ctx context.Context) error {
	if _, ok, err := s.row(ctx); err != nil {
		return err
	} else if ok {
		return &respaldo.Error{Kind: respaldo.Leftovers, What: "snapshot " + s.name() + " is still there after lvremove", Hint: "see lvs -a " + s.vg}
	}
	return s.sweepDevices(ctx)
}

// sweepDevices removes the snapshot's devices when its volume is no more: a killed
// lvcreate can leave its copy-on-write device active, which lvremove does not see and the
// next lvcreate of that name stumbles over.
func (s *lvmSnapshot) sweepDevices(ctx context.Context) error {
	for _, name := range []string{dmName(s.vg, s.desc.Name), dmName(s.vg, s.desc.Name) + "-cow"} {
		if !s.sys.isLVMDevice(name) {
			continue
		}
		s.sys.log().Warn("removing a device that a killed LVM command left", "device", name)
		if _, err := s.sys.dmsetup(ctx, "remove", name); err != nil {
			return lvmError(respaldo.Leftovers, "cannot remove device "+name, err)
		}
	}
	// Without udev, nobody else takes away the names that a killed command did not.
	folder := filepath.Join("/dev", s.vg)
	for _, stale := range []string{filepath.Join(folder, s.desc.Name), s.desc.Path, s.desc.Path + "-cow", folder} {
		os.Remove(stale) // the folder only if empty
	}
	return nil
}

// isLVMDevice looks for a device-mapper device of LVM's by name, without a fork.
func (s *System) isLVMDevice(name string) bool {
	files, _ := filepath.Glob(s.sys() + "/block/dm-*/dm/name")
	for _, f := range files {
		if readLine(f) == name {
			return strings.HasPrefix(readLine(filepath.Join(filepath.Dir(f), "uuid")), "LVM-")
		}
	}
	return false
}

var unfinishedThin = regexp.MustCompile(`create_snap (\d+) \d+`)

// dropUnfinishedThin mends what an lvcreate leaves that is killed between the pool's
// making the thin device and LVM's noting that it did: LVM sends "create_snap" again
// before whatever else it is asked to do, fails with EEXIST, and no volume of the pool can be
// made or removed any more. The device is dropped if it is this snapshot's own.
func (s *lvmSnapshot) dropUnfinishedThin(ctx context.Context, failure error) bool {
	var exit *run.ExitError
	if !errors.As(failure, &exit) || !strings.Contains(exit.Stderr, "File exists") {
		return false
	}
	m := unfinishedThin.FindStringSubmatch(exit.Stderr)
	if m == nil {
		return false
	}
	argv := []string{"lvs", "--noheadings", "--options", "thin_id", s.name()}
	r, err := s.sys.Run.Run(ctx, run.Cmd{Argv: s.sys.lvmArgv(argv), Quiet: true})
	if err != nil || strings.TrimSpace(string(r.Stdout)) != m[1] {
		return false
	}
	s.sys.log().Warn("dropping a thin device that a killed lvcreate left in its pool", "snapshot", s.name(), "thin_id", m[1])
	_, err = s.sys.dmsetup(ctx, "message", s.poolDevice(), "0", "delete "+m[1])
	return err == nil
}

// Clone implements Cloner for thin snapshots. A thick one cannot be snapshotted.
func (t thinSnapshot) Clone(ctx context.Context, r Request) (Snapshot, error) {
	if r.Name == "" {
		r.Name = NewName(r.Server, time.Now())
	}
	if err := checkName(r.Name, t.vg); err != nil {
		return nil, err
	}
	rows, err := t.sys.lvs(ctx, t.vg)
	if err != nil {
		return nil, lvmError(respaldo.Refused, "cannot read volume group "+t.vg, err)
	}
	pool := lvRow{LV: t.pool}
	for _, row := range rows {
		switch row.LV {
		case t.pool:
			pool = row
		case r.Name:
			return nil, nameTaken(r.Name, "volume group "+t.vg)
		}
	}
	if err := refusePool(t.vg, pool, r); err != nil {
		return nil, err
	}
	d := respaldo.Snapshot{Name: r.Name, Server: r.Server, Run: r.Run, Kind: respaldo.LVMThin, Volume: t.desc.Volume, Created: time.Now(),
		Path: "/dev/mapper/" + dmName(t.vg, r.Name), Kept: r.Kept, Expires: r.Expires}
	if _, err := t.sys.Run.Run(ctx, run.Cmd{Argv: t.sys.lvmArgv(createArgv(d, t.name())), Uninterruptible: true, Started: r.Started}); err != nil {
		return nil, lvmError(respaldo.SnapshotLost, "cannot snapshot "+t.name(), err)
	}
	return t.sys.lvmSnapshot(d, t.vg, t.pool), nil
}

// thinSnapshot adds what only thin ones can do.
type thinSnapshot struct{ *lvmSnapshot }

func (s *System) lvmSnapshot(d respaldo.Snapshot, vg, pool string) Snapshot {
	l := &lvmSnapshot{sys: s, desc: d, vg: vg, pool: pool}
	if pool != "" {
		return thinSnapshot{l}
	}
	return l
}

// lvmSnapshots lists those of ours among what the arguments to lvs name, oldest first.
func (s *System) lvmSnapshots(ctx context.Context, args ...string) ([]Snapshot, error) {
	rows, err := s.lvs(ctx, args...)
	if err != nil {
		return nil, lvmError(respaldo.Failed, "cannot list the snapshots in LVM", err)
	}
	var found []Snapshot
	for _, r := range rows {
		if d, ours := r.snapshot(); ours {
			found = append(found, s.lvmSnapshot(d, r.VG, r.Pool))
		}
	}
	sortSnapshots(found)
	return found, nil
}

func sortSnapshots(list []Snapshot) {
	slices.SortFunc(list, func(a, b Snapshot) int {
		x, y := a.Describe(), b.Describe()
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return strings.Compare(x.Name, y.Name)
	})
}
