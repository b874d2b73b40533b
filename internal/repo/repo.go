// Package repo keeps backups in a kopia repository: deduplicated, compressed, encrypted,
// in a folder, over SFTP or in S3. A backup is an ordinary kopia snapshot with a
// respaldo.json at its root, so that the stock kopia program can list and restore it.
//
// It is the only package that imports kopia. It is used, not configured, through kopia:
// no policy, ignore file or retention setting of the stock program has any effect here.
package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/maintenance"

	"github.com/respaldo-backup/respaldo"
)

const (
	// kopiaUser is the user name in kopia's sources (respaldo@host:server) and of
	// the owner of maintenance.
	kopiaUser = "respaldo"

	// FIXED-128K is a multiple of InnoDB's page: a page changed at random costs one
	// chunk. Measured with 1% of pages changed: 90 MiB, against 937 MiB at 4 MiB chunks.
	chunkSplitter = "FIXED-128K"
	chunkBytes    = 128 << 10
	chunkHash     = "BLAKE3-256-128"
	chunkCipher   = "AES256-GCM-HMAC-SHA256"
	compressor    = "zstd-fastest"

	// metadataCacheBytes bounds what is cached of directories, manifests and indexes.
	metadataCacheBytes = 512 << 20
)

// ErrExists is what Create fails with when there is a repository already.
var ErrExists = errors.New("there is a repository already")

// Config says where a repository lies. It holds no secret, and URL may hold none either:
//
//	/path or file:///path
//	sftp://user@host[:port]/path?key=FILE&known_hosts=FILE
//	s3://bucket/prefix?endpoint=[http[s]://]HOST[:PORT]&region=REGION&profile=NAME&ca=FILE
//
// The SFTP key defaults to the first of ~/.ssh/id_{ed25519,ecdsa,rsa} and must have no
// passphrase; known_hosts defaults to ~/.ssh/known_hosts. S3 credentials come from AWS's
// environment variables, then its credentials file, then (on Amazon only) the machine's role.
type Config struct {
	URL string
}

// Options are about this machine.
type Options struct {
	// CacheDir is an absolute directory for kopia's indexes and metadata, at most about
	// 0.6 GB for each repository. It may be deleted while no respaldo runs.
	CacheDir string
	// Host is the name under which backups are recorded; "" is this machine's, up to
	// the first dot and in lower case.
	Host string
	Log  *slog.Logger // nil is silent
}

// Repo is an open repository. Safe for concurrent use; several processes and hosts may
// have the same repository open.
type Repo struct {
	cfg      Config
	where    location
	password string // for verify, which opens the repository a second time, without caches
	opts     Options
	dir      string // ours under CacheDir
	rep      repo.DirectRepository
	uncached uncached
}

// Create makes a new, empty repository and opens it. It fails with ErrExists where there
// is one (Open connects to it), and refuses a folder that holds anything else. Host
// becomes the owner of the repository's maintenance.
func Create(ctx context.Context, cfg Config, password string, o Options) (*Repo, error) {
	where, o, err := prepare(cfg, password, o)
	if err != nil {
		return nil, err
	}
	ctx = withLog(ctx, o.Log)
	st, err := where.open(ctx, true)
	if err != nil {
		return nil, where.explain("cannot create the repository", err)
	}
	defer st.Close(ctx)
	if err := refuseForeign(ctx, where, st); err != nil {
		return nil, err
	}
	err = repo.Initialize(ctx, st, &repo.NewRepositoryOptions{
		BlockFormat: format.ContentFormat{
			Hash:                 chunkHash,
			Encryption:           chunkCipher,
			EnablePasswordChange: true,
		},
		ObjectFormat:                      format.ObjectFormat{Splitter: chunkSplitter},
		FormatBlockKeyDerivationAlgorithm: keyDerivation,
	}, password)
	if err != nil {
		return nil, where.explain("cannot create the repository", err)
	}
	// What is cached of an earlier repository in the same place is of no use.
	if err := os.RemoveAll(cacheOf(where, o)); err != nil {
		return nil, noCache(err)
	}
	r, err := Open(ctx, cfg, password, o)
	if err != nil {
		return nil, err
	}
	params := maintenance.DefaultParams()
	params.Owner = r.maintainer()
	err = r.write(ctx, "create", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return maintenance.SetParams(ctx, w, &params)
	})
	if err != nil {
		r.Close(ctx)
		return nil, where.explain("cannot create the repository", err)
	}
	return r, nil
}

// refuseForeign lets an empty place pass, and one where a creation was cut short.
func refuseForeign(ctx context.Context, where location, st blob.Storage) error {
	if where.kind == folder {
		if err := refuseUsedFolder(where); err != nil {
			return err
		}
	}
	var ours, halfMade, foreign bool
	enough := errors.New("enough")
	err := st.ListBlobs(ctx, "", func(b blob.Metadata) error {
		switch string(b.BlobID) {
		case format.KopiaRepositoryBlobID:
			ours = true
			return enough
		case format.KopiaBlobCfgBlobID:
			halfMade = true
		default:
			foreign = true
		}
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, enough):
		return where.explain("cannot create the repository", err)
	case ours:
		return &respaldo.Error{Kind: respaldo.Refused, What: "cannot create the repository " + where.name,
			Hint: "use it as it is, or name an empty place for a new one", Err: ErrExists}
	case foreign:
		return &respaldo.Error{Kind: respaldo.Refused, What: where.name + " holds something else already",
			Hint: "name an empty place for the repository"}
	case halfMade:
		if err := st.DeleteBlob(ctx, format.KopiaBlobCfgBlobID); err != nil {
			return where.explain("cannot create the repository", err)
		}
	}
	return nil
}

