package volume

import (
	"context"
	"errors"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Leftovers lists all snapshots of ours on this machine for a server ("" is every
// server), kept or not, clones and half-made ones included, oldest first. It looks at
// LVM's tags and at every Btrfs filesystem that is mounted. What could be listed is
// returned beside an error.
func (s *System) Leftovers(ctx context.Context, server string) ([]Snapshot, error) {
	found, err := s.lvmSnapshots(ctx, "@"+Tag)
	if run.NotInstalled(err) { // no LVM, nothing in it
		err = nil
	}
	more, err2 := s.btrfsSnapshots(ctx)
	var list []Snapshot
	for _, snap := range append(found, more...) {
		if server == "" || snap.Describe().Server == server {
			list = append(list, snap)
		}
	}
	sortSnapshots(list)
	return list, errors.Join(err, err2)
}

// Lookup finds a snapshot of ours by its name, or returns an error of kind NotFound.
func (s *System) Lookup(ctx context.Context, name string) (Snapshot, error) {
	all, err := s.Leftovers(ctx, "")
	for _, snap := range all {
		if snap.Describe().Name == name {
			return snap, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, &respaldo.Error{Kind: respaldo.NotFound, What: "there is no snapshot of respaldo's named " + name, Hint: "respaldo snapshot list shows them"}
}
