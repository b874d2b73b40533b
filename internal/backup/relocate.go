package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
)

// relocate makes restored files fit for where they lie now. InnoDB's redo log names the
// files outside the data directory by the paths that they had: a server started elsewhere
// would not find them or, on the origin's machine, apply the log to the origin's own files.
// So such an image is recovered first, by a private server that sees it at those paths.
func (op *operation) relocate(ctx context.Context, m respaldo.Manifest, targets map[string]string) error {
	if moved := movedFiles(m.Layout, targets); len(moved) > 0 {
		ledger.Point("restore.recover")
		if err := op.recoverAt(ctx, m, restoredDirs(m.Layout, targets)); err != nil {
			return &respaldo.Error{Kind: respaldo.KindOf(err), What: "could not recover the image, which must happen before " + strings.Join(moved, ", ") + " can lie elsewhere", Err: err,
				Hint: "restore on a machine that has the server program, or to the original paths with --place"}
		}
	}
	ledger.Point("restore.relocate")
	return relocate(m.Layout, targets)
}

// movedFiles are the origin's paths of InnoDB files outside the data directory that were
// restored to other ones.
func movedFiles(layout respaldo.Layout, targets map[string]string) (moved []string) {
	for _, p := range layout.Places {
		switch p.Role {
		case respaldo.TablespaceRole, respaldo.UndoRole, respaldo.SystemRole:
			if to, ok := placeIn(targets, p); ok && !p.Inside && to != p.Real {
				moved = append(moved, p.Path)
			}
		}
	}
	return moved
}

// relocate rewrites the paths that a restored data directory carries, so that a server
// started on it reads its own files and never the origin's: symbolic links of databases and
// of MyISAM and Aria tables (DATA DIRECTORY), InnoDB's .isl files, and the indexes of
// binlogs and relay logs. An absolute index entry would make the restored server open, and
// purge, the origin's binlogs.
//
// The directories belong to the server's user by now, who may have put links into them, in
// the backup already or just now. So each is worked on from within, and nothing is opened
// for writing that was there before.
func relocate(layout respaldo.Layout, targets map[string]string) error {
	for name, dir := range targets {
		r := relocation{layout: layout, targets: targets, moves: movesOf(layout, targets)}
		for _, p := range layout.Places {
			if p.Stored == name {
				r.from = p
				break
			}
		}
		if err := r.run(dir); err != nil {
			return err
		}
	}
	return nil
}

// relocation is the work on one target.
type relocation struct {
	layout  respaldo.Layout
	targets map[string]string
	moves   []move
	from    respaldo.Place // what the target was; none for a folder of single files
	root    *os.Root
}

func (r *relocation) run(dir string) (err error) {
	if r.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	defer r.root.Close()
	return fs.WalkDir(r.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Type()&fs.ModeSymlink != 0:
			return r.link(name)
		case d.Type().IsRegular() && (strings.HasSuffix(name, ".isl") || strings.HasSuffix(name, ".index")):
			return r.lines(name)
		}
		return nil
	})
}

// move is one directory of the origin and where it lies now.
type move struct{ from, to string }

// movesOf lists the moves, longer origins first in effect: rewrite takes the longest match.
func movesOf(layout respaldo.Layout, targets map[string]string) []move {
	var moves []move
	for _, p := range layout.Places {
		to, ok := placeIn(targets, p)
		if !ok {
			continue
		}
		for _, from := range []string{p.Path, p.Real} {
			moves = append(moves, move{from: filepath.Clean(from), to: to})
		}
	}
	return moves
}

// rewrite returns path as it is called now, and whether that differs.
func rewrite(path string, moves []move) (string, bool) {
	renamed, _ := longest(path, moves)
	return renamed, renamed != path
}

// longest returns path as it is called now, and whether any move is about it.
func longest(path string, moves []move) (string, bool) {
	best := move{}
	for _, m := range moves {
		if (path == m.from || strings.HasPrefix(path, m.from+"/")) && len(m.from) > len(best.from) {
			best = m
		}
	}
	if best.from == "" {
		return path, false
	}
	return best.to + strings.TrimPrefix(path, best.from), true
}

func (r *relocation) link(name string) error {
	target, err := r.root.Readlink(name)
	if err != nil {
		return err
	}
	renamed, changed := r.leads(name, target)
	if !changed {
		return nil
	}
	info, err := r.root.Lstat(name)
	if err != nil {
		return err
	}
	temp := temporary(name)
	if err := r.root.Symlink(renamed, temp); err != nil {
		return err
	}
	// What is given away is the link that was just made, whatever has its name by now.
	made, err := r.root.OpenFile(temp, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer made.Close()
	if is, err := made.Stat(); err != nil || is.Mode()&fs.ModeSymlink == 0 {
		return errors.Join(err, fmt.Errorf("%s changed while it was made", filepath.Join(r.root.Name(), temp)))
	}
	uid, gid := ownerOf(info)
	if err := unix.Fchownat(int(made.Fd()), "", uid, gid, unix.AT_EMPTY_PATH); err != nil && os.Geteuid() == 0 {
		return err // others cannot give files away, and keep them
	}
	return r.root.Rename(temp, name)
}

// leads returns where a link must lead now. The origin's server knew a link of a database or
// a table by the link's own path, which says what it led to over however many others. Those
// that stay inside what was restored keep working as they are.
func (r *relocation) leads(name, target string) (string, bool) {
	if r.from.Stored == "" {
		return target, false
	}
	for _, p := range r.layout.Places {
		if p.Path != filepath.Join(r.from.Path, name) && p.Path != filepath.Join(r.from.Real, name) {
			continue
		}
		if to, ok := placeIn(r.targets, p); ok {
			return to, to != target
		}
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(r.from.Real, filepath.Dir(name), target)
		if strings.HasPrefix(target+"/", r.from.Real+"/") {
			return target, false
		}
	}
	return rewrite(filepath.Clean(target), r.moves)
}

// lines rewrites a small text file in which each line is a path. A file in which some line
// is not printable is no such file and stays as it is.
func (r *relocation) lines(name string) error {
	const largest = 1 << 20
	f, err := r.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > largest {
		return err
	}
	content, err := io.ReadAll(f)
	if err != nil || bytes.IndexByte(content, 0) >= 0 {
		return err
	}
	lines := strings.Split(string(content), "\n")
	any := false
	for i, line := range lines {
		renamed, changed := rewrite(line, r.moves)
		lines[i], any = renamed, any || changed
	}
	if !any {
		return nil
	}
	temp := temporary(name)
	if err := r.write(temp, strings.Join(lines, "\n"), info); err != nil {
		return err
	}
	return r.root.Rename(temp, name)
}

// write makes a new file with the owner and mode of another.
func (r *relocation) write(name, content string, like fs.FileInfo) error {
	f, err := r.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	uid, gid := ownerOf(like)
	if failed := f.Chown(uid, gid); failed != nil && os.Geteuid() == 0 {
		err = errors.Join(err, failed)
	}
	return errors.Join(err, f.Chmod(like.Mode().Perm()), f.Sync(), f.Close())
}

func ownerOf(info fs.FileInfo) (uid, gid int) {
	stat := info.Sys().(*syscall.Stat_t)
	return int(stat.Uid), int(stat.Gid)
}

// temporary is a name beside another that nobody can have guessed.
func temporary(name string) string {
	return filepath.Join(filepath.Dir(name), ".respaldo-"+rand.Text())
}
