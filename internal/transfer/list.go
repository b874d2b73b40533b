package transfer

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// Root is a directory or file to be sent, and its name at the receiver, with slashes. What
// comes before the first slash decides into which target it goes.
type Root struct {
	Name string
	Path string // a symlink here is followed; those below are sent as symlinks
}

// Entry is a directory, symlink or file as it is to be at the receiver.
type Entry struct {
	Name    string      `json:"name"`
	Mode    fs.FileMode `json:"mode"`
	Size    int64       `json:"size,omitempty"`
	ModTime int64       `json:"mtime"` // nanoseconds
	UID     uint32      `json:"uid"`
	GID     uint32      `json:"gid"`
	Link    string      `json:"link,omitempty"`
	Sparse  bool        `json:"sparse,omitempty"`

	path string
}

// Listing is everything that is to be sent.
type Listing struct {
	Entries []Entry // directories before what they hold
	Bytes   int64   // of the files
	Files   int
	Users   map[string]string // names by number
	Groups  map[string]string
	Skipped []string // sockets and fifos, which a server makes anew
}

// List looks through what is to be sent.
func List(ctx context.Context, roots []Root) (*Listing, error) {
	l := &Listing{Users: map[string]string{}, Groups: map[string]string{}}
	for _, r := range roots {
		if !fs.ValidPath(r.Name) || r.Name == "." {
			return nil, fmt.Errorf("%q is no name for what is sent", r.Name)
		}
		info, err := os.Stat(r.Path)
		if err != nil {
			return nil, err
		}
		if err := l.add(ctx, r.Name, r.Path, info, true); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Listing) add(ctx context.Context, name, at string, info fs.FileInfo, top bool) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	stat := info.Sys().(*syscall.Stat_t)
	e := Entry{Name: name, Mode: info.Mode(), ModTime: info.ModTime().UnixNano(), UID: stat.Uid, GID: stat.Gid, path: at}
	switch info.Mode().Type() {
	case fs.ModeSocket, fs.ModeNamedPipe:
		l.Skipped = append(l.Skipped, name)
		return nil
	case 0:
		e.Size = info.Size()
		e.Sparse = e.Size > 1<<20 && stat.Blocks*512 < e.Size/4*3 // a quarter missing is no rounding
		l.Bytes += e.Size
		l.Files++
	case fs.ModeSymlink:
		link, err := os.Readlink(at)
		if err != nil {
			return err
		}
		e.Link = link
	case fs.ModeDir:
		l.Entries = append(l.Entries, e)
		l.noteOwner(e)
		children, err := os.ReadDir(at)
		if err != nil {
			return err
		}
		for _, c := range children {
			if top && (c.Name() == target.IncompleteMarker || c.Name() == target.LostFound) {
				l.Skipped = append(l.Skipped, path.Join(name, c.Name()))
				continue
			}
			info, err := c.Info()
			if err != nil {
				return err
			}
			if err := l.add(ctx, name+"/"+c.Name(), at+"/"+c.Name(), info, false); err != nil {
				return err
			}
		}
		return nil
	default:
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is neither file nor directory (%s)", at, info.Mode().Type()),
			Hint: "devices do not belong into a data directory: move it away"}
	}
	l.Entries = append(l.Entries, e)
	l.noteOwner(e)
	return nil
}

// noteOwner keeps the names: on the other node the numbers may mean others.
func (l *Listing) noteOwner(e Entry) {
	uid, gid := strconv.FormatUint(uint64(e.UID), 10), strconv.FormatUint(uint64(e.GID), 10)
	if _, known := l.Users[uid]; !known {
		l.Users[uid] = ""
		if u, err := user.LookupId(uid); err == nil {
			l.Users[uid] = u.Username
		}
	}
	if _, known := l.Groups[gid]; !known {
		l.Groups[gid] = ""
		if g, err := user.LookupGroupId(gid); err == nil {
			l.Groups[gid] = g.Name
		}
	}
}

// batches cuts the files into what is asked for in one round trip.
func (l *Listing) batches() [][]piece {
	var all [][]piece
	var batch []piece
	size := int64(0)
	close := func() {
		if len(batch) > 0 {
			all = append(all, batch)
		}
		batch, size = nil, 0
	}
	for _, e := range l.Entries {
		if !e.Mode.IsRegular() {
			continue
		}
		for offset := int64(0); offset < e.Size; offset += pieceSize {
			p := piece{Name: e.Name, Offset: offset, Length: min(pieceSize, e.Size-offset), Sparse: e.Sparse, path: e.path}
			if size+p.Length > pieceSize || len(batch) == batchPieces {
				close()
			}
			batch = append(batch, p)
			size += p.Length
		}
	}
	close()
	return all
}

// rootName is what decides the target of a name.
func rootName(name string) string {
	root, _, _ := strings.Cut(name, "/")
	return root
}
