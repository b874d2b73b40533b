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
	"sync"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/sharded"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

// folderStorage is a repository in a folder, laid out as kopia's own "filesystem" storage
// lays it out. It exists because that one never calls fsync (after a power loss an index
// may name packs that are not there, and later backups would build on them), retries a
// full disk for eleven seconds, and leaves its temporary files on it.
type folderStorage struct {
	sharded.Storage
	blob.DefaultProviderImplementation
}

// folderFiles reads and writes the blobs. Packs are brought to the disk together, before
// anything that may refer to them is written: waiting for each would stop the compression
// every 20 MB.
type folderFiles struct {
	root string

	mu       sync.Mutex
	unsynced map[string]bool // packs, and directories with new entries
	lost     error           // a pack that could not be synced: what was written of it is unknown for good
}

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
	files := &folderFiles{root: path, unsynced: map[string]bool{}}
	return &folderStorage{Storage: sharded.New(files, path, sharded.Options{}, create)}, nil
}

func (s *folderStorage) ConnectionInfo() blob.ConnectionInfo { return blob.ConnectionInfo{} } // see watched
func (s *folderStorage) DisplayName() string                 { return s.RootPath }

func (s *folderFiles) GetBlobFromPath(ctx context.Context, _, path string, offset, length int64, out blob.OutputBuffer) error {
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

func (s *folderFiles) GetMetadataFromPath(_ context.Context, _, path string) (blob.Metadata, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return blob.Metadata{}, blob.ErrBlobNotFound
	} else if err != nil {
		return blob.Metadata{}, err
	}
	return blob.Metadata{Length: info.Size(), Timestamp: info.ModTime()}, nil
}

// PutBlobInPath returns when the blob would survive a power loss, packs excepted.
func (s *folderFiles) PutBlobInPath(ctx context.Context, dir, path string, data blob.Bytes, opts blob.PutOptions) error {
	if opts.HasRetentionOptions() || opts.DoNotRecreate {
		return blob.ErrUnsupportedPutBlobOption
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	name, err := filepath.Rel(s.root, path)
	if err != nil {
		return err
	}
	pack := strings.HasPrefix(name, string(content.PackBlobIDPrefixRegular)) || strings.HasPrefix(name, string(content.PackBlobIDPrefixSpecial))
	if !pack {
		if err := s.sync(); err != nil {
			return err
		}
	}
	if err := s.write(dir, path, data, pack, opts.SetModTime); err != nil {
		return err
	}
	s.note(path, dir)
	if !pack {
		if err := s.sync(); err != nil {
			return err
		}
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

// write makes a file, whole or not at all.
func (s *folderFiles) write(dir, path string, data blob.Bytes, start bool, mtime time.Time) (err error) {
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
	if err == nil && start {
		// Begin to write it out now; it will be waited for later. Not every file system can.
		unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	} else if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if !mtime.IsZero() {
		if err := os.Chtimes(f.Name(), mtime, mtime); err != nil {
			return err
		}
	}
	return os.Rename(f.Name(), path)
}

func (s *folderFiles) note(paths ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range paths {
		s.unsynced[p] = true
	}
}

// sync brings to the disk what is not there yet.
func (s *folderFiles) sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path := range s.unsynced {
		if err := disk.Sync(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			// The kernel says so once and then calls the file clean.
			s.lost = errors.Join(s.lost, err)
		}
		delete(s.unsynced, path)
	}
	return s.lost
}

// makeDirs makes dir and what lacks above it, but never the repository's own folder: when
// that is gone, its file system is not mounted.
func (s *folderFiles) makeDirs(dir string) error {
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
	s.note(filepath.Dir(dir))
	return nil
}

func (s *folderFiles) DeleteBlobInPath(_ context.Context, _, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *folderFiles) ReadDir(ctx context.Context, dir string) ([]os.FileInfo, error) {
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
