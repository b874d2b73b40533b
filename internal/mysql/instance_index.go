package mysql

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// binlogs are the origin's binlogs in the image. The zero value is a server without.
type binlogs struct {
	on    bool
	base  string   // "binlog": the part before the number
	dir   string   // as the instance sees it
	local string   // where it is for us
	files []string // names without directory, oldest first, before the instance made its own
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

// prepareBinlogs finds the origin's binlogs in the image and writes their index anew with
// names that lead nowhere else: an absolute one would make the instance open the origin's
// binlogs.
func (img *image) prepareBinlogs(variables map[string]string) error {
	b, err := img.findBinlogs(variables)
	if err != nil {
		return err
	}
	img.binlogs = b
	return img.writeIndex(b)
}

// findBinlogs reads the index and lists the folder.
func (img *image) findBinlogs(variables map[string]string) (binlogs, error) {
	basename := variables["log_bin_basename"]
	if basename == "" {
		return binlogs{}, refused("the manifest does not say where the origin's binlogs are (log_bin_basename)", "")
	}
	if !filepath.IsAbs(basename) {
		basename = filepath.Join(img.dataDir, basename)
	}
	b := binlogs{on: true, base: filepath.Base(basename), dir: filepath.Dir(basename)}
	var ok bool
	if b.local, ok = img.find(b.dir); !ok {
		return binlogs{}, refused("the image has no copy of the binlogs in "+b.dir, "")
	}
	root, err := os.OpenRoot(b.local)
	if err != nil {
		return b, err
	}
	defer root.Close()
	present, err := binlogsIn(root, b.base)
	if err != nil {
		return b, err
	}
	listed, err := img.readIndex(variables["log_bin_index"], b)
	if err != nil {
		return b, err
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
	return b, nil
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

func (img *image) writeIndex(b binlogs) error {
	root, err := os.OpenRoot(b.local)
	if err != nil {
		return err
	}
	defer root.Close()
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
