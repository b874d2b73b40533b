package backup

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// dumpTarget is where a dump goes.
type dumpTarget interface {
	// write takes the dump in while the private server lives. It is not whole by that.
	write(ctx context.Context, instance *mysql.Instance, job *dumpJob) error
	// keep makes it a dump that counts: the image was whole to the end.
	keep(ctx context.Context, job *dumpJob) error
	// close lets go of everything, and takes back what was not kept.
	close(ctx context.Context, err *error)
}

func (op *operation) dumpTarget(ctx context.Context, r DumpRequest) (dumpTarget, error) {
	switch {
	case r.Repository:
		repository, err := op.Repository(ctx)
		return &repositoryDump{op: op, repository: repository}, err
	case r.Stdout != nil:
		return &streamDump{op: op, to: &namedWriter{"standard output", "look at the program that reads it", r.Stdout}, compress: r.Compress}, nil
	}
	return op.fileTarget(ctx, r)
}

// namedWriter says of a failed write where to.
type namedWriter struct {
	name, hint string
	to         io.Writer
}

func (w *namedWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if err != nil {
		err = &respaldo.Error{Kind: respaldo.Failed, What: "cannot write the dump to " + w.name, Hint: w.hint, Err: err}
	}
	return n, err
}

// streamDump writes to whatever can be written to, compressed if asked. Neither the last
// line of the dump nor the end of the compressed data is there before it is kept.
type streamDump struct {
	op       *operation
	to       io.Writer
	compress Compression
	count    counter
	packed   io.WriteCloser
}

func (d *streamDump) write(ctx context.Context, instance *mysql.Instance, job *dumpJob) (err error) {
	d.count.to = d.to
	if d.packed, err = d.compress.writer(&d.count); err != nil {
		return err
	}
	return d.op.sql(ctx, instance, job, d.packed)
}

func (d *streamDump) keep(_ context.Context, job *dumpJob) error {
	if err := job.stream.Finish(); err != nil {
		return err
	}
	err := d.packed.Close()
	job.done.Bytes, job.done.Tables, job.done.Written = job.stream.Bytes(), job.stream.Tables(), d.count.bytes
	return err
}

func (d *streamDump) close(context.Context, *error) {}

// counter knows how much went through it.
type counter struct {
	to    io.Writer
	bytes int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.bytes += int64(n)
	return n, err
}

// partialSuffix is on a file, or mydumper's directory, that is no dump yet.
const partialSuffix = ".partial"

// fileDump writes a file under another name, on disk before it gets its own.
type fileDump struct {
	streamDump
	path  string
	force bool
	file  *os.File
	held  *ledger.Held
}

// fileTarget looks at where a dump is to go, and makes the partial file. Nobody but us may
// read it: it has all the data in it.
func (op *operation) fileTarget(ctx context.Context, r DumpRequest) (dumpTarget, error) {
	path, err := filepath.Abs(r.File)
	if err != nil {
		return nil, err
	}
	if err := mayReplace(path, r); err != nil {
		return nil, err
	}
	if op.Folder != "" && within(path, op.Folder) {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: path + " lies in the repository " + op.Folder, Hint: "name a place outside of it, or give --to repository"}
	}
	if r.Tool == mysql.ToolMydumper {
		return op.folderTarget(ctx, path, r.Force)
	}
	d := &fileDump{path: path, force: r.Force}
	d.op, d.compress = op, r.Compress
	d.held, err = op.acquirePartial(ctx, path+partialSuffix, func(partial string) (err error) {
		d.file, err = os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	d.to = &namedWriter{path + partialSuffix, "make room there, compress the dump (--compress zstd), or write it elsewhere", d.file}
	return d, err
}

// mayReplace refuses a target that is taken, or cannot be made.
func mayReplace(path string, r DumpRequest) error {
	what, kind := "file", fs.FileMode(0)
	if r.Tool == mysql.ToolMydumper {
		what, kind = "directory", fs.ModeDir
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return &respaldo.Error{Kind: respaldo.Refused, What: "there is no directory " + filepath.Dir(path), Hint: "make it, or name another", Err: err}
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != kind:
		return &respaldo.Error{Kind: respaldo.Refused, What: path + " exists and is no " + what, Hint: "name a " + what + " that the dump shall become, or - for standard output"}
	case !r.Force:
		return &respaldo.Error{Kind: respaldo.Refused, What: path + " exists", Hint: "name another " + what + ", or replace it with --force"}
	case info.IsDir():
		return refuseForeignFolder(path)
	}
	return nil
}

// acquirePartial makes a file or directory that goes with the operation unless it is kept.
func (op *operation) acquirePartial(ctx context.Context, partial string, create func(string) error) (*ledger.Held, error) {
	taken := &respaldo.Error{Kind: respaldo.Refused, What: partial + " exists", Hint: "another dump is being written there; if none is, remove it"}
	if exists(partial) { // looked at before it is noted as ours
		return nil, taken
	}
	made := false
	held, err := op.ledger.Acquire(ctx, kindPartial, map[string]string{"path": partial}, func(*ledger.Held) error {
		err := create(partial)
		made = err == nil
		return err
	}, func(context.Context) error {
		if !made {
			return nil
		}
		return os.RemoveAll(partial)
	})
	if errors.Is(err, fs.ErrExist) {
		return nil, taken
	}
	if err != nil && respaldo.KindOf(err) == respaldo.Failed {
		err = &respaldo.Error{Kind: respaldo.Refused, What: "cannot write " + partial, Hint: "name a place where you may write", Err: err}
	}
	return held, err
}

func (d *fileDump) keep(ctx context.Context, job *dumpJob) error {
	if err := d.streamDump.keep(ctx, job); err != nil {
		return err
	}
	if err := errors.Join(d.file.Sync(), d.file.Close()); err != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot write the dump to " + d.file.Name(), Hint: "make room there, or write it elsewhere", Err: err}
	}
	d.file = nil
	err := d.op.settlePartial(d.path, d.force, d.held)
	if err == nil {
		job.done.File = d.path
	}
	return err
}

