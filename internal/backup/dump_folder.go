package backup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
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

func (d *folderDump) keep(_ context.Context, job *dumpJob) error {
	if err := syncTree(d.path + partialSuffix); err != nil {
		return err
	}
	if d.force {
		if err := d.op.refuseForeignFolder(d.path); err != nil {
			return err
		}
	}
	err := d.op.settlePartial(d.path, d.force, d.held)
	if err == nil {
		job.done.File = d.path
	}
	return err
}

// refuseForeignFolder makes way for a new dump where there is an older one, and removes
// nothing else: a directory by that name may hold anything.
func (op *operation) refuseForeignFolder(path string) error {
	switch {
	case !exists(path):
		return nil
	case !exists(filepath.Join(path, mysql.DumpCoordinates)):
		return &respaldo.Error{Kind: respaldo.Refused, What: path + " holds something else than a dump", Hint: "name another directory"}
	}
	return os.RemoveAll(path)
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
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
