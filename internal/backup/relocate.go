package backup

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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

// relocate rewrites the absolute paths that a restored data directory carries, so that a
// server started on it reads its own files and never the origin's: symbolic links of
// databases and of MyISAM and Aria tables (DATA DIRECTORY), InnoDB's .isl files, and the
// indexes of binlogs and relay logs. An absolute index entry would make the restored server
// open, and purge, the origin's binlogs.
func relocate(layout respaldo.Layout, targets map[string]string) error {
	moves := movesOf(layout, targets)
	for _, root := range targets {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.Type()&fs.ModeSymlink != 0:
				return relocateLink(path, moves)
			case d.Type().IsRegular() && (strings.HasSuffix(path, ".isl") || strings.HasSuffix(path, ".index")):
				return relocateLines(path, moves)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
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
	best := move{}
	for _, m := range moves {
		if (path == m.from || strings.HasPrefix(path, m.from+"/")) && len(m.from) > len(best.from) {
			best = m
		}
	}
	if best.from == "" {
		return path, false
	}
	renamed := best.to + strings.TrimPrefix(path, best.from)
	return renamed, renamed != path
}

func relocateLink(path string, moves []move) error {
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	renamed, changed := rewrite(filepath.Clean(target), moves)
	if !changed {
		return nil
	}
	temp := path + ".respaldo"
	if err := os.Symlink(renamed, temp); err != nil {
		return err
	}
	if err := keepOwner(path, temp); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// relocateLines rewrites a small text file in which each line is a path. A file in which
// some line is not printable is no such file and stays as it is.
func relocateLines(path string, moves []move) error {
	const largest = 1 << 20
	info, err := os.Stat(path)
	if err != nil || info.Size() > largest {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil || bytes.IndexByte(content, 0) >= 0 {
		return err
	}
	lines := strings.Split(string(content), "\n")
	any := false
	for i, line := range lines {
		renamed, changed := rewrite(line, moves)
		lines[i], any = renamed, any || changed
	}
	if !any {
		return nil
	}
	temp := path + ".respaldo"
	if err := writeSynced(temp, []byte(strings.Join(lines, "\n")), info.Mode().Perm()); err != nil {
		return err
	}
	if err := keepOwner(path, temp); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
