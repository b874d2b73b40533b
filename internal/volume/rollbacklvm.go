package volume

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

func (v *lvmVolume) planRollback(ctx context.Context, snap Snapshot, r *Rollback) error {
	rows, origin, _, err := v.look(ctx)
	if err != nil {
		return err
	}
	if err := refuseLV(origin); err != nil { // a merge under way, too
		return err
	}
	if err := v.sys.heldError(snap.Describe().Path, v.vg+"/"+r.Snapshot.Name); err != nil {
		return inUse(err)
	}
	if !v.thin() {
		return nil
	}
	r.Copy = NewName(r.State.Server, time.Now())
	for _, name := range []string{r.State.Name, r.Copy} {
		if err := checkName(name, v.vg); err != nil {
			return err
		}
		for _, row := range rows {
			if row.LV == name {
				return nameTaken(name, "volume group "+v.vg)
			}
		}
	}
	return nil
}

// inUse makes of what a removal would say something that is said before anything is touched.
func inUse(err error) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: err.Error(), Hint: "end what uses it, then run again"}
}

// unused makes sure that nothing has a logical volume open: a merge of one that is would
// only begin at its next activation.
func (s *System) unused(ctx context.Context, name, device string) error {
	return s.retryBusy(ctx, func() (busy bool, err error) {
		if err := s.heldError(device, name); err != nil {
			return true, err
		}
		devices, err := s.dmDevices(ctx)
		if err != nil {
			return false, lvmError(respaldo.Failed, "cannot ask device-mapper about "+name, err)
		}
		vg, lv, _ := strings.Cut(name, "/")
		for _, d := range devices {
			if d.name == dmName(vg, lv) && d.open > 0 {
				return true, s.busyError("logical volume "+name+" is still open", device)
			}
		}
		return false, nil
	})
}

// mergeThick has LVM copy the snapshot's blocks back. From the moment in which the command
// has written the group's metadata the volume is what the snapshot was, whoever reads it and
// however often the machine is started again before all is copied.
func (s *System) mergeThick(ctx context.Context, r *Rollback, o SwitchOptions) error {
	vg, lv := cutName(r.Volume)
	rows, err := s.lvs(ctx, vg)
	if err != nil {
		return lvmError(respaldo.Failed, "cannot read volume group "+vg, err)
	}
	merging, there := mergeState(rows, lv, r.Snapshot.Name)
	if !there {
		return nil // merged to the end
	}
	if !merging {
		if err := s.unused(ctx, r.Volume.Name, r.Volume.Device); err != nil {
			return err
		}
		if err := s.unused(ctx, vg+"/"+r.Snapshot.Name, r.Snapshot.Path); err != nil {
			return err
		}
		said := &mergeOutput{progress: o.Progress}
		argv := []string{"lvconvert", "--yes", "--merge", "--interval", "1", vg + "/" + r.Snapshot.Name}
		_, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Uninterruptible: true, Started: o.Started, Stdout: said})
		o.step("merge.begun")
		if err != nil {
			return lvmError(respaldo.Failed, "cannot merge snapshot "+r.Snapshot.Name+" into "+r.Volume.Name, err)
		}
	}
	return s.waitForMerge(ctx, r, o)
}

// mergeState looks for a snapshot among a group's volumes. LVM hides one that merges.
func mergeState(rows []lvRow, origin, snapshot string) (merging, there bool) {
	for _, row := range rows {
		switch row.LV {
		case snapshot:
			there = true
			merging = merging || row.attr(0) == 'S'
		case origin:
			merging = merging || row.attr(0) == 'O'
		}
	}
	return merging, there
}

// waitForMerge returns when LVM has let the snapshot go. After a crash somebody must look
// after the merge again; LVM does so where it activates a group at boot.
func (s *System) waitForMerge(ctx context.Context, r *Rollback, o SwitchOptions) error {
	vg, lv := cutName(r.Volume)
	polled := false
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		rows, err := s.lvs(ctx, vg)
		if err != nil {
			return lvmError(respaldo.Failed, "cannot see how far the merge of "+r.Snapshot.Name+" is", err)
		}
		merging, there := mergeState(rows, lv, r.Snapshot.Name)
		switch {
		case !there:
			return nil
		case !merging:
			return &respaldo.Error{Kind: respaldo.Failed, What: "LVM does not merge snapshot " + r.Snapshot.Name + " into " + r.Volume.Name,
				Hint: "see lvs -a " + vg + " and dmesg; by hand: lvconvert --merge " + vg + "/" + r.Snapshot.Name}
		case !polled:
			polled = true
			for _, argv := range [][]string{{"lvchange", "--activate", "y", r.Volume.Name}, {"lvchange", "--poll", "y", r.Volume.Name}} {
				if _, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Uninterruptible: true}); err != nil {
					return lvmError(respaldo.Failed, "cannot go on with the merge of "+r.Snapshot.Name, err)
				}
			}
			continue
		}
		for _, row := range rows {
			if row.LV == lv && o.Progress != nil { // of an origin that merges: what is left
				o.Progress(respaldo.Progress{Phase: "merge", Done: int64((1 - fractionOf(row.Data)) * 1000), Total: 1000})
			}
		}
		<-tick.C
	}
}

