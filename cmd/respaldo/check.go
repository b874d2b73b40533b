package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

func newCheckCmd(a *app) *cobra.Command {
	var o lockFlags
	cmd := &cobra.Command{
		Use:     "check",
		GroupID: groupBackup,
		Short:   "Say what a backup would do, and whether it can",
		Long: `Looks at the server, where its files lie and what room its volume has, and says what
a backup would do: which lock it would take and why, which of the conditions for a
snapshot without a lock hold, how long writers would be held, what it would copy. Takes
no lock and no snapshot, and changes nothing of the server's.

Exit code 3 if a backup would be refused, with every reason and what to do about it.`,
		Example: `  respaldo check
  respaldo check --server shop --json
  respaldo check --lock global --max-lock 3s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := a.site()
			if err != nil {
				return err
			}
			if err := o.apply(site); err != nil {
				return err
			}
			outlook, err := site.Check(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.show(outlook, func(p *page) { showOutlook(p, outlook) }); err != nil {
				return err
			}
			return outlook.Refusal()
		},
	}
	o.add(cmd)
	return cmd
}

func showOutlook(p *page, o *backup.Outlook) {
	f := newFields()
	f.field("server", fmt.Sprintf("%s: %s", o.Server, o.Version))
	if o.Volume.Name != "" {
		f.field("volume", fmt.Sprintf("%s (%s), %s, mounted at %s", o.Volume.Name, o.Volume.Kind, o.Volume.FSType, o.Volume.MountPoint))
		f.field("room", roomText(o))
	}
	f.field("lock", fmt.Sprintf("%s: %s", o.Lock, o.LockReason))
	if o.Volume.Name != "" {
		f.field("pause", fmt.Sprintf("about %s expected (%s), at most %s allowed (max_lock)", backup.FormatSeconds(o.Pause), o.PauseFrom, backup.FormatSeconds(o.MaxLock)))
	}
	f.field("engines", strings.Join(o.Engines, ", "))
	p.table(f)

	if len(o.Conditions) > 0 {
		p.printf("\n")
		t := newTable(left("FOR NO LOCK"), left("HOLDS"), flexible("FOUND"))
		for _, c := range o.Conditions {
			t.row(c.What, map[bool]string{true: "yes", false: "NO"}[c.OK], c.Why)
		}
		p.table(t)
	}
	if len(o.Covers) > 0 {
		p.printf("\n")
		t := newTable(left("PLACE"), flexible("PATH"), left("TAKEN FROM"))
		for _, c := range o.Covers {
			t.row(string(c.Place.Role), c.Place.Path, string(c.From))
		}
		p.table(t)
	}
	p.printf("\n")
	for _, w := range o.Warnings {
		p.printf("note: %s\n", w)
	}
	if o.OK() {
		p.printf("A backup can be made.\n")
	}
}

func roomText(o *backup.Outlook) string {
	switch o.Volume.Kind {
	case respaldo.LVMThick:
		return fmt.Sprintf("%s free in the volume group, of which a snapshot would take %s", backup.FormatBytes(o.Space.Free), backup.FormatBytes(o.Space.Suggested))
	case respaldo.LVMThin:
		return fmt.Sprintf("thin pool: data %s full, metadata %s full", formatPercent(o.Space.Fill.Data), formatPercent(o.Space.Fill.Metadata))
	}
	return fmt.Sprintf("%s free in the filesystem", backup.FormatBytes(o.Space.Free))
}
