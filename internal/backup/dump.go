package backup

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// DumpRequest says what is dumped, with what, and where to. Exactly one of File, Stdout and
// Repository is set.
type DumpRequest struct {
	Image     string // "now", a kept snapshot, or a backup: an ID, the beginning of one, "latest"
	Of        string // the server whose backups are looked among; "" is every server's
	Databases []string
	Tables    []string // "database.table"; with neither, everything, users and grants included
	Without   []string // tables and views to leave out
	Tool      string   // one of mysql's Tool constants; "" is ToolAuto
	Program   string   // path of the dump program, if not the one that is found

	File       string // which mydumper makes a directory
	Stdout     io.Writer
	Repository bool
	Compress   Compression // "": by the file's suffix
	Force      bool        // replace the file
}

// Dumped is a dump that is whole.
type Dumped struct {
	Server      string               `json:"server"`
	Image       string               `json:"image"`
	Taken       time.Time            `json:"taken"` // what it holds is of then
	Coordinates respaldo.Coordinates `json:"coordinates"`
	Version     respaldo.Version     `json:"version"` // of the server
	Tool        string               `json:"tool"`
	File        string               `json:"file,omitempty"`
	Backup      *respaldo.Backup     `json:"backup,omitempty"` // where it went to the repository
	Tables      int                  `json:"tables"`
	Bytes       int64                `json:"bytes"`   // of SQL
	Written     int64                `json:"written"` // compressed; in the repository, what it added there
	Seconds     float64              `json:"seconds"`
	Forgotten   []string             `json:"forgotten,omitempty"` // backups and dumps that retention let go
}

// Dump makes a logical dump of an image from a private server over it. Nothing of it reaches
// the origin, which is not asked, but for the snapshot of "now". The dump counts when it is
// whole, on disk, and of an image that was whole to the end; until then there is nothing
// that looks like one.
func (s *Site) Dump(ctx context.Context, request DumpRequest) (done Dumped, err error) {
	scope, err := request.settle()
	if err != nil {
		return done, err
	}
	op, err := s.beginSide(ctx, "dump")
	if err != nil {
		return done, err
	}
	defer op.close(ctx, &err)
	start := time.Now()
	target, err := op.dumpTarget(ctx, request) // before anything is acquired of the server's
	if err != nil {
		return done, err
	}
	defer target.close(ctx, &err)

	job := &dumpJob{scope: scope, request: request, done: &done}
	err = op.withImage(ctx, imageRequest{Ref: request.Image, Of: request.Of, Writable: true}, func(ctx context.Context, img openedImage) error {
		return contextCause(ctx, op.dumpImage(ctx, img, job, target))
	})
	if err != nil {
		return done, err
	}
	ledger.Point("dump.written")
	if err := target.keep(ctx, job); err != nil {
		return done, err
	}
	ledger.Point("dump.kept")
	done.Seconds = time.Since(start).Seconds()
	op.Report.Step("dumped", fmt.Sprintf("%d tables, %s of SQL, %s written", done.Tables, FormatBytes(done.Bytes), FormatBytes(done.Written)))
	return done, nil
}

// settle reads the request's names and refuses what contradicts itself.
func (r *DumpRequest) settle() (scope mysql.DumpScope, err error) {
	scope.Databases = r.Databases
	for _, named := range []struct {
		names []string
		to    *[]mysql.DumpTable
	}{{r.Tables, &scope.Tables}, {r.Without, &scope.Without}} {
		for _, name := range named.names {
			table, err := mysql.ParseDumpTable(name)
			if err != nil {
				return scope, err
			}
			*named.to = append(*named.to, table)
		}
	}
	usage := func(what, hint string) (mysql.DumpScope, error) {
		return scope, &respaldo.Error{Kind: respaldo.Usage, What: what, Hint: hint}
	}
	switch {
	case len(r.Databases) > 0 && len(r.Tables) > 0:
		return usage("databases and tables are both named", "give --databases or --tables")
	case slices.Contains(r.Databases, ""):
		return usage("--databases has an empty name in it", "separate the names with single commas")
	case !slices.Contains([]string{"", mysql.ToolAuto, mysql.ToolMysqldump, mysql.ToolMydumper}, r.Tool):
		return usage("--tool is auto, mysqldump or mydumper, not "+r.Tool, "")
	case r.Tool == mysql.ToolMydumper && len(r.Without) > 0:
		return usage("--without is not for mydumper", "name the others with --tables, or leave --tool out")
	case r.Tool == mysql.ToolMydumper && (r.Stdout != nil || r.Compress != ""):
		return usage("mydumper writes a directory of files", "give --to DIR or --to repository, and no --compress")
	case r.Repository && r.Compress != "":
		return usage("the repository compresses by itself", "leave --compress out")
	}
	return scope, r.settleCompression()
}

