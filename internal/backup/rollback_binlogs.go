package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dustin/go-humanize/english"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// binlogsSince lists the server's binlogs from the snapshot's on, running or not, and notes
// in the plan where they do not reach back to it.
func (op *operation) binlogsSince(p *RollbackPlan) ([]mysql.Binlog, error) {
	at := p.Manifest.Quiesced.Coordinates
	m := p.manifest
	if !m.BinlogOn {
		return nil, nil
	}
	all, err := mysql.Binlogs(m.Version, m.Layout.DataDir, m.Variables)
	if errors.Is(err, fs.ErrNotExist) && !p.Running {
		p.Lost.Purged = true // what has crashed the server may have taken them, too
		return nil, nil
	}
	if err != nil {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "cannot list the binlogs, which the rollback would destroy", Err: err, Hint: "run as root"}
	}
	since, complete := mysql.BinlogsSince(all, at)
	p.Lost.Purged = !complete
	return since, nil
}

// chooseSaveTo decides where the binlogs are copied to and refuses a directory without room,
// one that is not empty, and one that would go back with the volume.
func (op *operation) chooseSaveTo(ctx context.Context, p *RollbackPlan, asked string) error {
	if len(p.Lost.Binlogs) == 0 {
		return nil
	}
	p.SaveTo = filepath.Join(op.StateDir, "binlogs", op.Server+"-"+op.ledger.Run())
	if asked != "" {
		var err error
		if p.SaveTo, err = filepath.Abs(asked); err != nil {
			return err
		}
		if entries, err := os.ReadDir(p.SaveTo); len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &respaldo.Error{Kind: respaldo.Refused, What: p.SaveTo + " is not an empty directory", Hint: "give --save-binlogs one that is empty, or does not exist", Err: err}
		}
	}
	if err := op.refuseOnVolume(ctx, p, p.SaveTo, "the directory for the binlogs", "give --save-binlogs a directory elsewhere"); err != nil {
		return err
	}
	there := p.SaveTo
	for !exists(there) {
		there = filepath.Dir(there)
	}
	var room unix.Statfs_t
	if err := unix.Statfs(there, &room); err != nil {
		return err
	}
	var need int64 = binlogMargin
	binlogs, err := op.binlogsSince(p)
	for _, b := range binlogs {
		need += b.Bytes
	}
	if free := int64(room.Bavail) * room.Bsize; err == nil && free < need {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s has %s free, and the binlogs since the snapshot need %s", there, FormatBytes(free), FormatBytes(need)),
			Hint: "make room there, or give --save-binlogs a directory elsewhere"}
	}
	return err
}

// binlogMargin is for what is written until the server has stopped.
const binlogMargin = 16 << 20

// copyBinlogs copies what came after the snapshot, durably: the finished files while the
// server runs, the others when it has stopped.
func (op *operation) copyBinlogs(ctx context.Context, p *RollbackPlan, r *rollback, finished bool) error {
	if p.SaveTo == "" || finished && !p.Running {
		return nil
	}
	binlogs, err := op.binlogsSince(p)
	if err != nil {
		return err
	}
	if finished {
		binlogs = binlogs[:max(0, len(binlogs)-1)]
	}
	if err := r.willCopy(binlogs); err != nil {
		return err
	}
	if err := os.MkdirAll(p.SaveTo, 0o700); err != nil {
		return err
	}
	for _, b := range binlogs {
		if info, err := os.Stat(filepath.Join(p.SaveTo, b.Name)); err == nil && info.Size() == b.Bytes {
			continue
		}
		if err := copyBinlog(ctx, b.Path, filepath.Join(p.SaveTo, b.Name)); err != nil {
			return &respaldo.Error{Kind: respaldo.Failed, What: "cannot copy the binlog " + b.Path + " to " + p.SaveTo, Err: err,
				Hint: "without it the rollback would destroy what came after the snapshot: make room, or give --save-binlogs another directory"}
		}
	}
	for _, dir := range []string{p.SaveTo, filepath.Dir(p.SaveTo), filepath.Dir(filepath.Dir(p.SaveTo))} { // MkdirAll may have made them all
		if err := disk.Sync(dir); err != nil {
			return err
		}
	}
	if finished {
		return nil
	}
	p.saved = nil
	for _, b := range binlogs {
		p.saved = append(p.saved, b.Name)
	}
	op.Report.Step("binlogs", fmt.Sprintf("%s since the snapshot in %s", english.Plural(len(p.saved), "file", ""), p.SaveTo))
	ledger.Point("rollback.saved")
	return nil
}