// settlePartial gives a partial file or directory, which is on disk, its name.
func (op *operation) settlePartial(path string, force bool, held *ledger.Held) error {
	if !force && exists(path) { // since we began
		return &respaldo.Error{Kind: respaldo.Refused, What: path + " has come into being meanwhile", Hint: "move it away and run the dump again, or give --force"}
	}
	if err := os.Rename(path+partialSuffix, path); err != nil {
		return err
	}
	return errors.Join(disk.Sync(filepath.Dir(path)), held.Released())
}

func (d *fileDump) close(ctx context.Context, err *error) {
	if d.file != nil {
		d.file.Close()
	}
	if failed := d.held.Release(ctx); failed != nil {
		*err = joinErrors(*err, failed)
	}
}

// repositoryDump saves the dump as an object of its own.
type repositoryDump struct {
	op         *operation
	repository *repo.Repo
	saved      *repo.Saved
}

func (d *repositoryDump) write(ctx context.Context, instance *mysql.Instance, job *dumpJob) error {
	if job.tool.Mydumper {
		return d.op.inScratch(ctx, d.op.workDir(), "mydumper", func(dir string) error {
			if err := d.op.mydump(ctx, instance, job, dir); err != nil {
				return err
			}
			return d.save(ctx, job, repo.TreeEntry{Name: dumpName, Path: dir})
		})
	}
	from, to := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := d.op.sql(ctx, instance, job, to)
		if err == nil {
			err = job.stream.Finish() // nobody sees it before it is recorded
		}
		to.CloseWithError(err)
		written <- err
	}()
	err := d.save(ctx, job, repo.TreeEntry{Name: dumpName + "/" + job.name() + ".sql", Stream: from})
	from.CloseWithError(err) // a program that goes on writing ends
	if failed := <-written; failed != nil && !errors.Is(err, failed) && !errors.Is(failed, io.ErrClosedPipe) {
		err = joinErrors(failed, err)
	}
	if err == nil {
		job.done.Bytes, job.done.Tables = job.stream.Bytes(), job.stream.Tables()
	}
	return err
}

// dumpName is the entry at the root of a dump in the repository that holds its files.
const dumpName = "dump"

func (d *repositoryDump) save(ctx context.Context, job *dumpJob, entry repo.TreeEntry) (err error) {
	d.saved, err = d.repository.Save(ctx, job.image.Manifest.Server, repo.Tree{Entries: []repo.TreeEntry{entry}}, nil)
	return err
}

func (d *repositoryDump) keep(ctx context.Context, job *dumpJob) error {
	b, err := d.repository.Record(ctx, d.saved, job.manifest(d.op.Program))
	if err != nil {
		return err
	}
	ledger.Point("dump.recorded")
	job.done.Backup, job.done.Written = &b, b.Stored
	d.op.Report.Step("recorded", b.ID)
	// As after a backup, but that may be running: then it lets old ones go, or the next one does.
	err = d.op.alone(ctx, func(main *operation) error {
		job.done.Forgotten = main.retain(ctx, d.repository, b)
		return nil
	})
	if err != nil && respaldo.KindOf(err) != respaldo.Busy {
		d.op.Report.Warn("the dump is safe, but old ones could not be let go: " + err.Error())
	}
	return nil
}

func (d *repositoryDump) close(ctx context.Context, err *error) {
	closeRepo(ctx, d.repository, err)
}
