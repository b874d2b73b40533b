package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

// shortID is enough of an ID to type.
const shortID = 12

func newListCmd(a *app) *cobra.Command {
	onlyServed := false
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		GroupID: groupRestore,
		Short:   "List the backups in the repository, and what is being served",
		Long: `Lists the backups in the repository, images and dumps, oldest first: of the server that
--server names, or of all servers of all hosts; and the servers that respaldo serve runs
on this machine. --served lists only these, and with --json too. Snapshots on this machine
are listed by respaldo snapshot list; that one's storage fills up is said here as well.`,
		Example: `  respaldo list
  respaldo list --server shop --json
  respaldo list --served`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			served, warnings, err := a.served(cmd.Context(), !onlyServed)
			if err != nil {
				return err
			}
			if onlyServed {
				return a.show(served, func(p *page) { showServing(p, served) })
			}
			for _, w := range warnings {
				a.progress().Warn(w)
			}
			repository, err := a.openNamed(cmd.Context())
			if err != nil {
				return err
			}
			defer repository.Close(cmd.Context())
			backups, err := repository.List(cmd.Context(), a.flags.server)
			if err != nil {
				return err
			}
			return a.show(backups, func(p *page) {
				showBackups(p, backups)
				if len(served) > 0 {
					p.printf("\n")
					showServing(p, served)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&onlyServed, "served", false, "list what respaldo serve runs on this machine, and no backups")
	return cmd
}

// served lists what is being served of the server that --server names, or of all, and, if
// asked, what snapshots' storage fills up. Who may not look there is told nothing.
func (a *app) served(ctx context.Context, warn bool) (served []backup.Served, warnings []string, err error) {
	served = []backup.Served{}
	sites, err := a.onlookers()
	if err != nil {
		return served, nil, err
	}
	for _, s := range sites {
		more, err := s.Served()
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return served, nil, err
		}
		served = append(served, more...)
		if !warn || os.Geteuid() != 0 {
			continue
		}
		snapshots, err := s.Snapshots(ctx)
		if err != nil {
			a.log.Debug("cannot look at the snapshots", "server", s.Server, "err", err)
		}
		warnings = append(warnings, backup.Warnings(snapshots)...)
	}
	return served, warnings, nil
}

func showServing(p *page, served []backup.Served) {
	if len(served) == 0 {
		p.printf("Nothing is being served.\n")
		return
	}
	t := newTable(left("SERVED"), left("SERVER"), flexible("IMAGE"), left("AS OF"), left("PORT"), flexible("SOCKET"), left("SINCE"), left("UNTIL"))
	for _, s := range served {
		until := "stopped"
		if !s.Until.IsZero() {
			until = formatTime(s.Until)
		}
		t.row(s.Name, s.Server, s.Image, formatTime(s.Taken), net.JoinHostPort(s.Bind, strconv.Itoa(s.Port)), s.Socket, formatTime(s.Since), until)
	}
	p.table(t)
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
			backup.FormatBytes(b.Bytes), backup.FormatBytes(b.Stored), heldWord(m.Quiesced), proofWord(m.Proof))
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
