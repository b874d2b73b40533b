package backup

import (
	"context"
	"errors"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// PruneRequest says how far to go.
type PruneRequest struct {
	DryRun   bool // say what would go, and let nothing go
	TakeOver bool // make this host the owner of the repository's maintenance
}

// Pruned is what retention let go and kept, and what maintenance gave back.
type Pruned struct {
	Kept        []repo.Kept       `json:"kept"`
	Forgotten   []respaldo.Backup `json:"forgotten"`
	DryRun      bool              `json:"dry_run,omitempty"`
	Maintenance *repo.Maintenance `json:"maintenance,omitempty"`
	// MaintenanceBy is the host that owns the repository's maintenance, when it is not this one.
	MaintenanceBy string `json:"maintenance_by,omitempty"`
}

// Prune lets backups of this host's server go by its retention policy and has the
// repository drop what nothing refers to any more; that keeps kopia's safety margins,
// since other hosts may be writing.
func (s *Site) Prune(ctx context.Context, request PruneRequest) (done Pruned, err error) {
	op, err := s.begin(ctx, "prune")
	if err != nil {
		return done, err
	}
	defer op.close(ctx, &err)
	repository, err := s.Repository(ctx)
	if err != nil {
		return done, err
	}
	defer closeRepo(ctx, repository, &err)

	done.DryRun = request.DryRun
	if done.Kept, done.Forgotten, err = op.judge(ctx, repository); err != nil || request.DryRun {
		return done, err
	}
	if err := repository.Forget(ctx, ids(done.Forgotten)...); err != nil {
		return done, err
	}
	maintained, err := repository.Maintain(ctx, repo.MaintainOptions{Full: true, TakeOver: request.TakeOver})
	if errors.Is(err, repo.ErrNotOwner) {
		done.MaintenanceBy = maintained.Owner
		s.Report.Warn(err.Error())
		return done, nil // letting go was ours to do, and is done
	}
	if err != nil {
		return done, err
	}
	done.Maintenance = &maintained
	return done, nil
}

// retain applies the policy after a backup, without the maintenance that may take hours.
// Failing to is no failure of the backup, which is safe by then.
func (op *operation) retain(ctx context.Context, r *repo.Repo) []string {
	_, forget, err := op.judge(ctx, r)
	if err == nil {
		err = r.Forget(ctx, ids(forget)...)
	}
	if err != nil {
		op.Report.Warn("the backup is safe, but old ones could not be let go: " + err.Error())
		return nil
	}
	// Tidies the index, to which every backup adds. Another host's business where it owns that.
	if _, err := r.Maintain(ctx, repo.MaintainOptions{}); err != nil && !errors.Is(err, repo.ErrNotOwner) {
		op.Report.Warn("the backup is safe, but the repository could not be tidied: " + err.Error())
	}
	return ids(forget)
}

// judge splits this host's backups of this server by the policy.
func (op *operation) judge(ctx context.Context, r *repo.Repo) (keep []repo.Kept, forget []respaldo.Backup, err error) {
	all, err := r.List(ctx, op.Server)
	if err != nil {
		return nil, nil, err
	}
	var ours []respaldo.Backup
	for _, b := range all {
		if b.Manifest.Host == op.Host {
			ours = append(ours, b)
		}
	}
	keep, forget = repo.Retain(op.Keep, ours)
	return keep, forget, nil
}

func ids(backups []respaldo.Backup) []string {
	var list []string
	for _, b := range backups {
		list = append(list, b.ID)
	}
	return list
}
