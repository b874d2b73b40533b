package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

const (
	extentBytes = 4 << 20 // LVM's default, which a new group gets

	thickFree = 0.20 // of a new group, for snapshots
	thinFree  = 0.10 // of a new group, for its pool to grow
	thinShare = 0.80 // of a pool, that its volume can fill
	// sharedGroup is the most that is taken of the free space of a group that holds other things.
	sharedGroup = 0.80
	// fsShare is what of a volume is left for files: inodes, journal and btrees take the rest.
	fsShare = 0.94

	btrfsLeast = 256 << 20 // mkfs.btrfs asks for some 110 MiB
)

// PlanMaking decides what volume is made of what, and why. It changes nothing. A device
// that is in use or not blank, names that are taken and room that does not suffice are
// refused, with numbers.
func (s *System) PlanMaking(ctx context.Context, r MakeRequest) (Making, error) {
	m := Making{Server: r.Server, Kind: r.Kind, Device: r.Device, Group: r.Group, Name: r.Name, FSType: r.FSType, FSUUID: newUUID()}
	if m.Name == "" {
		m.Name = "mysql"
	}
	if m.Kind == "" {
		m.Kind = respaldo.LVMThin
		m.reason("lvm-thin: a snapshot takes room only for what changes, costs writers little, and several can be kept")
	}
	room := int64(0)
	if r.Device != "" {
		d, err := s.Device(ctx, r.Device)
		if err != nil {
			return m, err
		}
		if err := d.refuseHolding(r.Wipe); err != nil {
			return m, err
		}
		room, m.Wipe, m.Identity = d.Bytes, d.Signatures, d.Identity
	}
	if m.Kind == respaldo.Btrfs {
		return m, m.planBtrfs(room, r)
	}
	if m.FSType == "" {
		m.FSType = "ext4"
	}
	if err := errors.Join(checkName(m.Name, m.Group), checkGroup(m.Group)); err != nil {
		return m, err
	}
	groups, err := s.groups(ctx)
	if err != nil {
		return m, lvmError(respaldo.Refused, "cannot ask LVM for its volume groups", err)
	}
	if r.Device != "" {
		room, err = m.newGroup(room, groups)
	} else {
		room, err = m.oldGroup(ctx, s, groups)
	}
	if err != nil {
		return m, err
	}
	if m.Kind == respaldo.LVMThin {
		return m, m.planThin(room, r)
	}
	return m, m.planThick(room, r)
}

// checkGroup accepts an empty name, in whose place one is chosen.
func checkGroup(name string) error {
	if name == "" {
		return nil
	}
	return checkName(name, "")
}

func (m *Making) reason(format string, args ...any) {
	m.Reasons = append(m.Reasons, fmt.Sprintf(format, args...))
}

// newGroup chooses a name that is free; a name that was asked for must be.
func (m *Making) newGroup(bytes int64, groups []group) (room int64, err error) {
	m.NewGroup = true
	taken := map[string]bool{}
	for _, g := range groups {
		taken[g.name] = true
	}
	if m.Group != "" && taken[m.Group] {
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: "there is a volume group " + m.Group + " already",
			Hint: "to use its free space leave out --device; else give the new group another name: --vg"}
	}
	for n := 1; m.Group == "" || taken[m.Group]; n++ {
		if m.Group = "mysql"; n > 1 {
			m.Group = fmt.Sprintf("mysql%d", n)
		}
	}
	if _, err := os.Lstat("/dev/" + m.Group); err == nil {
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: "/dev/" + m.Group + " exists", Hint: "give the new group another name: --vg"}
	}
	// LVM's own data, and where the first extent is aligned to, take less than two extents.
	return max(bytes/extentBytes-2, 0) * extentBytes, nil
}

func (m *Making) oldGroup(ctx context.Context, s *System, groups []group) (room int64, err error) {
	for _, g := range groups {
		if g.name != m.Group {
			continue
		}
		rows, err := s.lvs(ctx, m.Group)
		if err != nil {
			return 0, err
		}
		for _, r := range rows {
			if r.LV == m.Name || r.LV == m.Name+"_pool" {
				return 0, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("there is a logical volume %s/%s already", m.Group, r.LV), Hint: "give another name: --lv"}
			}
		}
		return g.free, nil
	}
	var names []string
	for _, g := range groups {
		names = append(names, fmt.Sprintf("%s (%s free)", g.name, size(g.free)))
	}
	hint := "there is none; give a blank --device to make it of"
	if len(names) > 0 {
		hint = "there are " + strings.Join(names, ", ") + "; or give a blank --device to make a new one of"
	}
	return 0, &respaldo.Error{Kind: respaldo.NotFound, What: "there is no volume group " + m.Group, Hint: hint}
}

