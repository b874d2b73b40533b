package repo

import (
	"context"
	"errors"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"

	"github.com/respaldo-backup/respaldo"
)

// ErrNotOwner is what Maintain fails with on a repository that another host looks after.
var ErrNotOwner = errors.New("another host owns the maintenance")

// Forget removes backups from the list, all or none. Their data stays until Maintain finds
// that nothing has referred to it for long enough. IDs are whole ones; one that is gone
// already is no error, what is not a backup of ours is.
func (r *Repo) Forget(ctx context.Context, ids ...string) error {
	err := r.write(ctx, "forget", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		if err := w.Refresh(ctx); err != nil {
			return err
		}
		for _, id := range ids {
			var man snapshot.Manifest
			md, err := w.GetManifest(ctx, manifest.ID(id), &man)
			if errors.Is(err, manifest.ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
			if md.Labels[manifest.TypeLabelKey] != snapshot.ManifestType || md.Labels[tagFormat] == "" {
				return &respaldo.Error{Kind: respaldo.Refused, What: id + " is not a backup of respaldo",
					Hint: "respaldo list shows what is"}
			}
			if err := w.DeleteManifest(ctx, manifest.ID(id)); err != nil {
				return err
			}
		}
		return nil
	})
	return r.where.explain("cannot forget backups in the repository", err)
}

// MaintainOptions say how much to do.
type MaintainOptions struct {
	// Full looks for data that nothing refers to; without it only indexes are tidied.
	Full bool
	// TakeOver makes this host the owner. Two owners at once are safe with each other's
	// backups only if their clocks agree.
	TakeOver bool
}

// Maintenance is what Maintain did.
type Maintenance struct {
	Owner   string  `json:"owner"`  // user@host in charge of it
	Before  int64   `json:"before"` // bytes in the repository
	After   int64   `json:"after"`
	Freed   int64   `json:"freed"` // bytes deleted, less what replaced them; 0 when the repository grew
	Seconds float64 `json:"seconds"`
}

// Maintain tidies the repository while other hosts may be writing into it. For their
// sake nothing younger than a day goes, and what one run finds unused goes only in a later
// one, hours after it: the space of forgotten backups comes back with the second or third
// daily run. It fails with ErrNotOwner on a host that is not in charge of it.
func (r *Repo) Maintain(ctx context.Context, o MaintainOptions) (Maintenance, error) {
	report := Maintenance{Owner: r.maintainer()}
	const what = "cannot maintain the repository"
	begin := time.Now()
	var err error
	if report.Before, err = r.size(ctx); err != nil {
		return report, r.where.explain(what, err)
	}
	err = r.write(ctx, "maintain", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		if err := w.Refresh(ctx); err != nil { // another host may have taken over
			return err
		}
		params, err := maintenance.GetParams(ctx, w)
		if err != nil {
			return err
		}
		if o.TakeOver && params.Owner != report.Owner {
			params.Owner = report.Owner
			if err := maintenance.SetParams(ctx, w, params); err != nil {
				return err
			}
			if err := w.Flush(ctx); err != nil {
				return err
			}
		}
		mode := maintenance.ModeQuick
		if o.Full {
			mode = maintenance.ModeFull
		}
		err = snapshotmaintenance.Run(ctx, w, mode, false, maintenance.SafetyFull)
		var other maintenance.NotOwnedError
		if errors.As(err, &other) {
			report.Owner = other.Owner
			return &respaldo.Error{Kind: respaldo.RepoFailed,
				What: "the maintenance of " + r.where.name + " belongs to " + ownerName(other.Owner),
				Hint: "run respaldo prune there, or take it over for good with --take-over", Err: ErrNotOwner}
		}
		return err
	})
	if err != nil {
		return report, r.where.explain(what, err)
	}
	var temporary int64
	if r.where.kind == folder && o.Full {
		if temporary, err = removeTemporary(r.where.path, begin.Add(-maintenance.SafetyFull.PackDeleteMinAge)); err != nil {
			return report, r.where.explain(what, err)
		}
	}
	if report.After, err = r.size(ctx); err != nil {
		return report, r.where.explain(what, err)
	}
	report.Freed = max(0, report.Before-report.After) + temporary
	report.Seconds = time.Since(begin).Seconds()
	return report, nil
}

func ownerName(owner string) string {
	if owner == "" {
		return "nobody yet"
	}
	return owner
}

// size is the sum of all blobs, as the storage lists them.
func (r *Repo) size(ctx context.Context) (int64, error) {
	var sum int64
	err := r.rep.BlobReader().ListBlobs(withLog(ctx, r.opts.Log), "", func(b blob.Metadata) error {
		sum += b.Length
		return nil
	})
	return sum, err
}
