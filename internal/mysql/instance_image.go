package mysql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// scratchName is where Scratch appears inside the data directory: the one place that a
// server may always write, AppArmor profiles included. MySQL does not look for
// tablespaces in folders that begin with a dot.
const scratchName = ".respaldo"

// image is the writable view that an instance runs on.
type image struct {
	dataDir  string            // as the origin named it, and as the instance sees it
	local    string            // where it is for us
	dirs     map[string]string // origin's path → ours, link names included
	uid, gid int
	scratch  string
	binlogs  binlogs
	newer    bool // the program is of a later release than the data
	log      func(msg string, args ...any)
}

// prepareImage checks that the request is whole and changes what must not be taken over
// from the origin.
func prepareImage(ctx context.Context, request InstanceRequest) (*image, error) {
	m := request.Manifest
	img, err := newImage(m, request.Dirs)
	if err != nil {
		return nil, err
	}
	img.scratch = request.Scratch
	if len(request.program().Argv) == 0 {
		return nil, refused("the manifest does not say which program ran the server", "")
	}
	if err := img.covers(m.Layout); err != nil {
		return nil, err
	}
	if socket := request.socket(); len(socket) > 107 {
		return nil, refused(fmt.Sprintf("%s is too long for a socket in it", filepath.Dir(socket)), "use a shorter temporary directory")
	}
	if img.uid, img.gid, err = runAs(img.local); err != nil {
		return nil, err
	}
	if img.newer, err = img.upgrades(ctx, request); err != nil {
		return nil, err
	}
	if err := img.prepareScratch(request); err != nil {
		return nil, fmt.Errorf("preparing the instance's scratch directory: %w", err)
	}
	if err := img.prepareData(m); err != nil {
		return nil, fmt.Errorf("preparing the image: %w", err)
	}
	return img, nil
}

// newImage is where an image's files are, and nothing more: it touches none of them.
func newImage(m respaldo.Manifest, dirs map[string]string) (*image, error) {
	img := &image{dataDir: filepath.Clean(m.Layout.DataDir), dirs: map[string]string{}}
	for origin, local := range dirs {
		img.dirs[filepath.Clean(origin)] = local
	}
	for _, p := range m.Layout.Places {
		img.adopt(p)
	}
	img.forget(m.Layout)
	var ok bool
	if img.local, ok = img.dirs[img.dataDir]; !ok {
		return nil, refused("there is no copy of the data directory "+m.Layout.DataDir, "")
	}
	return img, nil
}

func refused(what, hint string) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: what, Hint: hint}
}

// socket is where the instance listens, as we see it.
func (r InstanceRequest) socket() string {
	if r.SocketDir != "" {
		return filepath.Join(r.SocketDir, socketName)
	}
	return filepath.Join(r.Scratch, socketName)
}

// program starts the server.
func (r InstanceRequest) program() respaldo.Binary {
	if len(r.Binary.Argv) > 0 {
		return r.Binary
	}
	return r.Manifest.Binary
}

// adopt gives a place both its names: on another machine the origin's links are missing,
// and the server asks for Path while the copy goes by Real.
func (img *image) adopt(p respaldo.Place) {
	if p.Path == "" || p.Real == "" || p.Path == p.Real {
		return
	}
	if local, ok := img.dirs[p.Real]; ok && img.dirs[p.Path] == "" && (p.Path == img.dataDir || !isBelow(p.Path, img.dataDir)) {
		img.dirs[p.Path] = local
	} else if local, ok := img.dirs[p.Path]; ok && img.dirs[p.Real] == "" {
		img.dirs[p.Real] = local
	}
}

// forget leaves out what the instance has no use for: option files, which it does not
// read, the folder of LOAD DATA, for which it gets one of its own, and all that the copy of
// a folder around it shows anyway.
func (img *image) forget(l respaldo.Layout) {
	needed := map[string]bool{img.dataDir: true}
	for _, p := range l.Places {
		if p.Role != respaldo.OptionFileRole && p.Role != respaldo.SecureFileRole {
			needed[p.Path], needed[p.Real] = true, true
		}
	}
	for _, p := range l.Places {
		for _, name := range []string{p.Path, p.Real} {
			if !needed[name] {
				delete(img.dirs, name)
			}
		}
	}
	for origin, local := range maps.Clone(img.dirs) {
		if around, ok := img.find(filepath.Dir(origin)); ok && filepath.Join(around, filepath.Base(origin)) == filepath.Clean(local) {
			delete(img.dirs, origin)
		}
	}
}

// find returns our path for one of the origin's.
func (img *image) find(origin string) (local string, ok bool) {
	best := ""
	for dir := range img.dirs {
		if isBelow(origin, dir) && len(dir) > len(best) {
			best = dir
		}
	}
	if best == "" {
		return "", false
	}
	return filepath.Join(img.dirs[best], strings.TrimPrefix(origin, best)), true
}

