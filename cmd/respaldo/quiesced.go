package main

import (
	"fmt"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

// quiescedFields say what a snapshot cost the writers, and what the lock was.
func quiescedFields(f *table, q respaldo.Quiesced) {
	if q.Stall == "" { // an image of an earlier version's
		f.field("writers", fmt.Sprintf("held %s, after waiting %s for the lock (%s)", backup.FormatSeconds(q.HeldSeconds), backup.FormatSeconds(q.WaitedSeconds), q.Mode))
		return
	}
	switch {
	case q.StalledSeconds == 0:
		f.field("writers", q.Stall)
	case q.UsualSeconds == 0:
		f.field("writers", fmt.Sprintf("held %s (%s)", backup.FormatSeconds(q.StalledSeconds), q.Stall))
	default:
		f.field("writers", fmt.Sprintf("held %s, where %s is usual (%s)", backup.FormatSeconds(q.StalledSeconds), backup.FormatSeconds(q.UsualSeconds), q.Stall))
	}
	lock := fmt.Sprintf("%s, held %s after waiting %s", q.Mode, backup.FormatSeconds(q.HeldSeconds), backup.FormatSeconds(q.WaitedSeconds))
	if q.Tries > 1 {
		lock += fmt.Sprintf("; at try %d", q.Tries)
	}
	f.field("lock", lock)
	if q.PauseSeconds > 0 {
		f.field("pause", backup.FormatSeconds(q.PauseSeconds)+", the volume's own part")
	}
}

// heldWord is quiescedFields in one word, for a list.
func heldWord(q respaldo.Quiesced) string {
	switch {
	case q.Stall == "":
		return backup.FormatSeconds(q.HeldSeconds)
	case q.StalledSeconds == 0:
		return "-"
	}
	return backup.FormatSeconds(q.StalledSeconds)
}
