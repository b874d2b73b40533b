package backup

import (
	"context"
	"errors"
	"slices"
	"strings"

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
	repository, err := s.Repository(ctx)
	if err != nil {
		return done, err
	}
	defer closeRepo(ctx, repository, &err)
	if done, err = s.letGo(ctx, repository, request.DryRun); err != nil || request.DryRun {
		return done, err
	}
	// Hours, perhaps, in which the nightly backup must be able to run.
	maintained, err := repository.Maintain(ctx, repo.MaintainOptions{Full: true, TakeOver: request.TakeOver})
	if errors.Is(err, repo.ErrNotOwner) {
		done.MaintenanceBy = maintained.Owner
		s.Report.Warn(strings.Join(append([]string{err.Error()}, respaldo.HintsOf(err)...), "; "))
		return done, nil // letting go was ours to do, and is done
	}
	if err != nil {
		return done, err
	}
	done.Maintenance = &maintained
	return done, nil
}

// letGo forgets what the policy does not keep, or only says so.
func (s *Site) letGo(ctx context.Context, r *repo.Repo, dryRun bool) (done Pruned, err error) {
	op, err := s.begin(ctx, "prune")
	if err != nil {
		return done, err
	}
	defer op.close(ctx, &err)
	done.DryRun = dryRun
	if done.Kept, done.Forgotten, err = op.judge(ctx, r); err != nil || dryRun {
		return done, err
	}
	return done, r.Forget(ctx, ids(done.Forgotten)...)
}

// retain applies the policy after a backup, without the maintenance that may take hours.
// Failing to is no failure of the backup, which is safe by then.
func (op *operation) retain(ctx context.Context, r *repo.Repo, made respaldo.Backup) []string {
	_, forget, err := op.judge(ctx, r)
	// A clock that was wrong once has dated backups into the future; next to them the one
	// just made looks old.
	forget = slices.DeleteFunc(forget, func(b respaldo.Backup) bool { return b.ID == made.ID })
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

// judge splits the backups of this very server by the policy.
func (op *operation) judge(ctx context.Context, r *repo.Repo) (keep []repo.Kept, forget []respaldo.Backup, err error) {
	all, err := r.List(ctx, op.Server)
	if err != nil {
		return nil, nil, err
	}
	keep, forget = repo.Retain(op.Keep, op.ours(all))
	return slices.Concat([]repo.Kept{}, keep), slices.Concat([]respaldo.Backup{}, forget), nil // [] in JSON, never null
}

// ours are the backups of this very server: not those of another host's of the same name.
func (s *Site) ours(all []respaldo.Backup) (ours []respaldo.Backup) {
	for _, b := range all {
		if m := b.Manifest; m.ServerID == s.ServerID || m.ServerID == "" && m.Host == s.Host {
			ours = append(ours, b)
		}
	}
	return ours
}

func ids(backups []respaldo.Backup) []string {
	var list []string
	for _, b := range backups {
		list = append(list, b.ID)
	}
	return list
}
