package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newSnapshotCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		GroupID: groupBackup,
		Short:   "Take, list and remove snapshots by hand",
		Long: `Snapshots that stay on this machine until they are removed or expire. A snapshot lies
on the same disks as the data: it is no backup.`,
		Example: `  respaldo snapshot create --ttl 24h
  respaldo snapshot list
  respaldo snapshot remove respaldo-main-20261123T030000-9f3a01`,
	}
	cmd.AddCommand(newSnapshotCreateCmd(a), newSnapshotListCmd(a), newSnapshotRemoveCmd(a))
	return cmd
}

func newSnapshotCreateCmd(a *app) *cobra.Command {
	var lock lockFlags
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Take a consistent snapshot that stays",
		Long: `Quiesces the server, takes a snapshot of its volume and releases the server. The
snapshot stays until snapshot remove, or until --ttl has passed and a backup, snapshot
create or cleanup runs.

A lock that is not to be had is tried for again, within --patience; each try may hold
writers for --max-lock at most. --kill-blockers is as in respaldo backup.

Nobody watches it between these. On thick LVM it is lost when the server changes
more than it has room for; the next of them removes it then. On thin LVM it holds on to what
the server changes, and a full pool stops the server: one that finds the pool above its
threshold removes such snapshots, the oldest first, and says so. On Btrfs it holds on to
the filesystem's room in the same way, and is not removed for that. Have a timer run
respaldo cleanup, and watch the room.`,
		Example: `  respaldo snapshot create
  respaldo snapshot create --ttl 24h --snapshot-size 20GiB
  respaldo snapshot create --max-lock 500ms --patience 10m --kill-blockers`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			made, err := site.CreateSnapshot(cmd.Context(), ttl)
			if err != nil {
				return err
			}
			return a.show(made, func(p *page) { showSnapshot(p, made) })
		},
	}
	lock.add(cmd)
	lock.addTries(cmd)
	addTTL(cmd, &ttl)
	return cmd
}

func addTTL(cmd *cobra.Command, ttl *time.Duration) {
	cmd.Flags().DurationVar(ttl, "ttl", 0, "remove the snapshot after this `TIME` (24h); without it, it stays until it is removed")
}

func checkTTL(cmd *cobra.Command) error {
	if ttl, err := cmd.Flags().GetDuration("ttl"); err == nil && ttl <= 0 && cmd.Flags().Changed("ttl") {
		return usageError("--ttl must be more than zero", "give a time, such as 24h")
	}
	return nil
}

func newSnapshotListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the server's snapshots on this machine",
		Long: `Lists the server's snapshots on this machine, those of a running backup included, with
how full their storage is.`,
		Example: `  respaldo snapshot list
  respaldo snapshot list --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := a.site()
			if err != nil {
				return err
			}
			list, err := site.Snapshots(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(list, func(p *page) {
				showSnapshots(p, list)
				for _, w := range backup.Warnings(list) {
					p.printf("\nnote: %s\n", w)
				}
			})
		},
	}
}

func newSnapshotRemoveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm"},
		Short:   "Remove a snapshot of ours",
		Long: `Removes a snapshot that respaldo took of this server. What does not carry respaldo's
tag is refused, whatever its name. If somebody holds it, the error says who.`,
		Example: `  respaldo snapshot remove respaldo-main-20261123T030000-9f3a01`,
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, err := a.site()
			if err != nil {
				return err
			}
			if err := site.RemoveSnapshot(cmd.Context(), args[0]); err != nil {
				return err
			}
			removed := map[string]string{"removed": args[0]}
			return a.show(removed, func(p *page) { p.printf("removed %s\n", args[0]) })
		},
	}
}

func showSnapshot(p *page, k backup.KeptSnapshot) {
	q := k.Manifest.Quiesced
	f := newFields()
	f.field("snapshot", k.Snapshot.Name)
	f.field("taken", fmt.Sprintf("%s at %s", formatTime(q.At), coordinatesText(*k.Manifest)))
	quiescedFields(f, q)
	f.field("path", k.Snapshot.Path)
	f.field("stays", staysText(k.Snapshot))
	p.table(f)
	p.printf("\nnote: %s\n", k.Note)
}

func showSnapshots(p *page, list []backup.KeptSnapshot) {
	if len(list) == 0 {
		p.printf("There are no snapshots.\n")
		return
	}
	t := newTable(left("SNAPSHOT"), left("TAKEN"), left("VOLUME"), flexible("COORDINATES"), right("HELD"), left("FULL"), left("STAYS"))
	for _, k := range list {
		coordinates, held := "-", "-"
		if k.Manifest != nil {
			coordinates, held = k.Manifest.Quiesced.Coordinates.String(), heldWord(k.Manifest.Quiesced)
		}
		full := formatPercent(k.Fill.Data)
		switch {
		case k.Inactive:
			full += ", inactive"
		case !k.Fill.Valid:
			full = "LOST"
		}
		t.row(k.Snapshot.Name, formatTime(k.Snapshot.Created), k.Snapshot.Volume, coordinates, held, full, staysAs(k)+usedText(k.UsedBy))
	}
	p.table(t)
}

// staysAs is short where a snapshot holds what the volume was before a rollback. To which, is
// for --json: a name would take a third of the table's width.
func staysAs(k backup.KeptSnapshot) string {
	if k.StateBefore != "" && k.Snapshot.Expires.IsZero() {
		return "before a rollback"
	}
	return staysText(k.Snapshot)
}

func usedText(user string) string {
	if user == "" {
		return ""
	}
	return "; in use by " + user
}

func staysText(s respaldo.Snapshot) string {
	switch {
	case !s.Kept:
		return "until its operation ends"
	case s.Expires.IsZero():
		return "until removed"
	}
	return "until " + formatTime(s.Expires)
}
