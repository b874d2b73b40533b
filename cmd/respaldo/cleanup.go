package main

import (
	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newCleanupCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "cleanup",
		GroupID: groupCare,
		Short:   "Remove what a killed run has left behind",
		Long: `Resumes volumes that a killed command left suspended, ends private servers, and removes
mounts, snapshots and working files of operations that ended abruptly. The ledger says
what they held; tags on the volumes and names on the disk say it again. Nothing is touched
that does not say that it is respaldo's. Snapshots kept on purpose stay, except when their
--ttl has passed, when one on thick LVM has overflowed, and when a thin pool is above its
threshold: then the oldest go until it is below. A rollback that ended abruptly is undone,
or finished if the volume had begun to change, and the server started.

Every operation does this when it begins; the command is for those who do not want to
wait for the next one.`,
		Example: `  respaldo cleanup
  respaldo cleanup --server shop --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := a.site()
			if err != nil {
				return err
			}
			swept, err := site.Cleanup(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(swept, func(p *page) { showSwept(p, swept) })
		},
	}
}

func showSwept(p *page, swept backup.Swept) {
	if len(swept.Removed) == 0 && len(swept.Rollbacks) == 0 {
		p.printf("Nothing was left behind.\n")
	}
	for _, line := range swept.Rollbacks {
		p.printf("%s\n", line)
	}
	for _, l := range swept.Removed {
		why := ""
		if l.Why != "" {
			why = ": " + l.Why
		}
		p.printf("removed %s %s%s\n", l.Kind, l.Name, why)
	}
	for _, dir := range swept.Incomplete {
		p.printf("%s holds an incomplete restore: run it again, or delete the directory\n", dir)
	}
}
