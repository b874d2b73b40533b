package volume

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// dmDevice is one row of dmsetup info.
type dmDevice struct {
	name, uuid string
	suspended  bool
	live       bool // has a table in use
	inactive   bool // has a table that waits for a resume
	open       int
}

// dmDevices lists LVM's devices. It never blocks on a suspended one.
func (s *System) dmDevices(ctx context.Context) ([]dmDevice, error) {
	r, err := s.dmsetup(ctx, "info", "--columns", "--noheadings", "--separator", " ", "--options", "uuid,open,suspended,tables_loaded,name")
	if err != nil {
		return nil, err
	}
	return parseDevices(r), nil
}

// parseDevices reads "UUID OPEN Active|Suspended Live|Inactive|Both|None NAME".
func parseDevices(text string) []dmDevice {
	var list []dmDevice
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 || !strings.HasPrefix(f[0], "LVM-") {
			continue
		}
		open, _ := strconv.Atoi(f[1])
		list = append(list, dmDevice{uuid: f[0], open: open, suspended: f[2] == "Suspended",
			live: f[3] == "Live" || f[3] == "Both", inactive: f[3] == "Inactive" || f[3] == "Both", name: f[4]})
	}
	return list
}

func (s *System) dmsetup(ctx context.Context, args ...string) (string, error) {
	changes := args[0] != "info" && args[0] != "table"
	r, err := s.Run.Run(ctx, run.Cmd{Argv: append([]string{"dmsetup"}, args...), Quiet: !changes, Uninterruptible: changes})
	return string(r.Stdout), err
}

// lvmUUIDSize is "LVM-", then the group's and the volume's UUID, 32 characters each.
const lvmUUIDSize = 4 + 32 + 32

func (d dmDevice) group() string {
	return d.uuid[:min(len(d.uuid), lvmUUIDSize-32)]
}

// volume is the LV's UUID without dashes, layer what the device is to it: "" the volume
// itself, "-real" an origin's own blocks below it, "-cow" a snapshot's store.
func (d dmDevice) volume() string { return d.uuid[min(len(d.uuid), 36):min(len(d.uuid), lvmUUIDSize)] }
func (d dmDevice) layer() string  { return d.uuid[min(len(d.uuid), lvmUUIDSize):] }

func undashed(uuid string) string { return strings.ReplaceAll(uuid, "-", "") }

// ResumeSuspended undoes what a killed LVM command has left in the kernel: an origin that
// is suspended (every writer hangs), tables that wait to be swapped in, devices of
// snapshots that never came to be. It touches devices of this origin and of snapshots
// tagged as ours only, and brings them to what LVM's metadata on disk says, which a
// killed command has either changed wholly or not at all. For Btrfs there is nothing to do.
//
// It waits for LVM commands that are at work on the group. The snapshot itself, half made
// or whole, is then Remove's.
func (s *System) ResumeSuspended(ctx context.Context, v respaldo.Volume) error {
	vg, lv, ok := strings.Cut(v.Name, "/")
	if v.Kind == respaldo.Btrfs || !ok {
		return nil
	}
	devices, err := s.dmDevices(ctx)
	if err != nil {
		return lvmError(respaldo.Leftovers, "cannot ask device-mapper about "+v.Name, err)
	}
	i := slices.IndexFunc(devices, func(d dmDevice) bool { return d.volume() == undashed(v.ID) })
	if i < 0 {
		return nil // not active, so not suspended
	}
	group := devices[i].group()
	if !slices.ContainsFunc(devices, func(d dmDevice) bool { return d.group() == group && d.unfinished() }) {
		return nil
	}
	r := &rescue{sys: s.careful(), before: devices, vg: vg, lv: lv, origin: undashed(v.ID)}
	if err := r.run(ctx, group); err != nil {
		return &respaldo.Error{Kind: respaldo.Leftovers, What: "cannot bring the devices of " + v.Name + " back to order", Err: err,
			Hint: "see dmsetup info -c; what is suspended (s) is resumed with: lvchange --refresh " + v.Name}
	}
	return nil
}