// copyBinlog replaces what an interrupted copy has left.
func copyBinlog(ctx context.Context, from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := copyFile(ctx, from, to); err != nil {
		return err
	}
	return disk.Sync(to)
}

// willCopy notes what is about to be copied. A file that is there already is another's.
func (r *rollback) willCopy(binlogs []mysql.Binlog) error {
	if _, err := os.Lstat(r.SaveTo); errors.Is(err, fs.ErrNotExist) {
		r.MadeSaveTo = true
	}
	for _, b := range binlogs {
		if slices.Contains(r.Copied, b.Name) {
			continue
		}
		if to := filepath.Join(r.SaveTo, b.Name); exists(to) {
			return &respaldo.Error{Kind: respaldo.Refused, What: to + " is there already, and is none of our copies", Hint: "give --save-binlogs an empty directory"}
		}
		r.Copied = append(r.Copied, b.Name)
	}
	return r.note()
}

// dropCopiedBinlogs removes the copies of binlogs that have not been lost after all, and
// nothing else that somebody has put there.
func (r *rollback) dropCopiedBinlogs() (err error) {
	for _, name := range r.Copied {
		if removeErr := os.Remove(filepath.Join(r.SaveTo, name)); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			err = joinErrors(err, removeErr)
		}
	}
	if r.MadeSaveTo {
		os.Remove(r.SaveTo) // unless there is something else in it
	}
	return err
}

// describeState writes down what the present state is an image of, so that it can be gone
// back to in its turn.
func (op *operation) describeState(ctx context.Context, p *RollbackPlan, r *rollback) error {
	if !r.Way.KeepsState() {
		return nil
	}
	m := p.manifest
	now := time.Now()
	m.Format, m.Program, m.Server, m.ServerID, m.Host = respaldo.ManifestFormat, op.Program, op.Server, op.ServerID, op.Host
	m.Taken, m.Volume, m.Proof = now, p.Volume, respaldo.Proof{}
	m.Quiesced = respaldo.Quiesced{Mode: respaldo.LockNone, Reason: "the server was stopped", At: now, Coordinates: p.Lost.To}
	if !p.Running {
		m.Quiesced.Reason = "the server did not run"
	}
	binlogs, err := op.binlogsSince(p)
	if err != nil {
		return err
	}
	if n := len(binlogs); n > 0 {
		if err := endOf(ctx, binlogs[n-1], &m.Quiesced.Coordinates); err != nil {
			return err
		}
	}
	m.Timeline = op.lastImage().timeline(m.ServerUUID, m.Quiesced.Coordinates)
	r.Way.State.Created = now
	if err := r.note(); err != nil {
		return err
	}
	f := frozen{covers: p.covers}
	return op.saveManifest(r.Way.State.Name, keptManifest{Manifest: m, Inside: f.inside(), StateBefore: r.Way.Snapshot.Name})
}

// endOf moves coordinates to the end of the last binlog. If the server has written more
// since it was asked, its GTID set is not known any more.
func endOf(ctx context.Context, last mysql.Binlog, at *respaldo.Coordinates) error {
	if at.File == last.Name {
		more, _, known, err := mysql.CountTransactions(ctx, []mysql.Binlog{last}, at.Position)
		if err != nil || known && more == 0 {
			return err
		}
	}
	_, end, known, err := mysql.CountTransactions(ctx, []mysql.Binlog{last}, 0)
	if !known {
		end = uint64(last.Bytes)
	}
	*at = respaldo.Coordinates{File: last.Name, Position: end, Upstream: at.Upstream}
	return err
}
