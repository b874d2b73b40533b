package mysql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	respaldo "github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

// BinlogTail is the end of a server's binlogs, for an image whose data directory does not
// have them: recovery commits what was prepared in InnoDB if and only if the binlog has it.
//
// Binlogs only ever grow, so the position read under the lock says which bytes belong to
// the image, and copying them can wait until the lock is gone. Two things can happen in
// between. Somebody purges or resets them: so the files are opened under the lock, which
// takes microseconds, and stay readable whatever becomes of their names. And a rotation
// clears the mark "in use" in the last one's head, without which recovery would not look
// into it: so that head is read under the lock, too.
type BinlogTail struct {
	base  string
	names []string
	files []*os.File
	head  []byte // of the last file
	end   int64  // of the last file
}

// headSize covers the mark, which is in the format event that begins every binlog, after
// 512 bytes of key material where MySQL encrypts it.
const headSize = 1024

// How many of the last binlogs are opened. Recovery needs the last one, and on MariaDB
// the one before while a transaction that it has is not yet marked as done in InnoDB;
// more only after several rotations within moments.
const tailFiles = 16

// OpenBinlogTail opens the last binlogs up to the coordinates. It is quick and meant to
// be called under the lock, from Quiesce's fn; CopyTo comes after it. Nil without error
// when there is nothing to copy: the binlog is off, or lies in the data directory.
func (f *Facts) OpenBinlogTail(at respaldo.Coordinates) (*BinlogTail, error) {
	if !f.BinlogElsewhere || at.File == "" {
		return nil, nil
	}
	t, err := f.openBinlogTail(at)
	if err != nil {
		return nil, &respaldo.Error{Kind: respaldo.Failed, What: "cannot open the binlogs in " + f.BinlogDir, Hint: "they must be readable for us: run as root", Err: err}
	}
	return t, nil
}

func (f *Facts) openBinlogTail(at respaldo.Coordinates) (_ *BinlogTail, err error) {
	index, err := os.ReadFile(f.BinlogIndex)
	if err != nil {
		return nil, err
	}
	var paths []string
	found := false
	for line := range strings.Lines(string(index)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(f.Layout.DataDir, line)
		}
		paths = append(paths, line)
		if found = filepath.Base(line) == at.File; found {
			break
		}
	}
	if !found {
		return nil, fmt.Errorf("%s does not list %s", f.BinlogIndex, at.File)
	}
	t := &BinlogTail{base: f.BinlogBase, end: int64(at.Position)}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	for _, path := range paths[max(0, len(paths)-tailFiles):] {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		t.names, t.files = append(t.names, filepath.Base(path)), append(t.files, file)
	}
	t.head = make([]byte, min(headSize, t.end))
	if _, err = t.files[len(t.files)-1].ReadAt(t.head, 0); bytes.HasPrefix(t.head, []byte(encryptedBinlogMagic)) {
		t.end += encryptedBinlogHeader
	}
	return t, err
}

// Close closes the files.
func (t *BinlogTail) Close() error {
	var failed []error
	for _, f := range t.files {
		failed = append(failed, f.Close())
	}
	t.files = nil
	return errors.Join(failed...)
}

// CopyTo writes what recovery needs into dir: the files, the last one cut at the
// coordinates, with their owners, and an index that names them relatively ("./"). It
// returns the names of the binlogs. All is on disk when it returns.
func (t *BinlogTail) CopyTo(ctx context.Context, dir string) ([]string, error) {
	first, err := t.firstNeeded()
	if err != nil {
		return nil, fmt.Errorf("reading binlog %s: %w", t.names[len(t.names)-1], err)
	}
	var index bytes.Buffer
	for i := first; i < len(t.files); i++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		size, head := t.end, t.head
		if i < len(t.files)-1 {
			info, err := t.files[i].Stat()
			if err != nil {
				return nil, err
			}
			size, head = info.Size(), nil
		}
		if err := copyBinlog(t.files[i], head, size, filepath.Join(dir, t.names[i])); err != nil {
			return nil, err
		}
		fmt.Fprintf(&index, "./%s\n", t.names[i])
	}
	if err := writeLike(t.files[len(t.files)-1], filepath.Join(dir, t.base+".index"), &index); err != nil {
		return nil, err
	}
	return t.names[first:], disk.Sync(dir)
}

// copyBinlog writes head, then the rest of the file up to size.
func copyBinlog(from *os.File, head []byte, size int64, to string) error {
	if _, err := from.Seek(int64(len(head)), io.SeekStart); err != nil {
		return err
	}
	rest := &io.LimitedReader{R: from, N: size - int64(len(head))} // the kernel copies, without us
	if err := writeLike(from, to, bytes.NewReader(head), rest); err != nil {
		return err
	}
	if rest.N > 0 {
		return fmt.Errorf("binlog %s is %d bytes shorter than the coordinates say", from.Name(), rest.N)
	}
	return nil
}

// writeLike writes a new file with the mode, and where we may the owner, of another.
func writeLike(like *os.File, path string, content ...io.Reader) (err error) {
	info, err := like.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := out.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	for _, c := range content {
		if _, err := io.Copy(out, c); err != nil {
			return err
		}
	}
	return out.Sync()
}

// firstNeeded finds from which file on recovery reads. MySQL reads the last one only.
// MariaDB starts at the file that the last checkpoint event in it names. Where that
// cannot be read, the binlog being encrypted, the one before is taken along.
func (t *BinlogTail) firstNeeded() (int, error) {
	last := len(t.files) - 1
	scan, err := scanBinlog(io.NewSectionReader(t.files[last], 0, t.end), 0)
	switch {
	case err != nil:
		return 0, err
	case scan.Encrypted:
		return max(0, last-1), nil
	case scan.Checkpoint == "":
		return last, nil
	}
	if first := slices.Index(t.names, scan.Checkpoint); first >= 0 {
		return first, nil
	}
	return 0, fmt.Errorf("recovery starts at %s, which is not among the last %d binlogs", scan.Checkpoint, len(t.names))
}