// ResumeLeftovers is ResumeSuspended for every volume of this machine that is suspended
// while it has a snapshot of ours, whole or half made: so it is found when no record says
// what was under way. Volumes that somebody else has suspended are left alone. Who may not
// use device-mapper has nothing to resume.
func (s *System) ResumeLeftovers(ctx context.Context) error {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil { // a container may have the file and nothing behind it
		return nil
	}
	control.Close()
	devices, err := s.dmDevices(ctx)
	if run.NotInstalled(err) {
		return nil
	}
	if err != nil {
		return lvmError(respaldo.Leftovers, "cannot ask device-mapper what is suspended", err)
	}
	var failed error
	for _, d := range devices {
		vg, lv, ok := splitDMName(d.name)
		if !ok || !d.suspended || d.layer() != "" || strings.HasPrefix(lv, namePrefix) {
			continue // a snapshot of ours is in nobody's way
		}
		looking, cancel := context.WithTimeout(ctx, groupPatience)
		ours, err := s.hasOurs(looking, devices, d, vg, lv)
		cancel()
		if err != nil { // a group that may have nothing to do with us must not stop us
			s.log().Warn("cannot see whether a suspended volume is ours to resume", "volume", vg+"/"+lv, "error", err)
			continue
		}
		if ours {
			err = s.ResumeSuspended(ctx, respaldo.Volume{Kind: respaldo.LVMThick, Name: vg + "/" + lv, ID: d.volume()})
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// groupPatience is how long a group's lock is waited for when the group may be a stranger's.
const groupPatience = time.Minute

// hasOurs: LVM lists a snapshot of ours with this origin; or one is half made, which shows
// in devices with our name that LVM does not list, while the origin is being changed into one.
func (s *System) hasOurs(ctx context.Context, devices []dmDevice, origin dmDevice, vg, lv string) (bool, error) {
	rows, err := s.careful().lvs(ctx, vg)
	if err != nil {
		return false, err
	}
	listed := map[string]bool{}
	for _, r := range rows {
		listed[undashed(r.UUID)] = true
		if of, ours := r.snapshot(); ours && of.Volume == vg+"/"+lv {
			return true, nil
		}
	}
	halfMade, changing := false, origin.inactive
	for _, d := range devices {
		_, name, ok := splitDMName(d.name)
		halfMade = halfMade || ok && d.group() == origin.group() && strings.HasPrefix(name, namePrefix) && !listed[d.volume()]
		changing = changing || d.volume() == origin.volume() && d.layer() == "-real"
	}
	return halfMade && changing, nil
}

// careful is an LVM that does not scan a suspended volume for a signature: it would hang with it.
func (s *System) careful() *System { return s.with("devices/ignore_suspended_devices=1") }

// with is an LVM with settings of its own.
func (s *System) with(config string) *System {
	c := *s
	c.LVMConfig = strings.TrimSpace(s.LVMConfig + " " + config)
	return &c
}

// same: it is the same device and in the same state.
func (d dmDevice) same(o dmDevice) bool {
	return d.uuid == o.uuid && d.suspended == o.suspended && d.live == o.live && d.inactive == o.inactive
}

// unfinished is a device as no LVM command leaves it when it ends by itself; a live
// -real or -cow is normal only below a snapshot, which rescue looks at.
func (d dmDevice) unfinished() bool {
	return d.suspended || d.inactive || !d.live || d.layer() == "-cow" || d.layer() == "-real"
}

type rescue struct {
	sys     *System
	vg, lv  string
	origin  string // UUID without dashes
	before  []dmDevice
	cleared bool // a table that may have been the newer one
}

func (r *rescue) run(ctx context.Context, group string) error {
	rows, err := r.sys.lvs(ctx, r.vg)
	if err != nil {
		return err
	}
	// lvs has waited for the group's lock, so for anybody's command at work: what was
	// unfinished before and is so still was left by one that is dead. What has come since
	// is the next command's.
	devices, err := r.sys.dmDevices(ctx)
	if err != nil {
		return err
	}
	devices = slices.DeleteFunc(devices, func(d dmDevice) bool { return !slices.ContainsFunc(r.before, d.same) })
	known := map[string]lvRow{}
	pool := ""
	var isOrigin, hasReal bool // of a thick snapshot; of that or of a thin volume outside its pool
	for _, row := range rows {
		known[undashed(row.UUID)] = row
		isOrigin = isOrigin || row.Origin == r.lv && row.Pool == ""
		hasReal = hasReal || row.Origin == r.lv
		if undashed(row.UUID) == r.origin {
			pool = row.Pool
		}
	}
	var first, second, third, last, garbage []dmDevice
	for _, d := range devices {
		if d.group() != group {
			continue
		}
		row, exists := known[d.volume()]
		of, ours := row.snapshot()
		ours = ours && of.Volume == r.vg+"/"+r.lv // another server's are its own operations' business
		isSnapshot := row.Origin == r.lv
		switch {
		case d.volume() == r.origin && d.layer() == "-real":
			if second = append(second, d); !hasReal {
				garbage = append(garbage, d)
			}
		case d.volume() == r.origin:
			last = append(last, d)
		case pool != "" && row.LV == pool:
			first = append(first, d)
		case d.layer() == "-cow" && (ours || !exists && r.named(d, "-cow")):
			if first = append(first, d); !isSnapshot {
				garbage = append(garbage, d)
			}
		case d.layer() == "" && ours && !isSnapshot && !d.live, d.layer() == "" && !exists && r.named(d, ""):
			garbage = append(garbage, d)
		case d.layer() == "" && ours:
			third = append(third, d)
		}
	}
	// From the bottom up, as LVM itself resumes.
	for _, d := range slices.Concat(first, second, third, last) {
		want := ""
		switch {
		case d.layer() != "":
		case d.volume() == r.origin && isOrigin:
			want = "snapshot-origin"
		case d.volume() != r.origin && known[d.volume()].Origin == r.lv && pool == "":
			want = "snapshot"
		}
		if err := r.settle(ctx, d, want, slices.Contains(garbage, d)); err != nil {
			return err
		}
	}
	// What lies upon another goes first.
	slices.SortStableFunc(garbage, func(a, b dmDevice) int { return strings.Compare(a.layer(), b.layer()) })
	if err := r.clear(ctx, garbage); err != nil {
		return err
	}
	if !r.cleared {
		return nil
	}
	// Only now, with nothing suspended or half loaded: earlier, it swaps in whatever waits.
	_, err = r.sys.Run.Run(ctx, run.Cmd{Argv: r.sys.lvmArgv([]string{"lvchange", "--refresh", r.vg + "/" + r.lv}), Uninterruptible: true})
	return err
}

// named: a device whose volume is no more is ours by its name alone.
func (r *rescue) named(d dmDevice, suffix string) bool {
	vg, lv, ok := splitDMName(strings.TrimSuffix(d.name, suffix))
	return ok && vg == r.vg && strings.HasPrefix(lv, namePrefix)
}

// settle drops or swaps in a waiting table, whichever the metadata wants, and resumes.
// The metadata wants a target, "" for one that has nothing to do with thick snapshots.
func (r *rescue) settle(ctx context.Context, d dmDevice, want string, garbage bool) error {
	switch {
	case !d.suspended && !d.inactive, !d.live && !d.inactive:
		return nil
	case garbage && !d.live:
		return nil // never was in use
	case d.live && d.inactive:
		table, err := r.sys.dmsetup(ctx, "table", d.name)
		if err != nil {
			return err
		}
		has := ""
		if f := strings.Fields(table); len(f) > 2 && strings.HasPrefix(f[2], "snapshot") {
			has = f[2]
		}
		if has == want {
			if _, err := r.sys.dmsetup(ctx, "clear", d.name); err != nil {
				return err
			}
			r.cleared = true
		}
	}
	r.sys.log().Warn("resuming a device that a killed LVM command left", "device", d.name)
	_, err := r.sys.dmsetup(ctx, "resume", d.name)
	return err
}

// clear removes devices that no metadata knows; in rounds, in case one lies upon another.
func (r *rescue) clear(ctx context.Context, garbage []dmDevice) error {
	for len(garbage) > 0 {
		var left []dmDevice
		var failed error
		for _, d := range garbage {
			if _, err := r.sys.dmsetup(ctx, "remove", d.name); err != nil {
				left, failed = append(left, d), errors.Join(failed, err)
			} else {
				r.sys.log().Warn("removed a device that a killed LVM command left", "device", d.name)
			}
		}
		if len(left) == len(garbage) {
			return failed
		}
		garbage = left
	}
	return nil
}