// dumpJob is a dump under way.
type dumpJob struct {
	scope   mysql.DumpScope
	request DumpRequest
	image   openedImage
	tool    mysql.DumpTool
	head    string            // what stands at its head
	stream  *mysql.DumpStream // what has been written is not whole before it is finished
	done    *Dumped
}

// dumpImage starts a private server on the image and has it dumped into the target.
func (op *operation) dumpImage(ctx context.Context, img openedImage, job *dumpJob, target dumpTarget) error {
	m := img.Manifest
	job.image = img
	var err error
	job.tool, err = mysql.FindDumpTool(ctx, mysql.DumpToolRequest{Server: m.Version, Beside: op.binary(m), Tool: job.request.Tool, Path: job.request.Program, Log: op.Log})
	if err != nil {
		return err
	}
	if job.tool.Mydumper != (job.request.Tool == mysql.ToolMydumper) {
		return &respaldo.Error{Kind: respaldo.Usage, What: job.request.Program + " is " + job.tool.String(), Hint: "give --tool mydumper with it, and a directory, or name another program"}
	}
	*job.done = Dumped{Server: m.Server, Image: img.Name, Taken: m.Taken, Coordinates: m.Quiesced.Coordinates, Version: m.Version, Tool: job.tool.String()}
	return op.instance(ctx, m, img.Dirs, func(request mysql.InstanceRequest) error {
		instance, err := mysql.StartForDump(ctx, request)
		if err != nil {
			return contextCause(ctx, err)
		}
		defer op.dismiss(ctx, instance)
		op.Report.Step("started", "a private server on "+img.What)
		if err := op.headFor(ctx, instance, job); err != nil {
			return err
		}
		ledger.Point("dump.write")
		return target.write(ctx, instance, job)
	})
}

// headFor writes the dump's head, without coordinates if those would mislead.
func (op *operation) headFor(ctx context.Context, instance *mysql.Instance, job *dumpJob) error {
	inexact, err := instance.Inexact(ctx)
	if err != nil {
		return contextCause(ctx, err)
	}
	if inexact != "" {
		op.Report.Warn("the dump has no coordinates to replicate from: " + inexact)
		job.done.Coordinates = respaldo.Coordinates{}
	} else if m := &job.image.Manifest; m.Quiesced.FromImage {
		stated, err := instance.Coordinates(ctx)
		if err != nil {
			return contextCause(ctx, err)
		}
		noteStated(m, stated)
		job.done.Coordinates = m.Quiesced.Coordinates
	}
	job.head = mysql.DumpHead(job.image.Manifest, job.image.What, op.Program, inexact)
	return nil
}

// sql writes the dump, but for its last line, to w.
func (op *operation) sql(ctx context.Context, instance *mysql.Instance, job *dumpJob, w io.Writer) error {
	m := job.image.Manifest
	job.stream = mysql.NewDumpStream(w, m.Version, op.midway("dump.writing"))
	if err := job.stream.WriteHead(job.head); err != nil {
		return err
	}
	return instance.Dump(ctx, job.tool, job.scope, job.stream)
}

// manifest is what the repository notes of the dump: all of the image's, but for places and
// proof, which a dump has not.
func (j *dumpJob) manifest(program string) respaldo.Manifest {
	m := j.image.Manifest
	m.Program = program
	m.Quiesced.Coordinates = j.done.Coordinates
	m.Proof = respaldo.Proof{}
	m.Layout.Places = nil
	m.Dump = &respaldo.Dump{Image: j.image.What, Tool: j.tool.String(), Databases: j.request.Databases, Tables: j.request.Tables, Without: j.request.Without}
	return m
}

// name is what the dump is called in the repository.
func (j *dumpJob) name() string {
	m := j.image.Manifest
	return strings.ReplaceAll(m.Server, "/", "-") + "-" + m.Taken.UTC().Format("20060102T150405Z")
}
