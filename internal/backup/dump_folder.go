package backup

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// folderDump is what mydumper writes: a directory of files.
type folderDump struct {
	op    *operation
	path  string
	force bool
	held  *ledger.Held
}

func (op *operation) folderTarget(ctx context.Context, path string, force bool) (dumpTarget, error) {
	held, err := op.acquirePartial(ctx, path+partialSuffix, func(partial string) error { return os.Mkdir(partial, 0o700) })
	return &folderDump{op: op, path: path, force: force, held: held}, err
}

func (d *folderDump) write(ctx context.Context, instance *mysql.Instance, job *dumpJob) error {
	return d.op.mydump(ctx, instance, job, d.path+partialSuffix)
}

func (d *folderDump) keep(ctx context.Context, job *dumpJob) error {
	if err := syncTree(d.path + partialSuffix); err != nil {
		return err
	}
	err := d.settle(ctx)
	if err == nil {
		job.done.File = d.path
	}
	return err
}

// settle gives the directory its name. An older dump there changes places with it, and goes
// as what was partial would have gone: at every moment one of them has the name.
func (d *folderDump) settle(ctx context.Context) error {
	if !d.force || !exists(d.path) {
		return d.op.settlePartial(d.path, d.force, d.held)
	}
	if err := refuseForeignFolder(d.path); err != nil { // it may be another by now
		return err
	}
	if err := disk.Exchange(d.path+partialSuffix, d.path); err != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot replace " + d.path + ", which stays as it was", Hint: "name a directory that does not exist, or one on another filesystem", Err: err}
	}
	ledger.Point("dump.exchanged")
	return d.held.Release(ctx)
}

// refuseForeignFolder refuses to replace anything but an older dump: a directory by that
// name may hold anything.
func refuseForeignFolder(path string) error {
	if exists(filepath.Join(path, mysql.DumpCoordinates)) {
		return nil
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: path + " holds something else than a dump", Hint: "name another directory"}
}

func (d *folderDump) close(ctx context.Context, err *error) {
	if failed := d.held.Release(ctx); failed != nil {
		*err = joinErrors(*err, failed)
	}
}

// mydump has mydumper fill a directory.
func (op *operation) mydump(ctx context.Context, instance *mysql.Instance, job *dumpJob, dir string) error {
	if err := instance.Mydump(ctx, job.tool, job.scope, dir, job.done.Coordinates, job.head); err != nil {
		return err
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*-schema.sql*"))
	if err != nil {
		return err
	}
	size, err := sizeOf(dir)
	job.done.Tables, job.done.Bytes, job.done.Written = len(tables), size, size
	return err
}

// sizeOf is what the regular files in a directory hold.
func sizeOf(dir string) (sum int64, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		info, statErr := e.Info()
		if statErr != nil {
			return sum, statErr
		}
		if info.Mode().IsRegular() {
			sum += info.Size()
		}
	}
	return sum, err
}

// syncTree returns when all of a directory is on disk.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return disk.Sync(path)
	})
}
