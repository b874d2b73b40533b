package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newVerifyCmd(a *app) *cobra.Command {
	var request backup.VerifyRequest
	var prove proveFlag
	cmd := &cobra.Command{
		Use:     "verify [BACKUP]",
		GroupID: groupCare,
		Short:   "Read backups back from the repository, and start them",
		Long: `Reads every byte of a backup, or of all backups of this host's server, back from the
repository and checks it. With --start each is also restored into a working directory below
state_dir and started there, one after the other: the proof that includes the repository.
Another host's backup is verified by its ID.`,
		Example: `  respaldo verify
  respaldo verify latest --start --prove full`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				request.ID = args[0]
			}
			site, err := a.site()
			if err != nil {
				return err
			}
			if err := prove.apply(site); err != nil {
				return err
			}
			if request.Start && site.Prove == respaldo.ProveNone {
				if prove.level != "" {
					return usageError("--start proves, and --prove none does not", "leave one of them out")
				}
				site.Prove = respaldo.ProveQuick // "none" is configured for backups
			}
			results, err := site.Verify(cmd.Context(), request)
			if len(results) == 0 {
				return err
			}
			if showErr := a.show(results, func(p *page) { showVerified(p, results) }); err == nil {
				err = showErr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&request.Start, "start", false, "also restore it into a working directory and start it")
	prove.add(cmd)
	return cmd
}

func showVerified(p *page, results []backup.Verification) {
	t := newTable(left("BACKUP"), left("TAKEN"), right("FILES"), right("READ"), left("STARTED"), left("RESULT"))
	for _, v := range results {
		result, started := "good", "-"
		switch {
		case v.Damaged:
			result = "DAMAGED"
		case !v.OK:
			result = "FAILED"
		}
		if v.Proof != nil {
			started = proofWord(*v.Proof)
		}
		t.row(v.Backup.ID[:min(shortID, len(v.Backup.ID))], formatTime(v.Backup.Manifest.Taken), formatCount(v.Files), backup.FormatBytes(v.Bytes), started, result)
	}
	p.table(t)
	for _, v := range results {
		if len(v.Problems) > 0 {
			p.printf("\n%s:\n  %s\n", v.Backup.ID, strings.Join(v.Problems, "\n  "))
		}
	}
}