// Open opens an existing repository. Failures are Kind RepoFailed with what to do next.
func Open(ctx context.Context, cfg Config, password string, o Options) (*Repo, error) {
	where, o, err := prepare(cfg, password, o)
	if err != nil {
		return nil, err
	}
	r := &Repo{cfg: cfg, where: where, password: password, opts: o, dir: cacheOf(where, o)}
	if err := dropOldCache(r.dir); err != nil {
		return nil, noCache(err)
	}
	r.rep, err = r.open(withLog(ctx, o.Log), "repository", &content.CachingOptions{
		CacheDirectory:              filepath.Join(r.dir, cacheName),
		MetadataCacheSizeBytes:      metadataCacheBytes,
		MetadataCacheSizeLimitBytes: metadataCacheBytes + metadataCacheBytes/8,
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// open makes kopia open the repository. kopia reads what to open from a file only; ours
// names the storage type "respaldo" and the URL, so that no secret gets into it.
func (r *Repo) open(ctx context.Context, name string, caching *content.CachingOptions) (repo.DirectRepository, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, noCache(err)
	}
	// A size of 0 makes kopia panic at the first read. With 1 it keeps a chunk or two: data
	// is read once, and caching it would write everything a second time.
	caching.ContentCacheSizeBytes, caching.ContentCacheSizeLimitBytes = 1, 1
	local := repo.LocalConfig{
		Storage: &blob.ConnectionInfo{Type: storageType, Config: &storageConfig{URL: r.cfg.URL}},
		Caching: caching,
		ClientOptions: repo.ClientOptions{
			Hostname: r.opts.Host,
			Username: kopiaUser,
			// Otherwise a repository that is gone opens for 15 minutes, and looks empty.
			FormatBlobCacheDuration: -1,
		},
	}
	file := filepath.Join(r.dir, name+".config")
	if err := writeFile(file, local); err != nil {
		return nil, noCache(err)
	}
	rep, err := repo.Open(ctx, file, r.password, &repo.Options{
		DisableRepositoryLog: true,
		DoNotWaitForUpgrade:  true,
		OnFatalError: func(err error) {
			if r.opts.Log != nil {
				r.opts.Log.Error("repository", "error", err)
			}
		},
	})
	if err != nil {
		return nil, r.where.explain("cannot open the repository", err)
	}
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		rep.Close(ctx)
		return nil, fmt.Errorf("repository %s: kopia gave a %T", r.where.name, rep)
	}
	return direct, nil
}

// cacheOf is the directory below CacheDir for one repository.
func cacheOf(where location, o Options) string {
	sum := sha256.Sum256([]byte(where.key()))
	return filepath.Join(o.CacheDir, hex.EncodeToString(sum[:8]))
}

func noCache(err error) error {
	return &respaldo.Error{Kind: respaldo.RepoFailed, What: "cannot use the cache directory",
		Hint: "make it writable, or name another one", Err: err}
}

// Close releases the repository. Nothing is pending by then: each operation flushes.
func (r *Repo) Close(ctx context.Context) error {
	ctx = withLog(ctx, r.opts.Log)
	return errors.Join(r.uncached.close(ctx), r.rep.Close(ctx))
}

// Name is the repository's place for people, without options.
func (r *Repo) Name() string { return r.where.name }

// Folder is the directory of a repository on this machine, "" for one elsewhere.
func (r *Repo) Folder() string {
	if r.where.kind != folder {
		return ""
	}
	return r.where.path
}

// FolderOf is the directory that a URL names, "" for what is elsewhere or no URL.
func FolderOf(url string) string {
	where, err := parse(url)
	if err != nil || where.kind != folder {
		return ""
	}
	return where.path
}

// CacheDir is this repository's own directory below Options.CacheDir.
func (r *Repo) CacheDir() string { return r.dir }

func (r *Repo) maintainer() string { return kopiaUser + "@" + r.opts.Host }

// write runs one kopia write session: flushed when fn succeeds, dropped when it fails.
func (r *Repo) write(ctx context.Context, purpose string, fn func(context.Context, repo.DirectRepositoryWriter) error) error {
	return repo.DirectWriteSession(withLog(ctx, r.opts.Log), r.rep, repo.WriteSessionOptions{Purpose: purpose}, fn)
}

func prepare(cfg Config, password string, o Options) (location, Options, error) {
	where, err := parse(cfg.URL)
	if err != nil {
		return where, o, err
	}
	if password == "" {
		return where, o, &respaldo.Error{Kind: respaldo.Usage, What: "the repository's password is empty",
			Hint: "put it into a file that only you can read, and name that file"}
	}
	if !filepath.IsAbs(o.CacheDir) {
		return where, o, &respaldo.Error{Kind: respaldo.Usage,
			What: fmt.Sprintf("the cache directory %q is not an absolute path", o.CacheDir), Hint: "name it from the root"}
	}
	if o.Host == "" {
		if o.Host, err = os.Hostname(); err != nil {
			return where, o, err
		}
	}
	o.Host, _, _ = strings.Cut(strings.ToLower(o.Host), ".")
	return where, o, nil
}

func writeFile(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
