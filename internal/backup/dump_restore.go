package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// restoreDump writes the files of a dump into a directory, on disk when it returns. The
// repository stores them uncompressed, and so they come back.
func (op *operation) restoreDump(ctx context.Context, r *repo.Repo, request RestoreRequest, done *Restored) error {
	if len(request.Places) > 0 {
		return &respaldo.Error{Kind: respaldo.Usage, What: done.Backup.ID + " is a dump, which has no places", Hint: "leave --place out"}
	}
	to, err := filepath.Abs(request.To)
	if err != nil {
		return err
	}
	done.Targets = map[string]string{dumpName: to}
	if err := errors.Join(op.refuseOurs(to, r.Folder(), r.CacheDir()), refuseInUse(to)); err != nil {
		return err
	}
	held, err := op.ledger.Intend(kindTarget, map[string]string{"path": to})
	if err != nil {
		return err
	}
	start := time.Now()
	err = r.Restore(ctx, done.Backup, done.Targets, repo.RestoreOptions{Force: request.Force, Begin: refuseInUse}, op.midway("restore.writing"))
	ledger.Point("restore.written")
	if err != nil {
		return joinErrors(contextCause(ctx, err), held.Released())
	}
	done.Bytes, done.Files, done.Seconds = done.Backup.Bytes, done.Backup.Files, time.Since(start).Seconds()
	done.Options = []string{} // not null in JSON
	entries, err := os.ReadDir(to)
	if err != nil {
		return err
	}
	for _, e := range entries {
		done.DumpFiles = append(done.DumpFiles, filepath.Join(to, e.Name()))
	}
	op.Report.Step("restored", fmt.Sprintf("the dump %s into %s", done.Backup.ID, to))
	return held.Released()
}
