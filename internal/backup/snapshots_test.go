package backup

import (
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// described is a snapshot of which nothing but the description is asked.
type described struct {
	volume.Snapshot
	d respaldo.Snapshot
}

func (s described) Describe() respaldo.Snapshot { return s.d }

// The policy counts what was taken by it: not what a rollback has undone, of which there is
// no other copy, and nothing that is to expire.
func TestPolicyLeavesStatesOfRollbacks(t *testing.T) {
	op := &operation{Site: &Site{StateDir: t.TempDir(), KeepSnapshots: repo.Policy{Last: 1}}}
	var all []volume.Snapshot
	for i, name := range []string{"state", "old", "passing", "new"} {
		d := respaldo.Snapshot{Name: name, Kept: true, Created: time.Now().Add(time.Duration(i-10) * time.Hour)}
		kept := keptManifest{Manifest: respaldo.Manifest{Format: respaldo.ManifestFormat}}
		switch name {
		case "state":
			kept.StateBefore = "old"
		case "passing":
			d.Expires = time.Now().Add(time.Hour)
		}
		if err := op.saveManifest(name, kept); err != nil {
			t.Fatal(err)
		}
		all = append(all, described{d: d})
	}
	if why := op.unwanted(all); len(why) != 1 || why["old"] == "" {
		t.Errorf("would go: %v", why)
	}
}
