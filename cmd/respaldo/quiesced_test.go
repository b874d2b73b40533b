package main

import (
	"bytes"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// Backups of every age say what they cost the writers.
func TestWhatWritersWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		q            respaldo.Quiesced
		fields, word string
	}{
		"before it was measured": {respaldo.Quiesced{Mode: respaldo.LockGlobal, WaitedSeconds: 0.001, HeldSeconds: 0.2},
			"writers  held 200 ms, after waiting 1.00 ms for the lock (global)\n", "200 ms"},
		"measured": {respaldo.Quiesced{Mode: respaldo.LockBackup, WaitedSeconds: 0.001, HeldSeconds: 0.01, StalledSeconds: 0.0142, UsualSeconds: 0.0031, Stall: "seen", Tries: 1},
			"writers  held 14.2 ms, where 3.10 ms is usual (seen)\nlock     backup, held 10.0 ms after waiting 1.00 ms\n", "14.2 ms"},
		"nobody before, and tried twice": {respaldo.Quiesced{Mode: respaldo.LockBackup, WaitedSeconds: 0.001, HeldSeconds: 0.01, StalledSeconds: 0.0142, Stall: "seen", Tries: 2},
			"writers  held 14.2 ms (seen)\nlock     backup, held 10.0 ms after waiting 1.00 ms; at try 2\n", "14.2 ms"},
		"idle": {respaldo.Quiesced{Mode: respaldo.LockBackup, WaitedSeconds: 0.001, HeldSeconds: 0.01, Stall: "idle: nobody wrote", PauseSeconds: 0.0049, Tries: 1},
			"writers  idle: nobody wrote\nlock     backup, held 10.0 ms after waiting 1.00 ms\npause    4.90 ms, the volume's own part\n", "-"},
	} {
		fields := newFields()
		quiescedFields(fields, c.q)
		var out bytes.Buffer
		fields.write(&out, 0)
		if out.String() != c.fields || heldWord(c.q) != c.word {
			t.Errorf("%s: %q, %s", name, out.String(), heldWord(c.q))
		}
	}
}
