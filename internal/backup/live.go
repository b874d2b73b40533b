package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/respaldo-backup/respaldo"
)

// liveLimit is how much is carried of a folder outside the snapshot. Option files and keys
// are small; a secure_file_priv folder can hold exports as large as the database.
const liveLimit = 256 << 20

// copyLive copies what a backup carries from outside the snapshot: option files, keyring,
// secure_file_priv. Somebody may write there meanwhile, and what is saved must stand still.
func (op *operation) copyLive(ctx context.Context, covers []Cover) (map[string]string, error) {
	copies := map[string]string{}
	var dir string
	for i, c := range covers {
		if c.From != FromLive || c.Place.Inside {
			continue
		}
		if c.Place.Role == respaldo.SecureFileRole && larger(c.Place.Real, liveLimit) {
			op.Report.Warn(fmt.Sprintf("%s holds more than %s and lies outside the snapshot: it is not carried", c.Place.Path, FormatBytes(liveLimit)))
			continue
		}
		if dir == "" {
			var err error
			if dir, err = op.scratch(ctx, op.workDir(), "live"); err != nil {
				return nil, err
			}
		}
		to := filepath.Join(dir, strconv.Itoa(i))
		err := copyTree(ctx, c.Place.Real, to)
		for tries := 0; tries < 10 && c.Place.Role == respaldo.SecureFileRole && errors.Is(err, fs.ErrNotExist); tries++ {
			// An export took its temporary file away between the listing and the copy.
			if err = os.RemoveAll(to); err == nil {
				err = copyTree(ctx, c.Place.Real, to)
			}
		}
		if err != nil {
			return nil, &respaldo.Error{Kind: respaldo.Failed, What: fmt.Sprintf("cannot copy %s (%s)", c.Place.Path, c.Place.Role),
				Hint: "the backup would lack it: see that respaldo may read it", Err: err}
		}
		copies[c.Place.Real] = to
	}
	return copies, nil
}

// larger tells whether the regular files below a path exceed a limit. What cannot be read
// counts for nothing here; copying it will say so.
func larger(path string, limit int64) bool {
	var sum int64
	filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				sum += info.Size()
			}
		}
		if sum > limit {
			return fs.SkipAll
		}
		return nil
	})
	return sum > limit
}

// copyTree copies regular files, directories and links with their modes and owners.
func copyTree(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			if err := os.MkdirAll(target, 0o700); err != nil {
				return err
			}
		case fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case 0:
			if err := copyFile(ctx, path, target); err != nil {
				return err
			}
		default:
			return nil // sockets and pipes hold nothing
		}
		stat := info.Sys().(*syscall.Stat_t)
		if err := os.Chown(target, int(stat.Uid), int(stat.Gid)); err != nil && os.Geteuid() == 0 {
			return err
		}
		return os.Chmod(target, info.Mode().Perm())
	})
}

// copyFile copies a file's content into a new one, which is ours alone.
func copyFile(ctx context.Context, from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for err == nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else {
			_, err = io.CopyN(out, in, 64<<20)
		}
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, out.Close())
}
