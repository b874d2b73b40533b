package repo

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// Policy says how many backups to keep: the last ones, and the last one of each of so many
// hours, days, weeks (from Monday), months and years that have any. The zero Policy keeps
// everything.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	Location                                     *time.Location // nil is local time
}

// Kept is a backup that stays, and every reason why.
type Kept struct {
	Backup  respaldo.Backup `json:"backup"`
	Reasons []string        `json:"reasons"`
}

// Retain splits backups by the policy, each server for itself and its dumps apart; both
// results are oldest first. Within a period a proved backup goes before an unproved one. Always
// kept are pinned ones, those of a newer format, and a server's newest proved one.
func Retain(p Policy, backups []respaldo.Backup) (keep []Kept, forget []respaldo.Backup) {
	servers := map[string][]respaldo.Backup{}
	for _, b := range backups {
		of := identity(b.Manifest)
		if b.Manifest.Dump != nil {
			of += dumpsSource
		}
		servers[of] = append(servers[of], b)
	}
	for _, list := range servers {
		reasons := p.judge(list)
		for i, b := range list {
			if len(reasons[i]) > 0 {
				keep = append(keep, Kept{b, reasons[i]})
			} else {
				forget = append(forget, b)
			}
		}
	}
	slices.SortFunc(keep, func(a, b Kept) int { return newer(b.Backup, a.Backup) })
	slices.SortFunc(forget, func(a, b respaldo.Backup) int { return newer(b, a) })
	return keep, forget
}

// identity tells servers apart: by our ID of each, since names recur (db1.north and db1.south,
// clones of one machine, "main" everywhere).
func identity(m respaldo.Manifest) string {
	if m.ServerID != "" {
		return m.ServerID
	}
	return m.Server + "@" + m.Host
}

// newer orders backups newest first.
func newer(a, b respaldo.Backup) int {
	return cmp.Or(taken(b).Compare(taken(a)), cmp.Compare(a.ID, b.ID))
}

func taken(b respaldo.Backup) time.Time {
	if b.Manifest.Taken.IsZero() {
		return b.Start
	}
	return b.Manifest.Taken
}

func proved(b respaldo.Backup) bool { return b.Manifest.Proof.OK }

// judge sorts list newest first and returns the reasons to keep each.
func (p Policy) judge(list []respaldo.Backup) [][]string {
	slices.SortFunc(list, newer)
	reasons := make([][]string, len(list))
	add := func(i int, reason string) { reasons[i] = append(reasons[i], reason) }

	everything := p.Last <= 0 && p.Hourly <= 0 && p.Daily <= 0 && p.Weekly <= 0 && p.Monthly <= 0 && p.Yearly <= 0
	for i, b := range list {
		if everything {
			add(i, "no policy")
		}
		if i < p.Last {
			add(i, "last")
		}
		if b.Pinned {
			add(i, "pinned")
		}
		if b.Manifest.Format > respaldo.ManifestFormat {
			add(i, "newer format")
		}
	}
	where := p.Location
	if where == nil {
		where = time.Local
	}
	for _, period := range []struct {
		name string
		n    int
		of   func(time.Time) string
	}{
		// With the offset: the hour that summer time repeats is two hours.
		{"hourly", p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15 -0700") }},
		{"daily", p.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", p.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, "-", w) }},
		{"monthly", p.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", p.Yearly, func(t time.Time) string { return t.Format("2006") }},
	} {
		for n, i := 0, 0; n < period.n && i < len(list); n++ {
			name := period.of(taken(list[i]).In(where))
			best := i
			for ; i < len(list) && period.of(taken(list[i]).In(where)) == name; i++ {
				if proved(list[i]) && !proved(list[best]) {
					best = i
				}
			}
			add(best, period.name)
		}
	}
	if i := slices.IndexFunc(list, proved); i >= 0 {
		add(i, "newest proved")
	}
	return reasons
}