// rounded is a size in whole extents.
func rounded(bytes float64) int64 { return int64(bytes) / extentBytes * extentBytes }

// share is what is asked to stay free, or what is usual.
func share(asked, usual float64) float64 {
	if asked < 0 {
		return usual
	}
	return asked
}

func (m *Making) planThick(room int64, r MakeRequest) error {
	free := share(r.Free, thickFree)
	switch {
	case r.Bytes > 0:
		m.Bytes = roundUp(r.Bytes, extentBytes)
	case m.NewGroup || r.Free >= 0:
		m.Bytes = rounded(float64(room) * (1 - free))
	default: // others want room there too
		m.Bytes = min(rounded(float64(room)*sharedGroup), roundUp(2*r.Needed+1<<30, extentBytes))
	}
	if m.FreeBytes = room - m.Bytes; m.FreeBytes < 0 {
		return m.noRoom(room)
	}
	m.reason("%s of the volume group stay free: a thick snapshot needs room of its own for all that the server changes while a backup runs, and one that is full is lost. Make it more where much is written: --free 30%%", size(m.FreeBytes))
	if float64(m.FreeBytes) < 0.05*float64(m.Bytes) {
		return &respaldo.Error{Kind: respaldo.Refused, Err: ErrNoRoom,
			What: fmt.Sprintf("%s of %s would stay free for snapshots of a volume of %s, less than a twentieth of it", size(m.FreeBytes), size(room), size(m.Bytes)),
			Hint: "give a smaller --size, or a larger --free"}
	}
	return m.fits(r)
}

func (m *Making) planThin(room int64, r MakeRequest) error {
	m.Pool = m.Name + "_pool"
	free := share(r.Free, thinFree)
	usable := float64(room) * (1 - free)
	if !m.NewGroup && r.Free < 0 {
		usable = min(float64(room)*sharedGroup, (2*float64(r.Needed)+float64(1<<30))/thinShare)
	}
	if r.Bytes > 0 {
		usable = float64(r.Bytes)/thinShare + 2*float64(metadataFor(int64(float64(r.Bytes)/thinShare))) + 2*extentBytes
	}
	m.MetadataBytes = metadataFor(int64(usable))
	m.PoolBytes = rounded(usable) - 2*m.MetadataBytes // LVM keeps a spare of the metadata for repairs
	m.ChunkBytes = 64 << 10
	for m.PoolBytes/m.ChunkBytes > 1<<27 { // what 16 GiB of metadata, LVM's most, can tell apart with snapshots
		m.ChunkBytes *= 2
	}
	if m.Bytes = rounded(float64(m.PoolBytes) * thinShare); r.Bytes > 0 {
		m.Bytes = roundUp(r.Bytes, extentBytes)
	}
	m.FreeBytes = room - m.PoolBytes - 2*m.MetadataBytes
	if m.FreeBytes < 0 || m.PoolBytes <= 0 {
		return m.noRoom(room)
	}
	m.reason("the pool has %s and its volume %s: the rest is for what snapshots hold, and a volume that is full cannot by itself fill the pool, which would stop the server", size(m.PoolBytes), size(m.Bytes))
	m.reason("the pool's metadata has %s, twice what the volume alone needs, as snapshots need their share, and LVM keeps as much in spare for repairs; chunks of %s keep a snapshot small when single pages change", size(m.MetadataBytes), size(m.ChunkBytes))
	m.reason("%s of the volume group stay free for the pool to grow into: lvextend, or thin_pool_autoextend_threshold in lvm.conf", size(m.FreeBytes))
	return m.fits(r)
}

// metadataFor is twice what 64-KiB chunks of a pool need, 64 bytes each, within LVM's limits.
func metadataFor(pool int64) int64 {
	return min(max(roundUp(pool/512, extentBytes), 8<<20), 15<<30)
}

