package main

import (
	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

// shortID is enough of an ID to type.
const shortID = 12

func newListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		GroupID: groupRestore,
		Short:   "List the backups in the repository",
		Long: `Lists what is in the repository, images and dumps, oldest first: of the server that --server names,
or of all servers of all hosts. Snapshots on this machine are listed by respaldo
snapshot list.`,
		Example: `  respaldo list
  respaldo list --server shop --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repository, err := a.openNamed(cmd.Context())
			if err != nil {
				return err
			}
			defer repository.Close(cmd.Context())
			backups, err := repository.List(cmd.Context(), a.flags.server)
			if err != nil {
				return err
			}
			return a.show(backups, func(p *page) { showBackups(p, backups) })
		},
	}
}

func showBackups(p *page, backups []respaldo.Backup) {
	if len(backups) == 0 {
		p.printf("There are no backups yet. Make one: respaldo backup\n")
		return
	}
	t := newTable(left("BACKUP"), flexible("SERVER"), left("KIND"), left("TAKEN"), left("COORDINATES"),
		right("SIZE"), right("STORED"), right("HELD"), left("PROOF"))
	for _, b := range backups {
		m := b.Manifest
		t.row(b.ID[:min(shortID, len(b.ID))], m.Server+"@"+m.Host, kindOf(m), m.Taken.Local().Format("2006-01-02 15:04"), m.Quiesced.Coordinates.String(),
			backup.FormatBytes(b.Bytes), backup.FormatBytes(b.Stored), backup.FormatSeconds(m.Quiesced.HeldSeconds), proofWord(m.Proof))
	}
	p.table(t)
}

// kindOf is what an object in the repository is.
func kindOf(m respaldo.Manifest) string {
	if m.Dump != nil {
		return "dump"
	}
	return "image"
}

func proofWord(proof respaldo.Proof) string {
	switch {
	case proof.Level == "" || proof.Level == respaldo.ProveNone:
		return "none"
	case !proof.OK:
		return "FAILED"
	}
	return string(proof.Level)
}
