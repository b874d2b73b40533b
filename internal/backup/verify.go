package backup

import (
	"context"
	"fmt"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// VerifyRequest says which backups are verified and how.
type VerifyRequest struct {
	ID    string // empty: all of this very server, as prune knows it
	Start bool   // also restore it into a working directory and prove it there
}

// Verification is what became of one backup.
type Verification struct {
	Backup   respaldo.Backup `json:"backup"`
	OK       bool            `json:"ok"`
	Damaged  bool            `json:"damaged"` // not OK may also mean that it could not be started here
	Bytes    int64           `json:"bytes"`   // read back
	Files    int             `json:"files"`
	Problems []string        `json:"problems,omitempty"`
	Proof    *respaldo.Proof `json:"proof,omitempty"`
}

// Verify reads backups back from the repository, every byte, and starts them if asked. It
// goes on after a bad one and fails at the end, with the results of all.
func (s *Site) Verify(ctx context.Context, request VerifyRequest) (results []Verification, err error) {
	op := &operation{Site: s, scope: s.Server, volumes: s.volumes()}
	if request.Start { // reading alone is in nobody's way, and may take the night
		if op, err = s.beginSide(ctx, "verify"); err != nil {
			return nil, err
		}
		defer op.close(ctx, &err)
	}
	repository, err := s.Repository(ctx)
	if err != nil {
		return nil, err
	}
	defer closeRepo(ctx, repository, &err)

	chosen, err := op.chosen(ctx, repository, request.ID)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, b := range chosen {
		v, verifyErr := op.verifyOne(ctx, repository, b, request.Start)
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
		results = append(results, v)
		failed = joinErrors(failed, verifyErr)
	}
	return results, failed
}

func (op *operation) chosen(ctx context.Context, r *repo.Repo, id string) ([]respaldo.Backup, error) {
	if id != "" {
		b, err := r.Find(ctx, op.Server, id)
		return []respaldo.Backup{b}, err
	}
	listed, err := r.List(ctx, op.Server)
	if err != nil {
		return nil, err
	}
	ours := op.ours(listed)
	if len(ours) == 0 {
		hint := "make one: respaldo backup --server " + op.Server
		if len(listed) > 0 {
			hint += "; another host's is verified by its ID, see respaldo list"
		}
		return nil, &respaldo.Error{Kind: respaldo.NotFound, What: "there is no backup of server " + op.Server + " to verify", Hint: hint}
	}
	var chosen []respaldo.Backup
	for _, b := range ours {
		whole, err := r.Find(ctx, op.Server, b.ID)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, whole)
	}
	return chosen, nil
}

func (op *operation) verifyOne(ctx context.Context, r *repo.Repo, b respaldo.Backup, start bool) (Verification, error) {
	v := Verification{Backup: b}
	read, err := r.Verify(ctx, b, op.Report.Progress)
	v.Bytes, v.Files, v.Damaged = read.Bytes, read.Files, len(read.Damaged) > 0
	for _, d := range read.Damaged {
		v.Problems = append(v.Problems, fmt.Sprintf("%s: %v", d.Path, d.Err))
	}
	if err == nil {
		op.Report.Step("read back", b.ID)
		if start && b.Manifest.Dump == nil { // a dump is read back, and that is all
			err = op.proveFromRepository(ctx, r, b, &v)
		}
	}
	if err != nil && len(v.Problems) == 0 {
		v.Problems = append(v.Problems, err.Error())
	}
	v.OK = err == nil
	return v, err
}

// proveFromRepository restores a backup into a working directory and starts it there: the
// only proof that includes the repository.
func (op *operation) proveFromRepository(ctx context.Context, r *repo.Repo, b respaldo.Backup, v *Verification) error {
	return op.inScratch(ctx, op.workDir(), "restored", func(dir string) error {
		img, err := op.restoreImage(ctx, r, b, dir)
		if err != nil {
			return err
		}
		proof, err := op.proveAt(ctx, b.Manifest, img.Dirs)
		v.Proof = &proof
		return err
	})
}
