package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// instance prepares a private server over directories that it may write to, has run start
// it and end it, and keeps its log when that fails.
func (op *operation) instance(ctx context.Context, m respaldo.Manifest, dirs map[string]string, run func(mysql.InstanceRequest) error) error {
	return op.inScratch(ctx, op.socketDir(), "instance", func(scratch string) error {
		return op.instanceIn(scratch, m, dirs, run)
	})
}

func (op *operation) instanceIn(scratch string, m respaldo.Manifest, dirs map[string]string, run func(mysql.InstanceRequest) error) error {
	held, err := op.ledger.Intend(kindInstance, nil)
	if err != nil {
		return err
	}
	err = run(mysql.InstanceRequest{
		Owner: op.scope, Run: op.ledger.Run(),
		Manifest: m, Dirs: dirs, Binary: op.binary(m), Scratch: scratch, Log: op.Log,
		Started: func(pid int) {
			noteProcess(op, held, pid)
			ledger.Point("instance.started")
		},
		Ready: func() { ledger.Point("instance.ready") },
	})
	if err != nil {
		err = op.keepLog(scratch, err)
	}
	return joinErrors(err, held.Released())
}

// proveAt proves what lies in the directories.
func (op *operation) proveAt(ctx context.Context, m respaldo.Manifest, dirs map[string]string) (proof respaldo.Proof, err error) {
	err = op.instance(ctx, m, dirs, func(request mysql.InstanceRequest) (err error) {
		proof, err = mysql.Prove(ctx, request, op.Prove)
		return err
	})
	if err == nil {
		op.Report.Step("proved", proofDetail(proof))
	}
	return proof, err
}

// recoverAt lets a private server recover what lies in the directories and shut down in
// order, so that the redo log has nothing left to say.
func (op *operation) recoverAt(ctx context.Context, m respaldo.Manifest, dirs map[string]string) error {
	err := op.instance(ctx, m, dirs, func(request mysql.InstanceRequest) error {
		request.Options = append(request.Options, "--innodb-fast-shutdown=1")
		instance, err := mysql.StartInstance(ctx, request)
		if err != nil {
			return err
		}
		return instance.Stop(ctx)
	})
	if err == nil {
		op.Report.Step("recovered", "at the origin's paths, before the files move to their own")
	}
	return err
}

// keptLogs is how many logs of failed private servers of each origin stay on disk, besides
// those of the run itself.
const keptLogs = 5

// keepLog copies the instance's log to where the user can read it after the run, and has
// the error's hints name it there.
func (op *operation) keepLog(scratch string, cause error) error {
	from := filepath.Join(scratch, mysql.InstanceLog)
	log, err := os.ReadFile(from)
	if errors.Is(err, os.ErrNotExist) {
		return cause // it did not come to a start
	}
	dir := filepath.Join(op.StateDir, "failed")
	kept := filepath.Join(dir, op.Server+"-"+op.ledger.Run()+".log")
	for n := 2; exists(kept); n++ { // verify may see several fail
		kept = filepath.Join(dir, fmt.Sprintf("%s-%s-%d.log", op.Server, op.ledger.Run(), n))
	}
	if err == nil {
		err = writeDurably(kept, log)
	}
	if err == nil {
		err = dropOldest(dir, op.Server+"-", op.ledger.Run(), keptLogs)
	}
	if err != nil {
		return joinErrors(cause, err)
	}
	var e *respaldo.Error
	for next := cause; errors.As(next, &e); next = e.Err {
		e.Hint = strings.ReplaceAll(e.Hint, from, kept)
	}
	return cause
}

// dropOldest removes the oldest files that begin with the prefix beyond a number of them.
// Those of a run, which has told people of them, do not count.
func dropOldest(dir, prefix, run string, keep int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		of, ours := strings.CutPrefix(e.Name(), prefix)
		ours = ours && len(of) > len(run) && of[8] == '-' // and not of a server whose name only begins like that
		if ours && !strings.HasPrefix(of, run) {
			names = append(names, e.Name()) // in order of their runs, which begin with the time
		}
	}
	for len(names) > keep {
		if removeErr := os.Remove(filepath.Join(dir, names[0])); removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
			err = joinErrors(err, removeErr)
		}
		names = names[1:]
	}
	return err
}
