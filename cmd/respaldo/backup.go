package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newBackupCmd(a *app) *cobra.Command {
	var lock lockFlags
	var prove proveFlag
	var request backup.BackupRequest
	cmd := &cobra.Command{
		Use:     "backup",
		GroupID: groupBackup,
		Short:   "Back up the server through a snapshot, and prove the backup by starting it",
		Long: `Quiesces the server for the instant that the snapshot takes, saves the snapshot into
the repository, starts a private server on it, and only then records the backup. The
snapshot and everything else is removed again, whatever happens; what a killed run left
behind is cleaned up first.

With --keep-snapshot the snapshot stays after a backup that succeeded, as if snapshot
create had taken it: see there what becomes of it. On thick LVM the proof would change it,
so there that needs --prove none.

If the lock is not to be had, or a snapshot without one was crossed by something, it is
tried again, within --patience; each try may hold writers for --max-lock at most.
--kill-blockers ends long reads in the way of the lock, when they do not end by themselves:
never a write, never anything of a transaction that has changed rows. How long writers
really waited is measured from outside, and shown.

The configuration's [hooks] name programs to run before it, after it, and when it failed;
respaldo status says later how it went.`,
		Example: `  respaldo backup
  respaldo backup --server shop --prove full
  respaldo backup --keep-snapshot --ttl 24h
  respaldo backup --max-lock 3s --snapshot-size 50GiB
  respaldo backup --patience 10m --kill-blockers`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("ttl") && !request.KeepSnapshot {
				return usageError("--ttl is for a snapshot that stays", "give --keep-snapshot, too")
			}
			if err := checkTTL(cmd); err != nil {
				return err
			}
			site, err := a.site()
			if err != nil {
				return err
			}
			if err := lock.apply(site); err != nil {
				return err
			}
			if err := prove.apply(site); err != nil {
				return err
			}
			made, err := site.Backup(cmd.Context(), request)
			a.metricsAfter(cmd.Context())
			if made.Backup.ID == "" {
				return err
			}
			// Recorded: it is shown even when something could not be released after it.
			if showErr := a.show(made, func(p *page) { showMade(p, made) }); err == nil {
				err = showErr
			}
			return err
		},
	}
	lock.add(cmd)
	lock.addTries(cmd)
	prove.add(cmd)
	cmd.Flags().BoolVar(&request.KeepSnapshot, "keep-snapshot", false, "let the snapshot stay after the backup")
	addTTL(cmd, &request.TTL)
	return cmd
}

func showMade(p *page, made backup.Made) {
	b := made.Backup
	q := b.Manifest.Quiesced
	f := newFields()
	f.field("backup", b.ID)
	f.field("taken", fmt.Sprintf("%s at %s", formatTime(b.Manifest.Taken), coordinatesText(b.Manifest)))
	if q.Coordinates.GTIDSet != "" {
		f.field("GTID set", q.Coordinates.GTIDSet)
	}
	quiescedFields(f, q)
	if made.Kept != nil {
		f.field("snapshot", made.Kept.Snapshot.Name+" stays "+staysText(made.Kept.Snapshot))
	} else {
		f.field("snapshot", "lived "+backup.FormatSeconds(made.SnapshotSeconds))
	}
	f.field("data", fmt.Sprintf("%d files, %s; %s read, %s added to the repository", b.Files, backup.FormatBytes(b.Bytes), backup.FormatBytes(b.Read), backup.FormatBytes(b.Stored)))
	f.field("proof", proofText(b.Manifest.Proof))
	p.table(f)
	if made.Kept != nil {
		p.printf("\nnote: %s\n", made.Kept.Note)
	}
	if len(made.Forgotten) > 0 {
		p.printf("\n%d older backups let go by the retention policy\n", len(made.Forgotten))
	}
}

func proofText(proof respaldo.Proof) string {
	switch {
	case proof.Level == "" || proof.Level == respaldo.ProveNone:
		return "not proved"
	case !proof.OK:
		return "FAILED"
	}
	return fmt.Sprintf("started, recovered in %s, %d of %d tables checked", backup.FormatSeconds(proof.RecoverySeconds), proof.Tables, proof.TablesTotal)
}
