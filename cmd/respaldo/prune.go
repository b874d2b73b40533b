package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newPruneCmd(a *app) *cobra.Command {
	var request backup.PruneRequest
	cmd := &cobra.Command{
		Use:     "prune",
		GroupID: groupCare,
		Short:   "Let old backups go, and give their space back",
		Long: `Lets backups of this host's server go that the retention policy ([keep] in the
configuration) does not keep. The newest proved backup is always kept. Then the
repository drops what nothing refers to any more. For the sake of other hosts that may be
writing, nothing younger than a day goes and nothing that was not found unused twice, so
the space comes back with the second or third daily run.

One host at a time looks after a repository; on another one the backups go, and their
space comes back when that host prunes.`,
		Example: `  respaldo prune --dry-run
  respaldo prune --server shop`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := a.site()
			if err != nil {
				return err
			}
			done, err := site.Prune(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.show(done, func(p *page) { showPruned(p, done) })
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&request.DryRun, "dry-run", "n", false, "say what would go, and let nothing go")
	f.BoolVar(&request.TakeOver, "take-over", false, "make this host the one that looks after the repository")
	return cmd
}

func showPruned(p *page, done backup.Pruned) {
	t := newTable(left("BACKUP"), left("TAKEN"), right("SIZE"), flexible("KEPT AS"))
	for _, b := range done.Forgotten {
		t.row(b.ID[:min(shortID, len(b.ID))], formatTime(b.Manifest.Taken), backup.FormatBytes(b.Bytes), "-")
	}
	for _, k := range done.Kept {
		t.row(k.Backup.ID[:min(shortID, len(k.Backup.ID))], formatTime(k.Backup.Manifest.Taken), backup.FormatBytes(k.Backup.Bytes), strings.Join(k.Reasons, ", "))
	}
	p.table(t)
	verb := "let go"
	if done.DryRun {
		verb = "would go"
	}
	p.printf("\n%d kept, %d %s.", len(done.Kept), len(done.Forgotten), verb)
	switch m := done.Maintenance; {
	case m != nil:
		p.printf(" The repository has %s; %s were given back.", backup.FormatBytes(m.After), backup.FormatBytes(m.Freed))
	case done.MaintenanceBy != "":
		p.printf(" Space comes back when %s prunes.", done.MaintenanceBy)
	}
	p.printf("\n")
}

func formatCount(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = fmt.Sprintf("%s,%s", s[:i], s[i:])
	}
	return s
}
