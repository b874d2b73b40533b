package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/sharded"
	"github.com/kopia/kopia/repo/format"

	"github.com/respaldo-backup/respaldo"
)

// folderStorage is a repository in a folder, laid out as kopia's own "filesystem" storage
// lays it out. It exists because that one never calls fsync (after a power loss an index
// may name packs that are not there, and later backups would build on them), retries a
// full disk for eleven seconds, and leaves its temporary files on it.
type folderStorage struct {
	sharded.Storage
	blob.DefaultProviderImplementation
}

type folderFiles struct{ root string }

func openFolder(path string, create bool) (blob.Storage, error) {
	if create {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
	}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a directory")}
	}
	return &folderStorage{Storage: sharded.New(folderFiles{path}, path, sharded.Options{}, create)}, nil
}

func (s *folderStorage) ConnectionInfo() blob.ConnectionInfo { return blob.ConnectionInfo{} } // see watched
func (s *folderStorage) DisplayName() string                 { return s.RootPath }

func (folderFiles) GetBlobFromPath(ctx context.Context, _, path string, offset, length int64, out blob.OutputBuffer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return blob.ErrBlobNotFound
	} else if err != nil {
		return err
	}
	defer f.Close()
	out.Reset()
	if length < 0 {
		_, err = io.Copy(out, f)
		return err
	}
	if _, err := io.Copy(out, io.NewSectionReader(f, offset, length)); err != nil {
		return err
	}
	return blob.EnsureLengthExactly(out.Length(), length)
}

func (folderFiles) GetMetadataFromPath(_ context.Context, _, path string) (blob.Metadata, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return blob.Metadata{}, blob.ErrBlobNotFound
	} else if err != nil {
		return blob.Metadata{}, err
	}
	return blob.Metadata{Length: info.Size(), Timestamp: info.ModTime()}, nil
}

// PutBlobInPath returns when the blob would survive a power loss.
func (s folderFiles) PutBlobInPath(ctx context.Context, dir, path string, data blob.Bytes, opts blob.PutOptions) (err error) {
	if opts.HasRetentionOptions() || opts.DoNotRecreate {
		return blob.ErrUnsupportedPutBlobOption
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// "….tmp.…" is what kopia calls its own, and skips when it lists.
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp.*")
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.makeDirs(dir); err == nil {
			f, err = os.CreateTemp(dir, filepath.Base(path)+".tmp.*")
		}
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = data.WriteTo(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if !opts.SetModTime.IsZero() {
		if err := os.Chtimes(f.Name(), opts.SetModTime, opts.SetModTime); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err := syncPath(dir); err != nil {
		return err
	}
	if opts.GetModTime != nil {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		*opts.GetModTime = info.ModTime()
	}
	return nil
}

// makeDirs makes dir and what lacks above it, durably, but never the repository's own
// folder: when that is gone, its file system is not mounted.
func (s folderFiles) makeDirs(dir string) error {
	if dir == s.root {
		return &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.makeDirs(filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncPath(filepath.Dir(dir))
}

func (folderFiles) DeleteBlobInPath(_ context.Context, _, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (folderFiles) ReadDir(ctx context.Context, dir string) ([]os.FileInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	infos := make([]os.FileInfo, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		} else if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// refuseUsedFolder accepts a folder that is empty, does not exist, or is the root of a
// fresh file system; and a repository, made or half made, which is the caller's to judge.
func refuseUsedFolder(where location) error {
	entries, err := os.ReadDir(where.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return where.explain("cannot create the repository", err)
	}
	var foreign string
	for _, e := range entries {
		switch e.Name() {
		case format.KopiaRepositoryBlobID + sharded.CompleteBlobSuffix:
			return nil
		case "lost+found", sharded.ParametersFile, format.KopiaBlobCfgBlobID + sharded.CompleteBlobSuffix:
		default:
			foreign = e.Name()
		}
	}
	if foreign != "" {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s holds something else already (%s)", where.name, foreign),
			Hint: "name an empty folder for the repository"}
	}
	return nil
}

// removeTemporary deletes what killed processes left half written, and returns its bytes.
func removeTemporary(root string, before time.Time) (freed int64, err error) {
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(e.Name(), sharded.CompleteBlobSuffix+".tmp.") {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().After(before) {
			return nil
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err == nil {
			freed += info.Size()
		}
		return err
	})
	return freed, err
}
