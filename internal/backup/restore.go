package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// RestoreRequest says what goes where.
type RestoreRequest struct {
	ID string // a backup's ID, a prefix of it, "latest", a kept snapshot's name, or "now"
	// Of is the server whose backups are looked among; "" is every server's, for a machine
	// that is to replace another.
	Of string
	To string // becomes the data directory
	// Places maps stored names other than "data" (see respaldo show) to directories;
	// those not named go below To + ".more".
	Places map[string]string
	Force  bool // the targets need not be empty; a running server's directory is refused all the same
}

// Restored is what a restore wrote, and how to start a server on it.
type Restored struct {
	Image   string            `json:"image"`   // the backup's ID, the snapshot's name, or "now"
	Backup  respaldo.Backup   `json:"backup"`  // without an ID where the image is a snapshot
	Targets map[string]string `json:"targets"` // stored name → directory
	Bytes   int64             `json:"bytes"`
	Files   int               `json:"files"`
	Seconds float64           `json:"seconds"`
	// Options are the lines that an option file needs for this data directory, where they
	// differ from the server's defaults.
	Options []string `json:"options"`
	// DumpFiles are set where it was a dump: what to load, and no server runs on them.
	DumpFiles []string `json:"dump_files,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
}

// Restore writes an image into a directory, on disk when it returns. Until it is complete
// the directory carries a marker that says so, and a restore into it can be repeated. A
// kept snapshot, or one taken on the spot, is copied with no repository between.
func (s *Site) Restore(ctx context.Context, request RestoreRequest) (done Restored, err error) {
	op, err := s.beginSide(ctx, "restore")
	if err != nil {
		return done, err
	}
	defer op.close(ctx, &err)
	if request.ID == imageNow || volume.IsName(request.ID) {
		return done, op.restoreSnapshot(ctx, request, &done)
	}
	repository, err := s.Repository(ctx)
	if err != nil {
		return done, err
	}
	defer closeRepo(ctx, repository, &err)

	if done.Backup, err = repository.Find(ctx, request.Of, request.ID); err != nil {
		return done, err
	}
	done.Image = done.Backup.ID
	if done.Backup.Manifest.Dump != nil {
		return done, op.restoreDump(ctx, repository, request, &done)
	}
	if err := op.chooseTargets(request, repository.Folder(), repository.CacheDir(), &done); err != nil {
		return done, err
	}
	return done, op.restoreInto(ctx, request.Force, &done, func(o repo.RestoreOptions) error {
		return repository.Restore(ctx, done.Backup, done.Targets, o, op.midway("restore.writing"))
	})
}

// restoreSnapshot copies an image that lies on a snapshot.
func (op *operation) restoreSnapshot(ctx context.Context, request RestoreRequest, done *Restored) error {
	if request.ID != imageNow { // before anything is mounted
		kept, err := op.loadKept(request.ID)
		if err == nil {
			done.Backup.Manifest = kept.Manifest
			err = op.chooseTargets(request, op.Folder, op.CacheDir, done)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return op.withImage(ctx, imageRequest{Ref: request.ID}, func(ctx context.Context, img openedImage) error {
		tree := treeOf(&img.Manifest, img.Dirs)
		done.Image, done.Backup = img.Name, respaldo.Backup{Manifest: img.Manifest, Start: img.Manifest.Taken}
		if err := op.chooseTargets(request, op.Folder, op.CacheDir, done); err != nil {
			return err
		}
		return op.restoreInto(ctx, request.Force, done, func(o repo.RestoreOptions) error {
			moved := o.Finish
			o.Finish = func() error { // while the mark is still there
				if err := img.Valid(ctx); err != nil {
					return err
				}
				return moved()
			}
			copied, err := repo.Copy(ctx, tree, img.What, done.Targets, o, op.midway("restore.writing"))
			if err == nil {
				done.Backup.Bytes, done.Backup.Files = copied.Bytes, copied.Files
			}
			return err
		})
	})
}

// chooseTargets decides what goes where, and refuses what would harm.
func (op *operation) chooseTargets(request RestoreRequest, folder, cache string, done *Restored) (err error) {
	if done.Targets, err = targets(done.Backup.Manifest, request); err != nil {
		return err
	}
	for _, dir := range slices.Sorted(maps.Values(done.Targets)) {
		if err := op.refuseOurs(dir, folder, cache); err != nil {
			return err
		}
		if err := refuseInUse(dir); err != nil {
			return err
		}
	}
	return nil
}

// restoreInto has the image written and makes it fit for where it lies then.
func (op *operation) restoreInto(ctx context.Context, force bool, done *Restored, write func(repo.RestoreOptions) error) error {
	held, err := op.ledger.Intend(kindTarget, map[string]string{"path": done.Targets[dataName]})
	if err != nil {
		return err
	}
	start := time.Now()
	ledger.Point("restore.write")
	err = write(repo.RestoreOptions{
		Force: force,
		Begin: refuseInUse, // again: what supervises a server may have brought it back since
		Finish: func() error {
			return op.relocate(ctx, done.Backup.Manifest, done.Targets)
		},
	})
	ledger.Point("restore.written")
	if err != nil {
		return joinErrors(contextCause(ctx, err), held.Released()) // the marker stays and the error says so
	}
	done.Bytes, done.Files, done.Seconds = done.Backup.Bytes, done.Backup.Files, time.Since(start).Seconds()
	done.Options = optionsFor(done.Backup.Manifest, done.Targets)
	done.Warnings = slices.Concat(warningsFor(done.Backup.Manifest), keyNotes(done.Backup.Manifest, done.Targets), adviceFor("/", done.Targets))
	op.Report.Step("restored", fmt.Sprintf("%s into %s", done.Image, done.Targets[dataName]))
	return held.Released()
}

// dataName is the data directory's stored name.
const dataName = string(respaldo.DataRole)

// targets decides where each entry at the backup's root goes. Two of them in one directory,
// or one below another, would mix their files.
func targets(m respaldo.Manifest, request RestoreRequest) (map[string]string, error) {
	to, err := filepath.Abs(request.To)
	if err != nil {
		return nil, err
	}
	chosen := map[string]string{}
	for _, p := range m.Layout.Places {
		name := rootName(p)
		switch {
		case name == "" || chosen[name] != "":
			continue
		case name == dataName:
			chosen[name] = to
		case request.Places[name] != "":
			if chosen[name], err = filepath.Abs(request.Places[name]); err != nil {
				return nil, err
			}
		default:
			chosen[name] = filepath.Join(to+".more", name)
		}
		if keep := ownName(m, p); keep != "" && filepath.Base(chosen[name]) != keep {
			chosen[name] = filepath.Join(chosen[name], keep)
		}
	}
	for name := range request.Places {
		if chosen[name] == "" || name == dataName {
			return nil, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("the backup has no place %q besides the data directory", name),
				Hint: "it has " + strings.Join(slices.Sorted(maps.Keys(chosen)), ", ")}
		}
	}
	for a, dirA := range chosen {
		for b, dirB := range chosen {
			if a != b && (dirA == dirB || strings.HasPrefix(dirB, dirA+"/")) {
				return nil, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%s (%s) and %s (%s) would lie in each other", dirA, a, dirB, b),
					Hint: "give each place a directory of its own"}
			}
		}
	}
	return chosen, nil
}

// ownName is what a place's directory must be called wherever it lies, "" for most: MySQL 8
// looks for its redo log in a folder of that name, and for a table that has its file
// elsewhere (DATA DIRECTORY) in one that is called like the database.
func ownName(m respaldo.Manifest, p respaldo.Place) string {
	inData := strings.HasPrefix(p.Path, m.Layout.DataDir+"/") // by a link, which may lead to any name
	switch name := filepath.Base(p.Path); {
	case inData || isSingle(p) || !m.Version.AtLeast(respaldo.MySQL, 8, 0, 0):
	case p.Role == respaldo.RedoRole && name == redoFolder, p.Role == respaldo.TablespaceRole:
		return name
	}
	return ""
}

// rootName is the entry at the root of a backup that holds a place: "option-file" for the
// single file "option-file/my.cnf".
func rootName(p respaldo.Place) string {
	name, _, _ := strings.Cut(p.Stored, "/")
	return name
}

// placeIn is where a stored place lies after its root entry went to a target directory.
func placeIn(targets map[string]string, p respaldo.Place) (string, bool) {
	name, rest, _ := strings.Cut(p.Stored, "/")
	dir, ok := targets[name]
	return filepath.Join(dir, rest), ok && p.Stored != ""
}

// restoredDirs maps the origin's paths to where they were restored.
func restoredDirs(layout respaldo.Layout, targets map[string]string) map[string]string {
	dirs := map[string]string{}
	for _, p := range layout.Places {
		if to, ok := placeIn(targets, p); ok {
			dirs[p.Real] = to
		}
	}
	return dirs
}

func warningsFor(m respaldo.Manifest) []string {
	var warnings []string
	for _, u := range m.Quiesced.Coordinates.Upstream {
		warnings = append(warnings, fmt.Sprintf("this is a replica's data: started as it is, it resumes replication from %s:%d; start it with skip-replica-start (skip-slave-start) to prevent that, and with relay_log_recovery=ON, so that it fetches its relay logs anew from where it had applied them", u.Host, u.Port))
	}
	if !m.Proof.OK {
		warnings = append(warnings, "this image was never proved: check the server's log after starting it")
	}
	return append(warnings, m.Lost...)
}
