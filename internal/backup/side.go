package backup

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// beginSide begins an operation that lives beside the others on its server: a nightly backup
// does not wait for a server that has been served since noon. It has a scope of its own, so
// that nobody takes what it holds for leftovers while it lives.
func (s *Site) beginSide(ctx context.Context, name string) (*operation, error) {
	l, err := ledger.OpenSide(s.StateDir, s.Server, name, s.RunDir)
	if err != nil {
		return nil, err
	}
	op := &operation{Site: s, scope: l.Server(), volumes: s.volumes(), ledger: l}
	swept := Swept{}
	if err := op.sweepSides(ctx, &swept); err != nil {
		s.Report.Warn(err.Error() + "; see respaldo cleanup")
	}
	s.reportSwept(swept)
	return op, nil
}

// alone runs do while no other operation works on the server itself: two must not lock it
// at once. What do acquires is the side's.
func (op *operation) alone(ctx context.Context, do func(main *operation) error) (err error) {
	if op.scope == op.Server {
		return do(op)
	}
	main, err := op.begin(ctx, op.ledger.Operation())
	if err != nil {
		return err
	}
	defer main.close(ctx, &err)
	return do(main)
}

// sweepAll sweeps what dead runs of the server left, sides included.
func (op *operation) sweepAll(ctx context.Context) (Swept, error) {
	swept, err := op.sweep(ctx)
	return swept, joinErrors(err, op.sweepSides(ctx, &swept))
}

// sweepSides sweeps the sides in which nobody lives.
func (op *operation) sweepSides(ctx context.Context, swept *Swept) error {
	scopes, failed := op.sides()
	for _, scope := range scopes {
		if scope != op.scope {
			failed = joinErrors(failed, op.sweepSide(ctx, scope, swept))
		}
	}
	return failed
}

func (op *operation) sweepSide(ctx context.Context, scope string, swept *Swept) error {
	l, err := ledger.Open(op.StateDir, scope, "cleanup", op.RunDir)
	if respaldo.KindOf(err) == respaldo.Busy {
		return nil // it lives
	}
	if err != nil {
		return err
	}
	dead := &operation{Site: op.Site, scope: scope, volumes: op.volumes, ledger: l}
	found, err := dead.sweep(ctx)
	swept.Removed = append(swept.Removed, found.Removed...)
	swept.Incomplete = append(swept.Incomplete, found.Incomplete...)
	if err != nil {
		swept.Harmless = swept.Harmless && found.Harmless
	}
	dead.leave()
	return joinErrors(err, l.Close())
}

// leave removes the empty directories of a side, which nobody comes back to.
func (op *operation) leave() {
	if op.scope == op.Server {
		return
	}
	for _, dir := range []string{op.workDir(), op.socketDir(), op.mountDir(), op.servedDir()} {
		os.Remove(dir) // stays while something is left in it
	}
}

// sides are the server's sides that have left any trace on this machine, alive or dead:
// their files, and should those be lost, what they hold. Snapshots are looked for by what
// sweeps the server itself: asking for them takes longer than all the rest.
func (op *operation) sides() ([]string, error) {
	scopes, err := ledger.Sides(op.Server, op.StateDir, op.RunDir)
	for _, dir := range []string{op.workDir(), op.socketDir(), op.mountDir(), op.servedDir()} {
		entries, readErr := os.ReadDir(filepath.Dir(dir))
		if readErr != nil && !os.IsNotExist(readErr) {
			err = joinErrors(err, readErr)
		}
		for _, e := range entries {
			scopes = append(scopes, e.Name())
		}
	}
	instances, findErr := mysql.FindInstances("")
	for _, i := range instances {
		scopes = append(scopes, i.Server)
	}
	for _, snapshot := range op.seen {
		scopes = append(scopes, snapshot.Describe().Server)
	}
	scopes = slices.DeleteFunc(scopes, func(scope string) bool { return !ledger.SideOf(scope, op.Server) })
	slices.Sort(scopes)
	return slices.Compact(scopes), joinErrors(err, findErr)
}

// usedBy names the living operation that uses a kept snapshot, as people know it; "" if
// none does.
func (s *Site) usedBy(name string) (string, error) {
	scopes, err := ledger.Sides(s.Server, s.StateDir)
	if err != nil {
		return "", err
	}
	for _, scope := range scopes {
		entries, err := ledger.Peek(s.StateDir, scope)
		if err != nil {
			return "", err
		}
		uses := slices.ContainsFunc(entries, func(e ledger.Entry) bool { return e.Kind == kindUse && e.Attrs["name"] == name })
		if uses && ledger.Living(s.StateDir, scope) {
			return sideName(scope), nil
		}
	}
	return "", nil
}

// refuseUsed refuses to take a kept snapshot away from under somebody.
func (op *operation) refuseUsed(d respaldo.Snapshot) error {
	user, err := op.usedBy(d.Name)
	if err != nil || user == "" {
		return err
	}
	e := &respaldo.Error{Kind: respaldo.Busy, What: "the snapshot " + d.Name + " is in use by " + user, Hint: "wait for that to end, or interrupt it"}
	if strings.HasPrefix(user, "serve-") {
		e.What, e.Hint = "the snapshot "+d.Name+" is served as "+user, "respaldo stop "+user
	}
	return e
}