// mergeOutput reads "vg0/data: Merged: 12.34%" as lvconvert prints it.
type mergeOutput struct {
	progress func(respaldo.Progress)
	rest     []byte
}

func (m *mergeOutput) Write(p []byte) (int, error) {
	m.rest = append(m.rest, p...)
	for {
		line, rest, whole := bytes.Cut(m.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		m.rest = rest
		_, percent, ok := strings.Cut(string(line), "Merged: ")
		share, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(percent), "%"), 64)
		if ok && err == nil && m.progress != nil {
			m.progress(respaldo.Progress{Phase: "merge", Done: int64(share * 10), Total: 1000})
		}
	}
}

// swapThin renames: the volume to the state's name, the copy to the volume's. LVM's own
// merge of thin snapshots does the same inside the pool, but uses the snapshot up and
// cuts the older ones off from their origin, after which it merges none of them any more.
//
// What becomes production loses our tags before it gets the name, and what was production
// gets them after it has lost it: nothing that cleanup may remove is ever the server's volume.
func (s *System) swapThin(ctx context.Context, r *Rollback, o SwitchOptions) error {
	vg, lv := cutName(r.Volume)
	rows, err := s.lvs(ctx, vg)
	if err != nil {
		return lvmError(respaldo.Failed, "cannot read volume group "+vg, err)
	}
	var former, fresh lvRow
	for _, row := range rows {
		switch row.UUID {
		case r.Volume.ID:
			former = row
		case r.CopyID:
			fresh = row
		}
	}
	if fresh.UUID == "" || former.UUID == "" {
		return &respaldo.Error{Kind: respaldo.Failed, What: fmt.Sprintf("%s or the copy of snapshot %s is gone", r.Volume.Name, r.Snapshot.Name), Hint: "see lvs -a -o +lv_tags,lv_uuid " + vg}
	}
	change := func(argv ...string) error {
		if _, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Uninterruptible: true, Started: o.Started}); err != nil {
			return lvmError(respaldo.Failed, "cannot put the copy of snapshot "+r.Snapshot.Name+" in the place of "+r.Volume.Name, err)
		}
		return nil
	}
	if fresh.LV != lv {
		if former.LV == lv {
			if err := s.unused(ctx, r.Volume.Name, r.Volume.Device); err != nil {
				return err
			}
		}
		argv := []string{"lvchange", "--setactivationskip", "n"} // it must be there after the next boot
		for _, tag := range fresh.tags() {
			if tag == Tag || strings.HasPrefix(tag, Tag+".") {
				argv = append(argv, "--deltag", tag)
			}
		}
		for _, tag := range former.tags() { // of the user's
			if tag != Tag && !strings.HasPrefix(tag, Tag+".") {
				argv = append(argv, "--addtag", tag)
			}
		}
		if err := change(append(argv, vg+"/"+fresh.LV)...); err != nil {
			return err
		}
		o.step("copy.released")
		if former.LV == lv {
			if err := change("lvrename", vg, lv, r.State.Name); err != nil {
				return err
			}
			o.step("renamed.away")
		}
		if err := change("lvrename", vg, fresh.LV, lv); err != nil {
			return err
		}
		o.step("renamed")
	}
	if err := change("lvchange", "--activate", "y", vg+"/"+lv); err != nil {
		return err
	}
	argv := []string{"lvchange", "--setactivationskip", "y"}
	for _, tag := range encodeTags(r.State) {
		argv = append(argv, "--addtag", tag)
	}
	if err := change(append(argv, vg+"/"+r.State.Name)...); err != nil {
		return err
	}
	o.step("state.kept")
	// It carries the filesystem UUID of what is production now: out of everybody's sight. It
	// is activated when it is opened.
	argv = []string{"lvchange", "--activate", "n", vg + "/" + r.State.Name}
	if _, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Uninterruptible: true, Quiet: true}); err != nil {
		s.log().Warn("the former state stays active", "snapshot", r.State.Name, "error", err)
	}
	return nil
}
