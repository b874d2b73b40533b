package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/respaldo-backup/respaldo"
)

// lvmVolume is a logical volume, thick or thin, with a filesystem directly on it.
type lvmVolume struct {
	sys  *System
	desc respaldo.Volume
	vg   string
	lv   string
	pool string // thin only

	patient atomic.Bool // its snapshots are waited for to the end: one suspension was not all
}

// Limits above which a new snapshot is refused. They leave Watch, whose limits are
// higher, something to work with.
const (
	startDataLimit     = 0.85
	startMetadataLimit = 0.75
)

func (s *System) findLVM(ctx context.Context, loc Location) (Volume, error) {
	vg, _, _ := strings.Cut(loc.Stack[0].Name, "/")
	rows, err := s.lvs(ctx, vg)
	if err != nil {
		return nil, lvmError(respaldo.Refused, "cannot read volume group "+vg, err)
	}
	i := slices.IndexFunc(rows, func(r lvRow) bool {
		return strings.HasSuffix(loc.Stack[0].UUID, strings.ReplaceAll(r.UUID, "-", "")) && r.UUID != ""
	})
	if i < 0 {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s lies on %s, which LVM does not know", loc.Path, loc.Stack[0].Name),
			Hint: "is its disk hidden by a filter or a devices file? see pvs and lvmdevices"}
	}
	row := rows[i]
	if err := refuseLV(row); err != nil {
		return nil, err
	}
	v := &lvmVolume{sys: s, vg: row.VG, lv: row.LV, pool: row.Pool, desc: respaldo.Volume{
		Kind: respaldo.LVMThick, Name: row.VG + "/" + row.LV, ID: row.UUID, Device: loc.Device,
		FSType: loc.FSType, MountPoint: loc.MountPoint, Bytes: row.size()}}
	if v.thin() {
		v.desc.Kind = respaldo.LVMThin
	}
	_, v.desc.FSUUID, _ = probe(loc.Device) // only for the record
	return v, nil
}

// refuseLV says why lvcreate -s would refuse this volume, or would better not be asked.
func refuseLV(r lvRow) error {
	name := r.VG + "/" + r.LV
	refuse := func(hint, format string, args ...any) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: "logical volume " + name + " " + fmt.Sprintf(format, args...), Hint: hint}
	}
	if _, ours := decodeTags(r.tags()); ours {
		return refuse("if it has become production, take our tag off: lvchange --deltag "+Tag+" "+name, "is itself a snapshot of respaldo's, which cleanup may remove")
	}
	switch {
	case r.attr(0) == 's' || r.attr(0) == 'S':
		return refuse("back up its origin "+r.VG+"/"+r.Origin+" instead, or use thin volumes", "is a thick snapshot, of which LVM takes no snapshot")
	case r.attr(0) == 'O':
		return refuse("wait until the merge is done (lvs shows it)", "has a snapshot merging into it")
	case is(r.Layout, "mirror"):
		return refuse("convert it: lvconvert --type raid1 "+name, "is an old-style mirror, whose snapshots can deadlock (lvcreate warns of it)")
	case is(r.Layout, "vdo"), is(r.Layout, "writecache"), is(r.Layout, "unknown"):
		return refuse(moveHint, "is of type %s, whose snapshots are not supported", r.Layout)
	}
	attr := r.VGAttr + "------"
	switch {
	case attr[0] == 'r':
		return refuse("vgchange -pw? see vgs", "is in a volume group that is read-only")
	case attr[2] == 'x':
		return refuse("vgimport "+r.VG, "is in a volume group that is exported")
	case attr[3] == 'p':
		return refuse("see vgs and pvs for the missing disk", "is in a volume group with a disk missing")
	case attr[5] == 'c':
		return refuse(moveHint, "is in a clustered volume group, which is not supported")
	}
	return nil
}

// onePause: what lies below a volume of another type may need suspensions of its own.
func onePause(r lvRow) bool {
	return is(r.Layout, "linear") || is(r.Layout, "striped") || is(r.Layout, "thin")
}

func (v *lvmVolume) thin() bool { return v.pool != "" }

func (v *lvmVolume) Describe() respaldo.Volume { return v.desc }

// look reads the group anew: our row and, for a thin volume, the pool's.
func (v *lvmVolume) look(ctx context.Context) (rows []lvRow, origin, pool lvRow, err error) {
	rows, err = v.sys.lvs(ctx, v.vg)
	if err != nil {
		return nil, origin, pool, lvmError(respaldo.Refused, "cannot read volume group "+v.vg, err)
	}
	for _, r := range rows {
		switch {
		case r.UUID == v.desc.ID:
			origin = r
		case v.thin() && r.LV == v.pool:
			pool = r
		}
	}
	if origin.UUID == "" {
		return nil, origin, pool, &respaldo.Error{Kind: respaldo.NotFound, What: "logical volume " + v.desc.Name + " is gone"}
	}
	return rows, origin, pool, nil
}

func (v *lvmVolume) Space(ctx context.Context) (Space, error) {
	start := time.Now()
	_, origin, pool, err := v.look(ctx)
	if err != nil {
		return Space{}, err
	}
	// A guess until a snapshot was taken. In the lab writers were held for about a third
	// of what a first lvs takes, whose program is not in the page cache yet; later ones
	// are quicker than lvcreate.
	sp := Space{Origin: origin.size(), Free: origin.free(), Pause: time.Since(start)}
	if v.thin() {
		sp.Fill = respaldo.Fill{Data: fractionOf(pool.Data), Metadata: fractionOf(pool.Metadata), Valid: true}
		sp.Free = int64(float64(pool.size()) * (1 - sp.Fill.Data))
		return sp, nil
	}
	sp.Suggested, _ = cowSize(origin, 0)
	return sp, nil
}