// covers makes sure that every place in which the server keeps data is a copy. A place
// that is not would be the live origin's, if this is its machine. Binlogs are looked for
// later, by name.
func (img *image) covers(l respaldo.Layout) error {
	for _, p := range l.Places {
		switch p.Role {
		case respaldo.DataRole, respaldo.RedoRole, respaldo.UndoRole, respaldo.DoublewriteRole, respaldo.SystemRole,
			respaldo.AriaLogRole, respaldo.TablespaceRole, respaldo.DatabaseRole:
		default:
			continue
		}
		real := p.Real
		if real == "" {
			real = p.Path
		}
		if _, ok := img.find(real); !ok && !p.Inside {
			return refused(fmt.Sprintf("the image has no copy of %s (%s)", p.Path, p.Role), "a server without it would not be the origin")
		}
	}
	return nil
}

// prepareScratch makes the folders of the instance, and private copies of keyrings that
// the image does not bring: a server may rewrite its keyring at any start.
func (img *image) prepareScratch(request InstanceRequest) error {
	m := request.Manifest
	for _, name := range []string{"", "tmp", "files", "keyring", "mounts"} {
		dir := filepath.Join(img.scratch, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chown(dir, img.uid, img.gid); err != nil {
			return err
		}
	}
	if request.SocketDir != "" {
		if err := os.Mkdir(filepath.Join(img.scratch, socketFolder), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Chown(request.SocketDir, img.uid, img.gid); err != nil {
			return err
		}
	}
	for n, p := range m.Layout.Of(respaldo.KeyringRole) {
		if _, ok := img.find(p.Real); ok || p.Inside {
			continue
		}
		copied := filepath.Join(img.scratch, "keyring", fmt.Sprint(n))
		if err := img.copyOwned(p.Real, copied); err != nil {
			return &respaldo.Error{Kind: respaldo.Refused, What: "cannot copy the origin's keyring", Hint: "encrypted data need it: bring " + p.Path + " back first", Err: err}
		}
		img.dirs[p.Real] = copied
		img.adopt(p)
	}
	return nil
}

// copyOwned copies a keyring, a file or a folder of files, for the instance's user.
func (img *image) copyOwned(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		for _, e := range entries {
			if err := img.copyOwned(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return os.Chown(to, img.uid, img.gid)
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		return err
	}
	return os.Chown(to, img.uid, img.gid)
}

// prepareData makes the copy a server of its own. The image's files belong to the
// server's user, who may have put links among them; os.Root follows none that leads out.
func (img *image) prepareData(m respaldo.Manifest) error {
	root, err := os.OpenRoot(img.local)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Remove("auto.cnf"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Mkdir(scratchName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Lchown(scratchName, img.uid, img.gid); err != nil {
		return err
	}
	if !m.BinlogOn {
		return nil
	}
	return img.prepareBinlogs(m.Variables)
}

// tidy takes our folder out of the image again.
func (img *image) tidy() {
	if root, err := os.OpenRoot(img.local); err == nil {
		root.Remove(scratchName)
		root.Close()
	}
}

// setup is everything that the new process must know.
func (img *image) setup(request InstanceRequest) (setup, error) {
	options, err := img.options(request)
	if err != nil {
		return setup{}, err
	}
	s := setup{
		Parent: os.Getpid(),
		Work:   filepath.Join(img.scratch, "mounts"),
		UID:    img.uid,
		GID:    img.gid,
		Argv:   append(slices.Clone(request.program().Argv), options...),
		Env:    img.environment(request),

		Networking: request.Networking,
	}
	// Shorter paths first: a place may lie below another.
	for _, origin := range slices.SortedFunc(maps.Keys(img.dirs), func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	}) {
		s.Binds = append(s.Binds, bind{img.dirs[origin], origin})
	}
	s.Binds = append(s.Binds, bind{img.scratch, filepath.Join(img.dataDir, scratchName)})
	if request.SocketDir != "" {
		s.Binds = append(s.Binds, bind{request.SocketDir, filepath.Join(img.dataDir, scratchName, socketFolder)})
	}
	return s, nil
}

// environment is all that the server gets of one: our own may hold passwords.
func (img *image) environment(request InstanceRequest) []string {
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C",
		"HOME=/nonexistent",
		"TMPDIR=" + filepath.Join(img.dataDir, scratchName, "tmp"),
	}
	if tz, ok := os.LookupEnv("TZ"); ok {
		env = append(env, "TZ="+tz)
	}
	env = append(env, request.program().Env...)
	return append(env, request.identify()...)
}
