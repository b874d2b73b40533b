package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newRestoreCmd(a *app) *cobra.Command {
	var request backup.RestoreRequest
	var places []string
	cmd := &cobra.Command{
		Use:     "restore IMAGE --to DIR",
		GroupID: groupRestore,
		Short:   "Write a backup or a snapshot into a directory",
		Long: `Writes an image's data directory to DIR, with owners and modes as they were, and what
lay outside of it (redo logs, binlogs, option files…) below DIR.more, or wherever --place
says. Everything is on disk when the command ends.

DIR must be empty; --force replaces what is in it, all of it. A directory in which a
running program has a file open is refused in any case. While a restore is incomplete,
DIR holds a file .respaldo-incomplete; the same command again starts over.

IMAGE is a backup (an ID, the beginning of one, or "latest"), the name of a kept snapshot, or
"now" (a snapshot taken on the spot). A snapshot is copied as it is, with no repository.`,
		Example: `  respaldo restore latest --to /srv/restored
  systemctl stop mariadb && respaldo restore latest --to /var/lib/mysql --force
  respaldo restore k3f9a2 --to /srv/db/data --place binlog=/srv/db/binlog
  respaldo restore respaldo-main-20261123T030000-9f3a01 --to /srv/as-it-was`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if request.To == "" {
				return usageError("where to? --to is missing", "give an empty directory: respaldo restore "+args[0]+" --to DIR")
			}
			request.ID, request.Of, request.Places = args[0], a.flags.server, map[string]string{}
			for _, p := range places {
				name, dir, ok := strings.Cut(p, "=")
				if !ok || name == "" || dir == "" {
					return usageError("--place "+p+" is not NAME=DIR", "respaldo show "+args[0]+" lists the names")
				}
				request.Places[name] = dir
			}
			site, err := a.site()
			if err != nil {
				return err
			}
			done, err := site.Restore(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.show(done, func(p *page) { showRestored(p, done) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&request.To, "to", "", "`DIR` that becomes the data directory")
	f.StringArrayVar(&places, "place", nil, "`NAME=DIR` for a place outside the data directory; may be repeated")
	f.BoolVar(&request.Force, "force", false, "replace what the directories hold")
	return cmd
}

func showRestored(p *page, done backup.Restored) {
	f := newFields()
	f.field("image", done.Image)
	f.field("as of", fmt.Sprintf("%s at %s", formatTime(done.Backup.Manifest.Taken), done.Backup.Manifest.Quiesced.Coordinates))
	f.field("restored", fmt.Sprintf("%d files, %s in %s", done.Files, backup.FormatBytes(done.Bytes), backup.FormatSeconds(done.Seconds)))
	for _, name := range slices.Sorted(maps.Keys(done.Targets)) {
		f.field(name, done.Targets[name])
	}
	p.table(f)
	for _, w := range done.Warnings {
		p.printf("\nnote: %s\n", w)
	}
	p.printf("\nA server needs these options to run on it:\n\n[mysqld]\n%s\n", strings.Join(done.Options, "\n"))
}
