package mysql

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/respaldo-backup/respaldo"
)

// CoordinatesOf reads in an image where its binlogs end: after the last complete group of
// events of the last one. It changes nothing and needs no server, so the image may be
// mounted read-only; Dirs are as in InstanceRequest. A tail of zeros or a torn event ends
// a binlog; one that is damaged before its end, encrypted or missing is an error. Where the
// origin kept no binlog they are zero.
//
// A recovered instance must come to the same: until then they are not confirmed. How far a
// replica had applied its source is in tables that only an instance can read, and so not
// among them.
func CoordinatesOf(ctx context.Context, m respaldo.Manifest, dirs map[string]string) (respaldo.Coordinates, error) {
	if !m.BinlogOn {
		return respaldo.Coordinates{}, nil
	}
	at, err := coordinatesOf(ctx, m, dirs)
	if err != nil && respaldo.KindOf(err) == respaldo.Failed && ctx.Err() == nil {
		err = &respaldo.Error{Kind: respaldo.Failed, What: "cannot read the coordinates in the image's binlogs",
			Hint: "give --lock=global: the server says them under a lock", Err: err}
	}
	return at, err
}

func coordinatesOf(ctx context.Context, m respaldo.Manifest, dirs map[string]string) (at respaldo.Coordinates, err error) {
	img, err := newImage(m, dirs)
	if err != nil {
		return at, err
	}
	b, err := img.findBinlogs(m.Variables)
	if err != nil {
		return at, err
	}
	if err := b.refuseIrregular(); err != nil {
		return at, err
	}
	name, end, err := b.end(ctx)
	switch {
	case err != nil:
		return at, err
	case name == "":
		return at, errors.New("it has none, although the server was writing one")
	case end.Encrypted:
		return at, refused("the image's binlog "+name+" is encrypted: the coordinates cannot be read in it", "give --lock=global: the server says them under a lock")
	}
	at.File, at.Position = name, uint64(end.End)
	// What a MySQL server has executed and never had in a binlog of its own (gtid_purged as
	// it was set when it was filled from a dump) no binlog lists, but the server has said it.
	gtids := end.GTIDs
	if err := gtids.addText(m.Variables["gtid_executed"]); err != nil {
		return at, err
	}
	at.GTIDSet = gtids.String()
	return at, nil
}

// end reads the last binlog that has been begun; name is empty where there is none. The
// server had not said a word yet in one that was only just made.
func (b binlogs) end(ctx context.Context) (name string, end binlogScan, err error) {
	last := len(b.files) - 1
	for ; last >= 0; last-- {
		name = b.files[last]
		if end, err = b.scan(ctx, name, 0); err != nil || end.begun() {
			break
		}
	}
	if last < 0 || err != nil {
		return "", end, err
	}
	if !end.Listed && end.Groups == 0 && last > 0 && !end.Encrypted {
		before, err := b.scan(ctx, b.files[last-1], 0)
		if err != nil {
			return "", end, err
		}
		end.GTIDs = before.GTIDs
	}
	return name, end, nil
}

// scan reads one of the binlogs, whose folder belongs to the server's user.
func (b binlogs) scan(ctx context.Context, name string, from int64) (binlogScan, error) {
	root, err := os.OpenRoot(b.local)
	if err != nil {
		return binlogScan{}, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return binlogScan{}, err
	}
	defer f.Close()
	scan, err := scanBinlog(untilDone{ctx, f}, from)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("reading binlog %s of the image: %w", name, err)
	}
	return scan, err
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// refuseIrregular makes sure that the last of them are files: nobody else has looked at
// this image before, and a pipe would be waited for without end.
func (b binlogs) refuseIrregular() error {
	root, err := os.OpenRoot(b.local)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range b.files {
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no file: %s", name, info.Mode())
		}
	}
	return nil
}
