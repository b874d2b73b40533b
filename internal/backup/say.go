package backup

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// How the stories put figures into words.

func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func secondsOf(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 100*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func savedDetail(s *repo.Saved) string {
	return fmt.Sprintf("%d files, %s read, %s stored", s.Files, bytesOf(s.Read), bytesOf(s.Stored))
}

func proofDetail(p respaldo.Proof) string {
	return fmt.Sprintf("started and recovered in %s, %d of %d tables checked, at %s", secondsOf(p.RecoverySeconds), p.Tables, p.TablesTotal, p.Coordinates)
}
