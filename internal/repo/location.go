package repo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/s3"
	"github.com/kopia/kopia/repo/blob/sftp"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/respaldo-backup/respaldo"
)

type kind int

const (
	folder kind = iota
	sftpServer
	s3Bucket
)

// location is a parsed Config.URL.
type location struct {
	kind  kind
	name  string // for people, without options
	path  string // folder or remote directory, absolute; prefix in a bucket, ending in "/" if any
	host  string // SFTP server, or bucket
	port  int
	user  string
	query url.Values
}

var knownOptions = map[kind][]string{
	folder:     {},
	sftpServer: {"key", "known_hosts"},
	s3Bucket:   {"endpoint", "region", "profile", "ca"},
}

func parse(raw string) (location, error) {
	bad := func(format string, args ...any) (location, error) {
		return location{}, &respaldo.Error{Kind: respaldo.Usage,
			What: fmt.Sprintf("repository: "+format, args...),
			Hint: "give /path, sftp://user@host/path or s3://bucket/prefix"}
	}
	if strings.HasPrefix(raw, "/") {
		return location{kind: folder, name: filepath.Clean(raw), path: filepath.Clean(raw)}, nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		var detail *url.Error // its text has the whole URL, and with it what may be a password
		if errors.As(err, &detail) {
			err = detail.Err
		}
		return bad("cannot read the URL: %v", err)
	}
	if _, has := u.User.Password(); has {
		return bad("%s has a password in it: everybody who can see this computer's processes could read it", u.Redacted())
	}
	loc := location{query: u.Query(), host: u.Hostname(), user: u.User.Username(), path: path.Clean("/" + u.Path)}
	switch u.Scheme {
	case "file":
		loc.kind, loc.name = folder, loc.path
		if u.Host != "" && u.Host != "localhost" {
			return bad("%s names a host: a folder has three slashes, file:///path", raw)
		}
	case "sftp":
		loc.kind, loc.port = sftpServer, 22
		if loc.host == "" || loc.path == "/" {
			return bad("%s lacks a host or a path", raw)
		}
		if p := u.Port(); p != "" {
			if loc.port, err = strconv.Atoi(p); err != nil {
				return bad("%s: bad port", raw)
			}
		}
		if loc.user == "" {
			me, err := user.Current()
			if err != nil {
				return bad("%s lacks a user: %v", raw, err)
			}
			loc.user = me.Username
		}
		loc.name = "sftp://" + loc.user + "@" + u.Host + loc.path
	case "s3":
		loc.kind = s3Bucket
		if loc.host == "" {
			return bad("%s lacks a bucket", raw)
		}
		loc.name = "s3://" + loc.host + strings.TrimSuffix(loc.path, "/")
		if loc.path = strings.TrimPrefix(loc.path, "/"); loc.path != "" {
			loc.path += "/"
		}
	default:
		return bad("%q is no place that backups can be kept in", raw)
	}
	for key := range loc.query {
		if !contains(knownOptions[loc.kind], key) {
			return bad("%s has no option %q", loc.name, key)
		}
	}
	return loc, nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// key tells one repository from another on this machine.
func (l location) key() string { return l.name + "?" + l.query.Get("endpoint") }

// remote repositories have latency to hide.
func (l location) remote() bool { return l.kind != folder }

const storageType = "respaldo"

// storageConfig is how a repository is named in the file that kopia insists on.
type storageConfig struct {
	URL string `json:"url"`
}

func init() {
	blob.AddSupportedStorage(storageType, storageConfig{},
		func(ctx context.Context, c *storageConfig, isCreate bool) (blob.Storage, error) {
			loc, err := parse(c.URL)
			if err != nil {
				return nil, err
			}
			return loc.open(ctx, isCreate)
		})
}

// watched is the storage as kopia sees it. It keeps the real one's options, secrets
// included, out of kopia's hands, and notes the packs of a save (see packs).
type watched struct {
	blob.Storage
	url string
}

func (s watched) ConnectionInfo() blob.ConnectionInfo {
	return blob.ConnectionInfo{Type: storageType, Config: &storageConfig{URL: s.url}}
}

func (s watched) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, opts blob.PutOptions) error {
	p, noted := ctx.Value(packsKey{}).(*packs)
	if noted {
		p.begin(id)
	}
	err := s.Storage.PutBlob(ctx, id, data, opts)
	if noted && err == nil {
		p.written(id)
	}
	return err
}

