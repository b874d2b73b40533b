package backup

import (
	"fmt"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// How figures are put into words, in the steps of a story as in its result.

// FormatBytes is for people: three digits, powers of 1024 ("1.46 GiB").
func FormatBytes(bytes int64) string {
	if bytes > -1024 && bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), 0
	for value >= 999.5 || value <= -999.5 {
		value, unit = value/1024, unit+1
	}
	return threeDigits(value) + " " + string("BKMGTPE"[unit]) + "iB"
}

// FormatDuration is for people: "12.3 ms", "1.24 s", "2 min 5 s", "3 h 12 min".
func FormatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + FormatDuration(-d)
	case d == 0:
		return "0 s"
	case d < 999500*time.Nanosecond:
		return threeDigits(float64(d)/1e3) + " µs"
	case d < 999500*time.Microsecond:
		return threeDigits(float64(d)/1e6) + " ms"
	case d < 59950*time.Millisecond:
		return threeDigits(d.Seconds()) + " s"
	}
	d = d.Round(time.Second)
	if d < time.Hour {
		return fmt.Sprintf("%d min %d s", int(d/time.Minute), int(d%time.Minute/time.Second))
	}
	d = d.Round(time.Minute)
	if d < 48*time.Hour {
		return fmt.Sprintf("%d h %d min", int(d/time.Hour), int(d%time.Hour/time.Minute))
	}
	return fmt.Sprintf("%d d %d h", int(d/(24*time.Hour)), int(d%(24*time.Hour)/time.Hour))
}

// FormatSeconds is FormatDuration for what JSON shows as seconds.
func FormatSeconds(s float64) string { return FormatDuration(time.Duration(s * float64(time.Second))) }

// threeDigits drops what nobody reads: 1.24, 12.3, 123.
func threeDigits(value float64) string {
	digits := 2
	switch abs := max(value, -value); {
	case abs >= 99.95:
		digits = 0
	case abs >= 9.995:
		digits = 1
	}
	return fmt.Sprintf("%.*f", digits, value)
}

func savedDetail(s *repo.Saved) string {
	return fmt.Sprintf("%d files, %s read, %s stored", s.Files, FormatBytes(s.Read), FormatBytes(s.Stored))
}

func proofDetail(p respaldo.Proof) string {
	text := fmt.Sprintf("started and recovered in %s, %d of %d tables checked, at %s", FormatSeconds(p.RecoverySeconds), p.Tables, p.TablesTotal, p.Coordinates)
	if len(p.NotChecked) > 0 {
		text += "; could not check " + strings.Join(p.NotChecked, ", ")
	}
	return text
}

// WritersText says what a snapshot cost the writers: as it was measured from outside, or,
// where that was not done, by our own clock.
func WritersText(q respaldo.Quiesced) string {
	switch {
	case q.Stall == "":
		return "writers held " + FormatSeconds(q.HeldSeconds)
	case q.StalledSeconds == 0:
		return "writers: " + q.Stall
	case q.UsualSeconds == 0:
		return "writers held " + FormatSeconds(q.StalledSeconds)
	}
	return fmt.Sprintf("writers held %s, where %s is usual", FormatSeconds(q.StalledSeconds), FormatSeconds(q.UsualSeconds))
}
