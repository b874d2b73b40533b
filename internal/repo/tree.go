package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	kfs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// Names at the root of every backup.
const (
	manifestName = "respaldo.json"
	filesName    = "respaldo-files.json"
)

// Tree is what a backup consists of.
type Tree struct {
	Entries []TreeEntry
}

// TreeEntry is one directory or file of a backup.
type TreeEntry struct {
	// Name is where it lies in the backup, relative to its root, with slashes. Directories
	// on the way there are made. The names respaldo*.json at the root are ours.
	Name string
	// Path is the directory or file to save. A symlink here is followed; those below
	// are saved as symlinks.
	Path string
	Data []byte // instead of Path: the content of a file
	// Stream, instead of Path, is read to its end: a file of a length that nobody knows yet.
	// Its error is the save's.
	Stream io.Reader
}

// fileTable is respaldo-files.json: what of the files kopia does not keep.
type fileTable struct {
	Format int               `json:"format"`
	Users  map[string]string `json:"users"`  // numeric ID → name
	Groups map[string]string `json:"groups"` // numeric ID → name
	Sparse []string          `json:"sparse,omitempty"`
}

// node is one file, directory or symlink on its way into the repository.
type node struct {
	name     string
	path     string // on disk; empty for virtual directories and data
	stored   string // in the backup, for messages
	info     meta
	data     []byte
	stream   io.Reader
	top      bool // it is what a TreeEntry names
	children []*node
	entry    *snapshot.DirEntry // set once it is saved
}

type meta struct {
	mode     fs.FileMode
	size     int64
	mtime    time.Time
	uid, gid uint32
}

func metaOf(info fs.FileInfo) meta {
	m := meta{mode: info.Mode(), size: info.Size(), mtime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		m.uid, m.gid = st.Uid, st.Gid
	}
	return m
}

// scan is a tree as found on disk: everything is known but the contents.
type scan struct {
	root    *node
	files   []*node // regular files, and symlinks
	bytes   int64
	skipped []string
	table   fileTable
}

func scanTree(ctx context.Context, t Tree, now time.Time) (*scan, error) {
	s := &scan{table: fileTable{Format: 1, Users: map[string]string{}, Groups: map[string]string{}}}
	virtual := meta{mode: fs.ModeDir | 0o700, mtime: now, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	s.root = &node{info: virtual}
	for _, e := range t.Entries {
		if !fs.ValidPath(e.Name) || e.Name == "." || e.Name == manifestName || e.Name == filesName {
			return nil, fmt.Errorf("%q is no name for an entry of a backup", e.Name)
		}
		parent := s.root
		dir, base := path.Split(e.Name)
		for _, part := range strings.Split(strings.TrimSuffix(dir, "/"), "/") {
			if part == "" {
				continue
			}
			i := slices.IndexFunc(parent.children, func(c *node) bool { return c.name == part })
			if i < 0 {
				i = len(parent.children)
				parent.children = append(parent.children, &node{name: part, stored: path.Join(parent.stored, part), info: virtual})
			}
			if parent = parent.children[i]; parent.path != "" || parent.data != nil || parent.stream != nil {
				return nil, fmt.Errorf("entry %q of a backup lies inside entry %q", e.Name, parent.stored)
			}
		}
		if slices.ContainsFunc(parent.children, func(c *node) bool { return c.name == base }) {
			return nil, fmt.Errorf("entry %q of a backup occurs twice", e.Name)
		}
		n := &node{name: base, stored: e.Name, path: e.Path, top: true}
		if e.Path == "" {
			if n.stream = e.Stream; n.stream == nil {
				n.data = append([]byte{}, e.Data...)
			}
			n.info = virtual
			n.info.mode, n.info.size = 0o600, int64(len(e.Data))
			s.files = append(s.files, n)
			s.bytes += n.info.size
		} else {
			info, err := os.Stat(e.Path)
			if err != nil {
				return nil, err
			}
			if keep, err := s.add(ctx, n, info); err != nil {
				return nil, err
			} else if !keep {
				continue
			}
		}
		parent.children = append(parent.children, n)
	}
	s.noteOwner(virtual)
	return s, nil
}

// add fills n from what is on disk, all below it included. It reports false for what
// cannot and need not be kept: sockets and fifos, which a server makes anew.
func (s *scan) add(ctx context.Context, n *node, info fs.FileInfo) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	n.info = metaOf(info)
	switch n.info.mode.Type() {
	case fs.ModeSocket, fs.ModeNamedPipe:
		s.skipped = append(s.skipped, n.stored)
		return false, nil
	case 0:
		st, _ := info.Sys().(*syscall.Stat_t)
		// A quarter missing is no rounding: the file has holes, and gets them back.
		if st != nil && n.info.size > 1<<20 && st.Blocks*512 < n.info.size/4*3 {
			s.table.Sparse = append(s.table.Sparse, n.stored)
		}
		s.files = append(s.files, n)
		s.bytes += n.info.size
	case fs.ModeSymlink:
		target, err := os.Readlink(n.path)
		if err != nil {
			return false, err
		}
		n.data = []byte(target)
		s.files = append(s.files, n)
	case fs.ModeDir:
		entries, err := os.ReadDir(n.path)
		if err != nil {
			return false, err
		}
		for _, e := range entries {
			// Restored, it would be taken for the mark of that restore.
			if n.top && e.Name() == target.IncompleteMarker {
				s.skipped = append(s.skipped, n.stored+"/"+e.Name())
				continue
			}
			info, err := e.Info()
			if err != nil {
				return false, err
			}
			child := &node{name: e.Name(), path: n.path + "/" + e.Name(), stored: n.stored + "/" + e.Name()}
			keep, err := s.add(ctx, child, info)
			if err != nil {
				return false, err
			}
			if keep {
				n.children = append(n.children, child)
			}
		}
	default:
		return false, &respaldo.Error{Kind: respaldo.Refused,
			What: fmt.Sprintf("%s is neither file nor directory (%s)", n.path, n.info.mode.Type()),
			Hint: "devices do not belong into a data directory: move it away"}
	}
	s.noteOwner(n.info)
	return true, nil
}

// noteOwner keeps the names: on the machine of the restore the numbers may mean others.
func (s *scan) noteOwner(m meta) {
	uid, gid := strconv.FormatUint(uint64(m.uid), 10), strconv.FormatUint(uint64(m.gid), 10)
	if _, known := s.table.Users[uid]; !known {
		s.table.Users[uid] = ""
		if u, err := user.LookupId(uid); err == nil {
			s.table.Users[uid] = u.Username
		}
	}
	if _, known := s.table.Groups[gid]; !known {
		s.table.Groups[gid] = ""
		if g, err := user.LookupGroupId(gid); err == nil {
			s.table.Groups[gid] = g.Name
		}
	}
}

// dirEntry is how kopia writes a node down. size may differ from what the directory
// said only for symlinks.
func (n *node) dirEntry(kind snapshot.EntryType) *snapshot.DirEntry {
	return &snapshot.DirEntry{
		Name:        n.name,
		Type:        kind,
		Permissions: snapshot.Permissions(n.info.mode & kfs.ModBits),
		FileSize:    n.info.size,
		ModTime:     kfs.UTCTimestampFromTime(n.info.mtime),
		UserID:      n.info.uid,
		GroupID:     n.info.gid,
	}
}

var errChanged = errors.New("changed while it was read")