func (l location) open(ctx context.Context, create bool) (blob.Storage, error) {
	var st blob.Storage
	var err error
	switch l.kind {
	case folder:
		st, err = openFolder(l.path, create)
	case sftpServer:
		st, err = l.openSFTP(ctx, create)
	case s3Bucket:
		st, err = l.openS3(ctx, create)
	}
	if err != nil {
		return nil, err
	}
	return watched{st, l.name}, nil
}

func (l location) openSFTP(ctx context.Context, create bool) (blob.Storage, error) {
	home, _ := os.UserHomeDir()
	key := l.query.Get("key")
	if key == "" {
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			if p := filepath.Join(home, ".ssh", name); fileExists(p) {
				key = p
				break
			}
		}
	}
	if key == "" {
		return nil, &respaldo.Error{Kind: respaldo.RepoFailed, What: "no SSH key for " + l.name,
			Hint: "make one without a passphrase (ssh-keygen -t ed25519 -N '' -f FILE), let the server know it, and add ?key=FILE to the URL"}
	}
	known := l.query.Get("known_hosts")
	if known == "" {
		known = filepath.Join(home, ".ssh", "known_hosts")
	}
	if !fileExists(known) {
		return nil, &respaldo.Error{Kind: respaldo.RepoFailed, What: "no list of known SSH hosts at " + known,
			Hint: fmt.Sprintf("check the server's key and note it: ssh-keyscan -p %d %s >> %s", l.port, l.host, known)}
	}
	return sftp.New(ctx, &sftp.Options{
		Path: l.path, Host: l.host, Port: l.port, Username: l.user, Keyfile: key, KnownHostsFile: known,
	}, create)
}

func (l location) openS3(ctx context.Context, create bool) (blob.Storage, error) {
	o := s3.Options{BucketName: l.host, Prefix: l.path, Endpoint: "s3.amazonaws.com"}
	custom := l.query.Get("endpoint")
	if custom == "" {
		custom = os.Getenv("AWS_ENDPOINT_URL")
	}
	if custom != "" {
		o.Endpoint = strings.TrimSuffix(custom, "/")
		if plain, is := strings.CutPrefix(o.Endpoint, "http://"); is {
			o.Endpoint, o.DoNotUseTLS = plain, true
		}
		o.Endpoint = strings.TrimPrefix(o.Endpoint, "https://")
	}
	for _, region := range []string{l.query.Get("region"), os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")} {
		if region != "" {
			o.Region = region
			break
		}
	}
	if ca := l.query.Get("ca"); ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		o.RootCA = pem
	}
	profile := l.query.Get("profile")
	if value, err := (&credentials.EnvAWS{}).Retrieve(); err == nil && profile == "" && value.AccessKeyID != "" {
		o.AccessKeyID, o.SecretAccessKey, o.SessionToken = value.AccessKeyID, value.SecretAccessKey, value.SessionToken
	} else if value, err := (&credentials.FileAWSCredentials{Profile: profile}).Retrieve(); err == nil && value.AccessKeyID != "" {
		o.AccessKeyID, o.SecretAccessKey, o.SessionToken = value.AccessKeyID, value.SecretAccessKey, value.SessionToken
	} else if custom != "" || profile != "" {
		// On Amazon kopia goes on to ask for the machine's role; elsewhere that address hangs.
		return nil, &respaldo.Error{Kind: respaldo.RepoFailed, What: "no S3 credentials for " + l.name,
			Hint: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them into ~/.aws/credentials"}
	}
	return s3.New(ctx, &o, create)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