// Copy-on-write sizes for thick snapshots. Allocating costs nothing but the space, and
// what is not allocated can be added while the snapshot is open, each time at the price
// of a short suspension of the origin; so start generously, and leave some for others.
const (
	cowShare   = 4         // of the origin: a quarter
	cowFloor   = 1 << 30   // but no less than this if there is room
	cowMinimum = 32 << 20  // below this a snapshot would not live long enough
	cowChunk   = 4096      // lvcreate's default for thick snapshots
	cowPerMeta = 4096 / 16 // exceptions in one chunk of metadata
)

// cowMax is the size at which a snapshot cannot overflow: every chunk of the origin and the
// metadata for it. LVM itself lets none be larger.
func cowMax(origin, extent int64) int64 {
	chunks := (origin + cowChunk - 1) / cowChunk
	return roundUp((chunks+chunks/cowPerMeta+3)*cowChunk, extent)
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// cowSize chooses, or checks what was asked for, and rounds it to extents.
func cowSize(origin lvRow, asked int64) (int64, error) {
	extent, free, most := origin.extent(), origin.free(), cowMax(origin.size(), origin.extent())
	noRoom := func(need int64) error {
		return &respaldo.Error{Kind: respaldo.Refused, Err: ErrNoRoom,
			What: fmt.Sprintf("volume group %s has %s free, and a snapshot of %s needs %s", origin.VG, size(free), origin.LV, size(need)),
			Hint: "add a disk with vgextend, shrink or remove a volume, or give a smaller --snapshot-size"}
	}
	if asked > 0 {
		n := min(roundUp(asked, extent), most)
		if n > free {
			return 0, noRoom(n)
		}
		return n, nil
	}
	least := min(roundUp(max(cowMinimum, origin.size()/100), extent), most)
	if free < least {
		return 0, noRoom(least)
	}
	want := min(roundUp(max(origin.size()/cowShare, cowFloor), extent), most)
	return min(want, free), nil
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func (v *lvmVolume) Prepare(ctx context.Context, r Request) (Pending, error) {
	if r.Name == "" {
		r.Name = NewName(r.Server, time.Now())
	}
	if err := checkName(r.Name, v.vg); err != nil {
		return nil, err
	}
	rows, origin, pool, err := v.look(ctx)
	if err != nil {
		return nil, err
	}
	if err := refuseLV(origin); err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.LV == r.Name {
			return nil, nameTaken(r.Name, "volume group "+v.vg)
		}
	}
	bytes, err := v.room(origin, pool, r)
	if err != nil {
		return nil, err
	}
	p := &lvmPending{volume: v, started: r.Started, bytes: bytes, locks: v.sys.groupLocks(ctx), plain: onePause(origin),
		desc: respaldo.Snapshot{Name: r.Name, Server: r.Server, Run: r.Run, Kind: v.desc.Kind,
			Volume: v.desc.Name, Path: "/dev/mapper/" + dmName(v.vg, r.Name), Kept: r.Kept, Expires: r.Expires}}
	if err := p.makeStore(ctx); err != nil {
		return nil, errors.Join(err, p.Cancel(context.WithoutCancel(ctx)))
	}
	return p, nil
}

func (v *lvmVolume) Refusal(ctx context.Context, r Request) error {
	_, origin, pool, err := v.look(ctx)
	if err == nil {
		err = refuseLV(origin)
	}
	if err == nil {
		_, err = v.room(origin, pool, r)
	}
	return err
}

// room is the copy-on-write size of a thick snapshot, or an error where none can be.
func (v *lvmVolume) room(origin, pool lvRow, r Request) (bytes int64, err error) {
	if v.thin() {
		return 0, refusePool(v.vg, pool, r)
	}
	return cowSize(origin, r.Bytes)
}

func nameTaken(name, where string) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the name %q is taken in %s", name, where),
		Hint: "choose another snapshot name, or see what has this one: respaldo snapshot list"}
}

// refusePool keeps a snapshot from being begun that Watch would soon give up.
func refusePool(vg string, pool lvRow, r Request) error {
	data, meta := fractionOf(pool.Data), fractionOf(pool.Metadata)
	dataLimit, metaLimit := cmp.Or(r.PoolData, startDataLimit), cmp.Or(r.PoolMetadata, startMetadataLimit)
	e := &respaldo.Error{Kind: respaldo.Refused, Err: ErrNoRoom}
	switch {
	case pool.UUID == "" || pool.Data == "":
		return &respaldo.Error{Kind: respaldo.Refused, What: "thin pool " + vg + "/" + pool.LV + " does not say how full it is", Hint: "see lvs -a " + vg}
	case data >= dataLimit:
		e.What = fmt.Sprintf("thin pool %s/%s is %.0f%% full, and a full pool stops the origin itself; snapshots are begun below %.0f%%", vg, pool.LV, data*100, dataLimit*100)
		e.Hint = fmt.Sprintf("extend it: lvextend -L +SIZE %s/%s", vg, pool.LV)
	case meta >= metaLimit:
		e.What = fmt.Sprintf("the metadata of thin pool %s/%s is %.0f%% full, and full metadata stops the origin itself; snapshots are begun below %.0f%%", vg, pool.LV, meta*100, metaLimit*100)
		e.Hint = fmt.Sprintf("extend it: lvextend --poolmetadatasize +SIZE %s/%s", vg, pool.LV)
	default:
		return nil
	}
	return e
}

func (v *lvmVolume) Snapshots(ctx context.Context) ([]Snapshot, error) {
	all, err := v.sys.lvmSnapshots(ctx, v.vg)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s Snapshot) bool { return s.Describe().Volume != v.desc.Name }), nil
}
