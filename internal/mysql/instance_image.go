package mysql

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
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
	log      func(msg string, args ...any)
}

// binlogs are the origin's binlogs in the image. The zero value is a server without.
type binlogs struct {
	on    bool
	base  string   // "binlog": the part before the number
	dir   string   // as the instance sees it
	local string   // where it is for us
	files []string // names without directory, oldest first, before the instance made its own
}

// last is the file that the origin was writing, "" if it had none.
func (b binlogs) last() string {
	if len(b.files) == 0 {
		return ""
	}
	return b.files[len(b.files)-1]
}

// option is the value of --log-bin: relative to the data directory wherever possible.
func (b binlogs) option(dataDir string) string {
	return relativeTo(dataDir, filepath.Join(b.dir, b.base))
}

func relativeTo(dir, path string) string {
	if isBelow(path, dir) && path != dir {
		return strings.TrimPrefix(path, dir+"/")
	}
	return path
}

// prepareImage checks that the request is whole and changes what must not be taken over
// from the origin.
func prepareImage(request InstanceRequest) (*image, error) {
	m := request.Manifest
	img := &image{dataDir: filepath.Clean(m.Layout.DataDir), dirs: map[string]string{}, scratch: request.Scratch}
	for origin, local := range request.Dirs {
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
	if len(img.argv(request)) == 0 {
		return nil, refused("the manifest does not say which program ran the server", "")
	}
	if err := img.covers(m.Layout); err != nil {
		return nil, err
	}
	if n := len(filepath.Join(request.Scratch, socketName)); n > 107 {
		return nil, refused(fmt.Sprintf("%s is too long for a socket in it", request.Scratch), "use a shorter temporary directory")
	}
	var err error
	if img.uid, img.gid, err = runAs(img.local); err != nil {
		return nil, err
	}
	if err := img.prepareScratch(m); err != nil {
		return nil, fmt.Errorf("preparing the instance's scratch directory: %w", err)
	}
	if err := img.prepareData(m); err != nil {
		return nil, fmt.Errorf("preparing the image: %w", err)
	}
	return img, nil
}

func refused(what, hint string) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: what, Hint: hint}
}

func (img *image) argv(request InstanceRequest) []string {
	if len(request.Binary.Argv) > 0 {
		return request.Binary.Argv
	}
	return request.Manifest.Binary.Argv
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
func (img *image) prepareScratch(m respaldo.Manifest) error {
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

// prepareBinlogs finds the origin's binlogs in the image and writes their index anew with
// names that lead nowhere else: an absolute one would make the instance open the origin's
// binlogs.
func (img *image) prepareBinlogs(variables map[string]string) error {
	basename := variables["log_bin_basename"]
	if basename == "" {
		return refused("the manifest does not say where the origin's binlogs are (log_bin_basename)", "")
	}
	if !filepath.IsAbs(basename) {
		basename = filepath.Join(img.dataDir, basename)
	}
	b := binlogs{on: true, base: filepath.Base(basename), dir: filepath.Dir(basename)}
	var ok bool
	if b.local, ok = img.find(b.dir); !ok {
		return refused("the image has no copy of the binlogs in "+b.dir, "")
	}
	root, err := os.OpenRoot(b.local)
	if err != nil {
		return err
	}
	defer root.Close()
	present, err := binlogsIn(root, b.base)
	if err != nil {
		return err
	}
	listed, err := img.readIndex(variables["log_bin_index"], b)
	if err != nil {
		return err
	}
	b.files = present
	if listed != nil {
		// Files missing at the front were not copied, or purged between index and files.
		// One missing later is a hole: the server shall say so.
		for len(listed) > 0 && !slices.Contains(present, listed[0]) {
			listed = listed[1:]
		}
		b.files = listed
	}
	img.binlogs = b
	return img.writeIndex(root, b)
}

var binlogNumber = regexp.MustCompile(`^\.[0-9]{6,}$`)

// binlogsIn lists a folder's binlogs by number.
func binlogsIn(root *os.Root, base string) ([]string, error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), base); ok && e.Type().IsRegular() && binlogNumber.MatchString(rest) {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { // binlog.1000000 comes after binlog.999999
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return names, nil
}

// readIndex returns the names in the origin's binlog index, or nil if the image has none.
func (img *image) readIndex(path string, b binlogs) ([]string, error) {
	if path == "" {
		path = filepath.Join(b.dir, b.base+".index")
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(img.dataDir, path)
	}
	local, ok := img.find(path)
	if !ok {
		return nil, nil
	}
	root, err := os.OpenRoot(filepath.Dir(local))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Lstat(filepath.Base(local))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := root.Open(filepath.Base(local))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); line != "" {
			names = append(names, filepath.Base(line))
		}
	}
	return names, nil
}

// index is the value of --log-bin-index.
func (b binlogs) index(dataDir string) string {
	return relativeTo(dataDir, filepath.Join(b.dir, b.base+".index"))
}

func (img *image) writeIndex(root *os.Root, b binlogs) error {
	prefix := "./"
	if b.dir != img.dataDir {
		prefix = b.dir + "/" // the copy's, in the instance's view
		if isBelow(b.dir, img.dataDir) {
			prefix = "./" + strings.TrimPrefix(b.dir, img.dataDir+"/") + "/"
		}
	}
	var text strings.Builder
	for _, name := range b.files {
		text.WriteString(prefix + name + "\n")
	}
	name := b.base + ".index"
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.WriteFile(name, []byte(text.String()), 0o640); err != nil {
		return err
	}
	return root.Lchown(name, img.uid, img.gid)
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
		Argv:   append(slices.Clone(img.argv(request)), options...),
		Env:    img.environment(request),
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
	binary := request.Binary
	if len(binary.Argv) == 0 {
		binary = request.Manifest.Binary
	}
	env = append(env, binary.Env...)
	return append(env, identify(request.Manifest.Server, request.Run)...)
}
