package backup

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// metric is one line in Prometheus's text format for each server that has a value.
type metric struct {
	name, help string
	labels     string // beside the server's
	value      func(*Status) (float64, bool)
}

func always(value func(*Status) float64) func(*Status) (float64, bool) {
	return func(st *Status) (float64, bool) { return value(st), true }
}

func ofProved(value func(*Status) float64) func(*Status) (float64, bool) {
	return func(st *Status) (float64, bool) {
		if st.Proved == nil {
			return 0, false
		}
		return value(st), true
	}
}

// ofMeasured leaves out backups of which it is not known what writers really waited for.
func ofMeasured(value func(respaldo.Quiesced) float64) func(*Status) (float64, bool) {
	return func(st *Status) (float64, bool) {
		if st.Proved == nil || st.Proved.Manifest.Quiesced.Stall == "" {
			return 0, false
		}
		return value(st.Proved.Manifest.Quiesced), true
	}
}

func ofLastRun(value func(*LastRun) float64) func(*Status) (float64, bool) {
	return func(st *Status) (float64, bool) {
		if st.LastRun == nil || st.LastRun.Ended.IsZero() && st.Running == operationBackup {
			return 0, false
		}
		return value(st.LastRun), true
	}
}

func ofFill(value func(*Status) float64) func(*Status) (float64, bool) {
	return func(st *Status) (float64, bool) {
		if st.Fill == nil {
			return 0, false
		}
		return value(st), true
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// metrics of one name stand together, as the format wants it.
var metrics = []metric{
	{"respaldo_last_proved_backup_timestamp_seconds", "Time of the state that the last proved backup holds.", "",
		ofProved(func(st *Status) float64 { return float64(st.Proved.Manifest.Taken.UnixMilli()) / 1000 })},
	{"respaldo_last_proved_backup_bytes", "Size of the files in the last proved backup.", "",
		ofProved(func(st *Status) float64 { return float64(st.Proved.Bytes) })},
	{"respaldo_last_proved_backup_stored_bytes", "What the last proved backup added to the repository.", "",
		ofProved(func(st *Status) float64 { return float64(st.Proved.Stored) })},
	{"respaldo_last_proved_backup_duration_seconds", "How long saving the last proved backup took.", "",
		ofProved(func(st *Status) float64 { return st.Proved.End.Sub(st.Proved.Start).Seconds() })},
	{"respaldo_last_proved_backup_writers_held_seconds", "How long the last proved backup held its lock, by our own clock.", "",
		ofProved(func(st *Status) float64 { return st.Proved.Manifest.Quiesced.HeldSeconds })},
	{"respaldo_last_proved_backup_writers_stalled_seconds", "The longest time around the last proved backup's snapshot in which nothing was committed, as measured from outside.", "",
		ofMeasured(func(q respaldo.Quiesced) float64 { return q.StalledSeconds })},
	{"respaldo_last_proved_backup_writers_usual_seconds", "The longest such time right before it.", "",
		ofMeasured(func(q respaldo.Quiesced) float64 { return q.UsualSeconds })},
	{"respaldo_last_proved_backup_tries", "How often the last proved backup's snapshot was tried.", "",
		ofMeasured(func(q respaldo.Quiesced) float64 { return float64(q.Tries) })},
	{"respaldo_last_proved_backup_recovery_seconds", "How long the last proved backup took to start.", "",
		ofProved(func(st *Status) float64 { return st.Proved.Manifest.Proof.RecoverySeconds })},
	{"respaldo_max_age_seconds", "How old the last proved backup may be.", "",
		always(func(st *Status) float64 { return st.MaxAge })},
	{"respaldo_last_run_start_timestamp_seconds", "When the last run of backup on this machine began.", "",
		ofLastRun(func(r *LastRun) float64 { return float64(r.Started.UnixMilli()) / 1000 })},
	{"respaldo_last_run_success", "Whether the last run of backup on this machine succeeded.", "",
		ofLastRun(func(r *LastRun) float64 { return oneIf(r.OK) })},
	{"respaldo_repository_reachable", "Whether the repository could be read.", "",
		always(func(st *Status) float64 { return oneIf(st.Reachable) })},
	{"respaldo_backups", "Backups in the repository, proved or not.", "",
		func(st *Status) (float64, bool) { return float64(st.Backups), st.Reachable }},
	{"respaldo_kept_snapshots", "Snapshots on this machine that are to stay.", "",
		always(func(st *Status) float64 { return float64(st.Kept) })},
	{"respaldo_leftovers", "What operations that ended abruptly have left.", "",
		always(func(st *Status) float64 { return float64(len(st.Leftovers)) })},
	{"respaldo_storage_fill_ratio", "How full the thin pool or Btrfs filesystem is that snapshots share with the server.", `,of="data"`,
		ofFill(func(st *Status) float64 { return st.Fill.Data })},
	{"respaldo_storage_fill_ratio", "", `,of="metadata"`,
		ofFill(func(st *Status) float64 { return st.Fill.Metadata })},
	{"respaldo_problems", "How many problems respaldo status names.", "",
		always(func(st *Status) float64 { return float64(len(st.Problems)) })},
	{"respaldo_overdue", "Whether there is no proved backup that is young enough.", "",
		always(func(st *Status) float64 { return oneIf(st.State == StateOverdue) })},
}

// WriteMetrics writes what the servers' status is in Prometheus's text format. All are
// gauges: each tells of the last look, none counts.
func WriteMetrics(w io.Writer, all []*Status) error {
	var text strings.Builder
	described := map[string]bool{}
	for _, m := range metrics {
		for _, st := range all {
			value, ok := m.value(st)
			if !ok {
				continue
			}
			if !described[m.name] {
				described[m.name] = true
				fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s gauge\n", m.name, helpOf(m.name), m.name)
			}
			// A server's name has letters, digits and dashes: nothing to escape.
			fmt.Fprintf(&text, "%s{server=%q%s} %s\n", m.name, st.Server, m.labels, strconv.FormatFloat(value, 'f', -1, 64))
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func helpOf(name string) string {
	for _, m := range metrics {
		if m.name == name && m.help != "" {
			return m.help
		}
	}
	return ""
}
