package main

import (
	"fmt"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
)

func newShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show BACKUP",
		GroupID: groupRestore,
		Short:   "Show all that is known about a backup",
		Long: `Shows what a backup is: server, coordinates, lock, proof, and the places it holds, by
whose names restore --place can put them elsewhere. BACKUP is an ID, the beginning of
one, or "latest". With --json also all of the server's variables.`,
		Example: `  respaldo show latest
  respaldo show k3f9a2 --json`,
		Args: exactArgs("BACKUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			repository, err := a.openNamed(cmd.Context())
			if err != nil {
				return err
			}
			defer repository.Close(cmd.Context())
			b, err := repository.Find(cmd.Context(), a.flags.server, args[0])
			if err != nil {
				return err
			}
			return a.show(b, func(p *page) { showBackup(p, b) })
		},
	}
}

func showBackup(p *page, b respaldo.Backup) {
	m := b.Manifest
	q := m.Quiesced
	f := newFields()
	f.field("backup", b.ID)
	f.field("server", fmt.Sprintf("%s on %s, %s", m.Server, m.Host, m.Version.Text))
	f.field("taken", formatTime(m.Taken))
	f.field("coordinates", coordinatesText(m))
	if q.Coordinates.GTIDSet != "" {
		f.field("GTID set", q.Coordinates.GTIDSet)
	}
	for _, u := range q.Coordinates.Upstream {
		f.field("replica of", upstreamText(u))
	}
	if d := m.Dump; d != nil {
		f.field("dump", fmt.Sprintf("of %s, by %s, of %s", dumpedText(*d), d.Tool, d.Image))
	}
	f.field("timeline", m.Timeline)
	f.field("volume", fmt.Sprintf("%s (%s), %s", m.Volume.Name, m.Volume.Kind, m.Volume.FSType))
	quiescedFields(f, q)
	if m.Dump == nil {
		f.field("proof", proofText(m.Proof))
	}
	f.field("size", fmt.Sprintf("%s in %d files; %s read, %s stored", backup.FormatBytes(b.Bytes), b.Files, backup.FormatBytes(b.Read), backup.FormatBytes(b.Stored)))
	f.field("made", fmt.Sprintf("in %s by respaldo %s", backup.FormatDuration(b.End.Sub(b.Start)), m.Program))
	f.field("variables", strconv.Itoa(len(m.Variables))+" (--json shows them)")
	for _, lost := range m.Lost {
		f.field("not in it", lost)
	}
	p.table(f)
	if m.Dump != nil {
		return
	}
	p.printf("\n")
	t := newTable(left("PLACE"), flexible("WAS AT"), left("STORED AS"))
	for _, place := range m.Layout.Places {
		stored := place.Stored
		switch {
		case place.Inside:
			stored = "in data"
		case stored == "":
			stored = "-"
		}
		t.row(string(place.Role), place.Path, stored)
	}
	p.table(t)
}

// coordinatesText says of coordinates that were read in the image whether they are confirmed.
func coordinatesText(m respaldo.Manifest) string {
	text := m.Quiesced.Coordinates.String()
	if m.Unconfirmed() {
		text += " (read in the image, not confirmed)"
	}
	return text
}

func upstreamText(u respaldo.Upstream) string {
	text := fmt.Sprintf("%s:%d, applied up to ", u.Host, u.Port)
	switch {
	case u.File != "":
		return fmt.Sprintf("%s%s:%d", text, u.File, u.Position)
	case u.GTIDSet != "":
		return text + u.GTIDSet
	}
	return text + "where only a server that is started on the image can say"
}

// dumpedText is what of the server a dump holds.
func dumpedText(d respaldo.Dump) string {
	text := "everything"
	switch {
	case len(d.Databases) > 0:
		text = "the databases " + strings.Join(d.Databases, ", ")
	case len(d.Tables) > 0:
		text = "the tables " + strings.Join(d.Tables, ", ")
	}
	if len(d.Without) > 0 {
		text += " without " + strings.Join(d.Without, ", ")
	}
	return text
}
