package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	runner "github.com/respaldo-backup/respaldo/internal/run"
)

func newRollbackCmd(a *app) *cobra.Command {
	var request backup.RollbackRequest
	var prove proveFlag
	var yes bool
	cmd := &cobra.Command{
		Use:     "rollback SNAPSHOT",
		GroupID: groupRestore,
		Short:   "Put the server's volume itself back to a kept snapshot",
		Long: `Puts the volume that the server's data lies on back to a snapshot that respaldo keeps
of it: everything on it, as it was when the snapshot was taken. First it shows what would be
lost and asks. The binlogs since the snapshot are copied to a directory, from where what is
lost can be replayed; then the server is stopped, the volume goes back, and the server is
started and compared with what the snapshot says.

On thin LVM and Btrfs the snapshot is started by a private server beforehand (--prove), a
copy of it takes the volume's place, and what the volume was stays as another snapshot: a
rollback to that one undoes the rollback. On thick LVM the snapshot is merged and used up,
and there is no way back.

The server is stopped and started by its systemd unit, or by the commands stop and start of
the configuration. It need not run. Until the volume changes, a failure or Ctrl-C leads back
to the server as it was; from there on the rollback is brought to its end, after a crash
by the next run of respaldo, or respaldo cleanup.`,
		Example: `  respaldo snapshot list
  respaldo rollback respaldo-main-20261123T030000-9f3a01 --dry-run
  respaldo rollback respaldo-main-20261123T030000-9f3a01
  respaldo rollback respaldo-main-20261123T030000-9f3a01 --yes --save-binlogs /srv/lost`,
		Args: exactArgs("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, err := a.site()
			if err != nil {
				return err
			}
			if err := prove.apply(site); err != nil {
				return err
			}
			request.Snapshot = args[0]
			if !yes && !request.DryRun {
				if !term.IsTerminal(int(os.Stdin.Fd())) {
					return &respaldo.Error{Kind: respaldo.Refused, What: "nobody can be asked whether the volume shall go back: there is no terminal",
						Hint: "look first, with --dry-run; then give --yes"}
				}
				request.Confirm = func(p backup.RollbackPlan) error { return a.confirmRollback(cmd.Context(), p) }
			}
			done, err := site.Rollback(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.show(done, func(p *page) {
				if request.DryRun {
					showRollbackPlan(p, done.Plan)
					return
				}
				showRolledBack(p, done)
			})
		},
	}
	prove.add(cmd)
	f := cmd.Flags()
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.BoolVar(&request.DryRun, "dry-run", false, "show what would be lost, and touch nothing")
	f.StringVar(&request.SaveBinlogs, "save-binlogs", "", "empty `DIR` for the binlogs since the snapshot; without it, one below state_dir")
	return cmd
}

// confirmRollback shows what would be lost and waits for a yes.
func (a *app) confirmRollback(ctx context.Context, plan backup.RollbackPlan) error {
	var text strings.Builder
	showRollbackPlan(&page{Writer: &text, width: widthOf(os.Stderr)}, plan)
	answer, err := a.ask(ctx, fmt.Sprintf("%s\nShall %s go back to this snapshot? Type yes: ", text.String(), plan.Volume.Name))
	if err != nil || answer == "yes" {
		return err
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: "nothing was touched: the answer was not yes", Hint: "type the whole word, or give --yes"}
}

func showRollbackPlan(p *page, plan backup.RollbackPlan) {
	f := newFields()
	f.field("snapshot", fmt.Sprintf("%s, taken %s at %s", plan.Snapshot.Name, formatTime(plan.Lost.Since), plan.Lost.From))
	f.field("volume", fmt.Sprintf("%s (%s), at %s", plan.Volume.Name, plan.Volume.Kind, plan.Volume.MountPoint))
	running := "runs, and is stopped and started by " + plan.Service
	if !plan.Running {
		running = "does not run; it is started by " + plan.Service
	}
	f.field("server", running)
	lossFields(f, plan)
	switch {
	case plan.State != "":
		f.field("kept", "the present state, as snapshot "+plan.State)
	default:
		f.field("kept", "nothing: thick LVM cannot keep the present state")
	}
	p.table(f)
	for _, n := range plan.Notes {
		p.printf("\nnote: %s\n", n)
	}
}

func lossFields(f *table, plan backup.RollbackPlan) {
	l := plan.Lost
	f.field("lost", fmt.Sprintf("what was written in the last %s", backup.FormatDuration(time.Duration(l.Seconds*float64(time.Second)))))
	if l.To.File != "" {
		f.field("", fmt.Sprintf("from %s to %s, %s of binlogs in %s", l.From, l.To, backup.FormatBytes(l.BinlogBytes), english.Plural(len(l.Binlogs), "file", "")))
	}
	if l.Transactions >= 0 {
		f.field("", fmt.Sprintf("%d transactions", l.Transactions))
	}
	if l.GTIDs != "" {
		f.field("", "GTIDs "+l.GTIDs)
	}
	for _, r := range l.Replicas {
		f.field("replica", r.String()+" will have to be rebuilt")
	}
	if plan.SaveTo != "" {
		f.field("binlogs", "copied to "+plan.SaveTo)
	}
}

func showRolledBack(p *page, done backup.RolledBack) {
	plan := done.Plan
	f := newFields()
	f.field("back to", fmt.Sprintf("%s, taken %s at %s", plan.Snapshot.Name, formatTime(plan.Lost.Since), plan.Lost.From))
	f.field("server", fmt.Sprintf("runs again, after %s", backup.FormatSeconds(done.DownSeconds)))
	lossFields(f, plan)
	f.field("timeline", done.Timeline)
	p.table(f)
	if len(done.Saved) > 0 {
		showReplay(p, done)
	}
	if done.State != "" {
		p.printf("\nWhat the volume was stays as a snapshot until it is removed. To undo this rollback:\n  respaldo rollback %s\n", done.State)
	}
	for _, r := range plan.Lost.Replicas {
		p.printf("\nReplica %s has what was lost here: stop it, and rebuild it from this server.\n", r)
	}
	for _, n := range plan.Notes {
		p.printf("\nnote: %s\n", n)
	}
}

// showReplay says how what was lost is looked through and brought back.
func showReplay(p *page, done backup.RolledBack) {
	program := "mysqlbinlog"
	if done.Plan.Manifest.Version.Flavor == respaldo.MariaDB {
		program = "mariadb-binlog"
	}
	words := []string{program}
	if !done.Plan.Lost.Purged {
		words = append(words, fmt.Sprintf("--start-position=%d", done.Plan.Lost.From.Position))
	}
	for _, name := range done.Saved {
		words = append(words, runner.Quote(name))
	}
	p.printf("\nThe binlogs since the snapshot are in %s. What was lost is looked through, and piped into\nthe client as far as it is wanted (--stop-position, --stop-datetime), with\n", done.Plan.SaveTo)
	io.WriteString(p, "  cd "+runner.Quote(done.Plan.SaveTo)+" && "+strings.Join(words, " ")+"\n")
}
