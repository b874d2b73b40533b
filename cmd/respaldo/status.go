package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

func newStatusCmd(a *app) *cobra.Command {
	var maxAge time.Duration
	var prometheus string
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: groupCare,
		Short:   "Say how old the last proved backup is, and what is wrong",
		Long: `Says of each configured server, or of the one that --server names, how old its last
proved backup is, and what is wrong: no proved backup within max_age, the last backup not
proved, the last run failed or killed, the repository out of reach, leftovers, kept snapshots
that are lost or should be gone, a pool or filesystem that fills up. The server itself is
not asked, and nothing is changed. Where the repository cannot be reached, the age is that
of the last proved backup that this machine remembers.

The first line says it all, for monitors that show one. Exit code 0 if all is well, 12 if a
server has no proved backup that is young enough, 13 if only something else is wrong.

With --prometheus, or prometheus_file in the configuration, the same is written as a
textfile for Prometheus's node_exporter, which sees the old file or the new one, whole.
Needs root, as a backup does: what is remembered is root's.`,
		Example: `  respaldo status
  respaldo status --server shop --max-age 2h
  respaldo status --prometheus /var/lib/prometheus/node-exporter/respaldo.prom
  respaldo status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("max-age") && maxAge <= 0 {
				return usageError("--max-age must be more than zero", "give a time, such as 26h")
			}
			c, err := a.config()
			if err != nil {
				return err
			}
			all, err := a.status(cmd.Context(), a.servers(c), maxAge)
			if err != nil {
				return err
			}
			if prometheus != "" {
				err = writeMetrics(prometheus, all)
			} else {
				a.updateMetrics(all)
			}
			if showErr := a.show(all, func(p *page) { showStatus(p, all) }); err == nil {
				err = showErr
			}
			return errors.Join(err, worst(all))
		},
	}
	cmd.Flags().DurationVar(&maxAge, "max-age", 0, "oldest `TIME` that the last proved backup may be (26h), in place of the configured one")
	cmd.Flags().StringVar(&prometheus, "prometheus", "", "also write the figures into this `FILE`.prom, for node_exporter")
	return cmd
}

// status looks at servers. maxAge, if given, is for each.
func (a *app) status(ctx context.Context, names []string, maxAge time.Duration) ([]*backup.Status, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	var all []*backup.Status
	for _, name := range names {
		s, err := c.Server(name)
		if err != nil {
			return nil, err
		}
		site, err := a.siteOf(name)
		if err != nil {
			return nil, err
		}
		request := backup.StatusRequest{MaxAge: s.MaxAge, Warn: c.Thresholds.Warn}
		if maxAge > 0 {
			request.MaxAge = maxAge
		}
		all = append(all, site.Status(ctx, request))
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// metricsAfter brings the configured metrics up to date when a backup has ended, however it
// did; whatever fails here is no failure of the backup.
func (a *app) metricsAfter(ctx context.Context) {
	c, err := a.config()
	if err != nil || c.PrometheusFile == "" {
		return
	}
	all, err := a.status(context.WithoutCancel(ctx), c.Names(), 0) // whichever was backed up
	if err != nil {
		a.progress().Warn("the metrics are not up to date: " + err.Error())
		return
	}
	a.updateMetrics(all)
}

// updateMetrics writes the file that the configuration names. One server's figures alone
// would take the others' away.
func (a *app) updateMetrics(all []*backup.Status) {
	c, err := a.config()
	if err != nil || c.PrometheusFile == "" || len(all) != len(c.Names()) {
		return
	}
	if err := writeMetrics(c.PrometheusFile, all); err != nil {
		a.progress().Warn(err.Error())
	}
}

// writeMetrics replaces the file at once.
func writeMetrics(path string, all []*backup.Status) error {
	fail := func(err error) error {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot write the metrics to " + path, Hint: "name a file in a directory that exists, on a filesystem with room", Err: err}
	}
	if !strings.HasSuffix(path, ".prom") {
		return usageError("the metrics' file must end in .prom, or node_exporter does not read it: "+path, "")
	}
	var text bytes.Buffer
	if err := backup.WriteMetrics(&text, all); err != nil {
		return fail(err)
	}
	if err := disk.Replace(path, text.Bytes(), 0o644); err != nil {
		return fail(err)
	}
	return nil
}

// worst is why the status is not good: nil, or an error of the worst kind that names all.
func worst(all []*backup.Status) error {
	var overdue, others []error
	for _, st := range all {
		switch err := st.Err(); {
		case err == nil:
		case st.State == backup.StateOverdue:
			overdue = append(overdue, err)
		default:
			others = append(others, err)
		}
	}
	return errors.Join(append(overdue, others...)...)
}

func showStatus(p *page, all []*backup.Status) {
	p.printf("%s\n\n", headline(all))
	t := newTable(left("SERVER"), left("STATE"), left("LAST PROVED"), left("AGE"), right("SIZE"), right("BACKUPS"), right("KEPT"), flexible("LAST RUN"))
	for _, st := range all {
		proved, age, size, backups := "none", "", "", "?"
		if b := st.Proved; b != nil {
			proved, age, size = b.ID[:min(shortID, len(b.ID))], backup.FormatSeconds(st.AgeSeconds), backup.FormatBytes(b.Bytes)
		}
		if st.Reachable {
			backups = fmt.Sprint(st.Backups)
		}
		t.row(st.Server, string(st.State), proved, age, size, backups, fmt.Sprint(st.Kept), lastRunText(st))
	}
	p.table(t)
}

// headline is for monitors that show one line.
func headline(all []*backup.Status) string {
	word, said := "OK", []string{}
	for _, st := range all {
		switch {
		case st.State == backup.StateOverdue:
			word = "OVERDUE"
		case st.State == backup.StateAttention && word == "OK":
			word = "ATTENTION"
		}
		switch {
		case len(st.Problems) > 0:
			more := ""
			if n := len(st.Problems) - 1; n > 0 {
				more = fmt.Sprintf(" (and %d more)", n)
			}
			what, _, _ := strings.Cut(st.Problems[0].What, "\n")
			said = append(said, st.Server+": "+what+more)
		default:
			said = append(said, st.Server+": proved backup, "+backup.FormatSeconds(st.AgeSeconds)+" old")
		}
	}
	return "RESPALDO " + word + " - " + strings.Join(said, "; ")
}

func lastRunText(st *backup.Status) string {
	switch last := st.LastRun; {
	case last == nil:
		return "unknown"
	case last.OK:
		return "succeeded " + formatTime(last.Ended)
	case !last.Ended.IsZero():
		return "failed " + formatTime(last.Ended)
	case st.Running == "backup":
		return "under way since " + formatTime(last.Started)
	default:
		return "killed, begun " + formatTime(last.Started)
	}
}
