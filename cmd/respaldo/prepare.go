package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/config"
)

// prepareFlags say on what volume a server's data is to lie.
type prepareFlags struct {
	request           backup.PrepareRequest
	kind, free        string
	size              config.Size
	dryRun, yes, undo bool
}

func newPrepareCmd(a *app) *cobra.Command {
	var o prepareFlags
	cmd := &cobra.Command{
		Use:     "prepare",
		GroupID: groupCare,
		Short:   "Move a server's data onto a volume that can be snapshotted",
		Long: `Makes a volume from a blank device (--device), or in a volume group that has room (--vg),
mounts it, and moves the server's data directory onto it, with binlogs, redo logs,
mysql-files and mysql-keyring that lie beside it, so that one snapshot covers them all.

It shows what it will do and asks. The server is stopped while its files are copied; each
copy is read back and compared. The old directories keep their content under another name,
DIR.before-respaldo, and links to the volume take their place, so that every path stays
valid. Done is said when the server has answered on the volume, with all its tables. If it
does not, it is started where it was.

A device that is in use is refused, and one that is not blank unless --wipe names it too.
What was interrupted goes on when prepare is called again. --undo goes back, with all that
the server has written since; it deletes neither the volume nor the old directories.

The server is stopped and started by its systemd unit, or by the commands that stop and
start name in [server.NAME] of the configuration.`,
		Example: `  respaldo prepare --device /dev/sdb --dry-run
  respaldo prepare --device /dev/sdb --kind lvm-thin --mount /srv/mysql
  respaldo prepare --vg data --size 200GiB
  respaldo prepare --undo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd, a) },
	}
	f := cmd.Flags()
	f.StringVar(&o.request.Device, "device", "", "blank `DEVICE` to make the volume from, all of it: a disk or a partition")
	f.StringVar(&o.request.Group, "vg", "", "volume `GROUP`: one with room, or with --device the name of the new one (default mysql)")
	f.StringVar(&o.kind, "kind", "", "`KIND` of volume: lvm-thin (default), lvm-thick or btrfs")
	f.StringVar(&o.request.Name, "lv", "", "`NAME` of the logical volume or Btrfs subvolume (default mysql)")
	f.StringVar(&o.request.FSType, "fs", "", "`FILESYSTEM` on LVM: ext4 (default) or xfs")
	f.Var(&o.size, "size", "size of the volume (200GiB); without it, chosen from the room that there is")
	f.StringVar(&o.free, "free", "", "`SHARE` of the room that stays free for snapshots (20%); without it, chosen by kind")
	f.StringVar(&o.request.Mount, "mount", "", "`DIR` where the volume is mounted (default /srv/mysql)")
	f.StringVar(&o.request.Wipe, "wipe", "", "the `DEVICE` again: what is on it may be overwritten")
	f.BoolVar(&o.undo, "undo", false, "go back to where the data lay before")
	f.BoolVar(&o.dryRun, "dry-run", false, "print every command, touch nothing")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"lvm-thin", "lvm-thick", "btrfs"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("fs", cobra.FixedCompletions([]string{"ext4", "xfs"}, cobra.ShellCompDirectiveNoFileComp))
	for _, other := range []string{"device", "vg", "kind", "lv", "fs", "size", "free", "mount", "wipe"} {
		cmd.MarkFlagsMutuallyExclusive("undo", other)
	}
	return cmd
}

func (o *prepareFlags) run(cmd *cobra.Command, a *app) error {
	if err := o.parse(); err != nil {
		return err
	}
	site, err := a.site()
	if err != nil {
		return err
	}
	var plan *backup.Plan
	if o.undo {
		plan, err = site.PlanUndo(cmd.Context())
	} else {
		plan, err = site.PlanPrepare(cmd.Context(), o.request)
	}
	if err != nil {
		return err
	}
	if o.dryRun || plan.State == backup.PrepareDone && !o.undo {
		return a.show(plan, func(p *page) { showPlan(p, plan, o.undo) })
	}
	if !o.yes {
		if err := o.ask(cmd.Context(), a, plan); err != nil {
			return err
		}
	}
	act := site.Prepare
	if o.undo {
		act = site.Undo
	}
	done, err := act(cmd.Context(), plan)
	if err != nil {
		return err
	}
	return a.show(done, func(p *page) { showPrepared(p, done) })
}

func (o *prepareFlags) parse() error {
	switch kind := respaldo.VolumeKind(o.kind); kind {
	case "", respaldo.LVMThin, respaldo.LVMThick, respaldo.Btrfs:
		o.request.Kind = kind
	default:
		return usageError("--kind is lvm-thin, lvm-thick or btrfs, not "+o.kind, "")
	}
	switch o.request.FSType {
	case "", "ext4", "xfs":
	default:
		return usageError("--fs is ext4 or xfs, not "+o.request.FSType, "for Btrfs give --kind btrfs")
	}
	o.request.Free = -1
	if o.free != "" {
		share, err := strconv.ParseFloat(strings.TrimSuffix(o.free, "%"), 64)
		if err != nil || share < 0 || share > 90 {
			return usageError("--free "+o.free+" is no share of the room", "give percents, such as 20%")
		}
		o.request.Free = share / 100
	}
	o.request.Bytes = int64(o.size)
	return nil
}

// ask shows the plan and waits for a yes. Where nobody can answer, nothing is done.
func (o *prepareFlags) ask(ctx context.Context, a *app, plan *backup.Plan) error {
	if a.flags.json || !term.IsTerminal(int(os.Stdin.Fd())) || !a.console.terminal {
		return usageError("prepare asks before it acts, and there is no terminal", "look at it with --dry-run, then give --yes")
	}
	var text strings.Builder
	showPlan(&page{Writer: &text, width: widthOf(os.Stderr)}, plan, o.undo)
	answer, err := a.ask(ctx, text.String()+"\nThe server will be stopped. Go on? [y/N] ")
	if err != nil {
		return err
	}
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return &respaldo.Error{Kind: respaldo.Refused, What: "not confirmed: nothing was touched", Hint: "answer y, or give --yes"}
	}
	return nil
}

func showPlan(p *page, plan *backup.Plan, undo bool) {
	f := newFields()
	f.field("server", plan.Server)
	f.field("state", string(plan.State))
	f.field("volume", fmt.Sprintf("%s (%s, %s, %s)", plan.Volume.Node(), plan.Volume.Kind, plan.Volume.FSType, backup.FormatBytes(plan.Volume.Bytes)))
	f.field("mounted at", plan.Mount.Dir)
	for _, m := range plan.Moves {
		f.field(m.What, fmt.Sprintf("%s (%s) goes to %s", m.Dir, backup.FormatBytes(m.Bytes), m.To))
	}
	p.table(f)
	if !undo {
		for _, reason := range plan.Volume.Reasons {
			p.printf("\nwhy: %s\n", reason)
		}
	}
	if undo && plan.Lives {
		p.printf("\nWhat the server has by now is copied back. The volume stays as it is then, and so does\n%s, as it was before prepare.\n", plan.Moves[0].Aside)
	}
	for _, note := range plan.Notes {
		p.printf("\nnote: %s\n", note)
	}
	p.printf("\n")
	if undo {
		for _, s := range slices.Backward(plan.Steps) {
			if len(s.Undo) > 0 && (s.Done || s.Name == plan.Begun) {
				showStep(p, "take back: "+s.Says, s.Undo)
			}
		}
		return
	}
	for n, s := range plan.Steps {
		mark := ""
		if s.Done {
			mark = " (done)"
		}
		showStep(p, fmt.Sprintf("%d. %s%s", n+1, s.Says, mark), s.Commands)
	}
}

func showStep(p *page, says string, commands []string) {
	p.printf("# %s\n", says)
	for _, c := range commands {
		p.printf("%s\n", c)
	}
}

func showPrepared(p *page, done backup.Prepared) {
	m := done.Moves[0]
	if done.State == backup.PrepareUndone {
		p.printf("Server %s works in %s again. It was stopped for %s.\n", done.Server, m.Dir, backup.FormatSeconds(done.Seconds))
		if done.Stays {
			p.printf("\nThe volume %s is not mounted any more and holds the data as it was until now.\nWhen nobody needs that, remove it%s.\n", done.Volume.Node(), removal(done))
			p.printf("%s is as it was before prepare.\n", m.Aside)
		}
		return
	}
	p.printf("Server %s works on %s, mounted at %s. It was stopped for %s.\n", done.Server, done.Volume.Node(), done.Mount.Dir, backup.FormatSeconds(done.Seconds))
	p.printf("\nIts old files, as they were, stay until you delete them:\n")
	for _, move := range done.Moves {
		p.printf("  %s\n", move.Aside)
	}
	p.printf("\nNext: respaldo check\n")
}

func removal(done backup.Prepared) string {
	if done.Volume.Kind == respaldo.Btrfs {
		return ": wipefs --all " + done.Volume.Device
	}
	return ": lvremove " + done.Volume.Group + "/" + done.Volume.Name
}