func (m *Making) planBtrfs(room int64, r MakeRequest) error {
	if m.Device == "" {
		return &respaldo.Error{Kind: respaldo.Usage, What: "Btrfs takes a whole device", Hint: "give --device, or a kind that takes room in a volume group: --kind lvm-thin"}
	}
	if r.Bytes > 0 || r.FSType != "" && r.FSType != "btrfs" {
		return &respaldo.Error{Kind: respaldo.Usage, What: "--size and --fs are not for Btrfs, which takes the whole device", Hint: "leave them out"}
	}
	if err := checkName(m.Name, ""); err != nil {
		return err
	}
	m.Group, m.FSType, m.Bytes = "", "btrfs", room
	m.reason("the data goes into a subvolume of its own: the top level cannot hold its own snapshots")
	m.reason("copy-on-write stays on (no nodatacow): without it there are no checksums, and the first write after each snapshot copies all the same")
	free := share(r.Free, thickFree)
	m.FreeBytes = int64(float64(room) * free)
	m.reason("%s should stay unused: snapshots hold what the server changes, and Btrfs needs free room to work in", size(m.FreeBytes))
	if room < btrfsLeast {
		return m.noRoom(room)
	}
	have := int64(float64(room-m.FreeBytes) * fsShare)
	if have < r.Needed {
		return tooSmall(m.Device, have, r.Needed)
	}
	return nil
}

func (m *Making) noRoom(room int64) error {
	where, what := "volume group "+m.Group, m.Bytes
	if m.Device != "" {
		where = m.Device
	}
	if m.Pool != "" {
		what = max(m.PoolBytes+2*m.MetadataBytes, 64<<20)
	}
	return &respaldo.Error{Kind: respaldo.Refused, Err: ErrNoRoom, What: fmt.Sprintf("%s has room for %s, and %s are needed", where, size(room), size(max(what, btrfsLeast))),
		Hint: "give a smaller --size, or a larger device"}
}

// fits refuses a volume that the data would not fit into with something to spare.
func (m *Making) fits(r MakeRequest) error {
	if have := int64(float64(m.Bytes) * fsShare); have < r.Needed {
		return tooSmall("a volume of "+size(m.Bytes), have, r.Needed)
	}
	return nil
}

func tooSmall(what string, have, need int64) error {
	return &respaldo.Error{Kind: respaldo.Refused, Err: ErrNoRoom,
		What: fmt.Sprintf("%s has room for %s of files, and the server's need %s, a tenth to grow included", what, size(have), size(need)),
		Hint: "give a larger device or --size, or a smaller --free"}
}

type group struct {
	name string
	free int64
	tags []string
}

// groups lists the volume groups.
func (s *System) groups(ctx context.Context) ([]group, error) {
	r, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv([]string{"vgs", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", "vg_name,vg_free,vg_tags"}), Quiet: true})
	if err != nil {
		return nil, err
	}
	var report struct {
		Report []struct {
			VG []struct {
				Name string `json:"vg_name"`
				Free string `json:"vg_free"`
				Tags string `json:"vg_tags"`
			} `json:"vg"`
		} `json:"report"`
	}
	if err := json.Unmarshal(r.Stdout, &report); err != nil {
		return nil, fmt.Errorf("cannot read the report of vgs: %w", err)
	}
	var found []group
	for _, one := range report.Report {
		for _, g := range one.VG {
			found = append(found, group{name: g.Name, free: bytesOf(g.Free), tags: strings.Split(g.Tags, ",")})
		}
	}
	return found, nil
}

// MountedFrom tells whether a directory is the mount point of the volume.
func (s *System) MountedFrom(ctx context.Context, dir string, m Making) (bool, error) {
	loc, err := s.Locate(ctx, dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil || loc.MountPoint != loc.Real || loc.Device == "" {
		return false, err
	}
	if m.Kind == respaldo.Btrfs { // whatever its device is called by now
		_, uuid, err := probe(loc.Device)
		return uuid == m.FSUUID && loc.FSRoot == "/"+m.Name, err
	}
	var a, b unix.Stat_t
	if err := unix.Stat(loc.Device, &a); err != nil {
		return false, &os.PathError{Op: "stat", Path: loc.Device, Err: err}
	}
	if err := unix.Stat(m.Node(), &b); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, &os.PathError{Op: "stat", Path: m.Node(), Err: err}
	}
	return a.Rdev == b.Rdev, nil
}
