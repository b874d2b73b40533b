//go:build !guest

package repo_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

func TestRetain(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	// A backup is "TIME" and marks: u unproved, p pinned, n of a newer format, #SERVERID, @HOST.
	parse := func(text string) respaldo.Backup {
		t.Helper()
		stamp, marks, _ := strings.Cut(text, " ")
		at, err := time.Parse(time.RFC3339, stamp)
		must(t, err)
		b := respaldo.Backup{ID: text, Pinned: strings.Contains(marks, "p")}
		b.Manifest = respaldo.Manifest{Format: 1, Server: "shop", Host: "db1", Taken: at, Proof: respaldo.Proof{OK: !strings.Contains(marks, "u")}}
		if strings.Contains(marks, "n") {
			b.Manifest.Format = respaldo.ManifestFormat + 1
		}
		if _, host, ok := strings.Cut(marks, "@"); ok {
			b.Manifest.Host = host
		}
		if _, rest, ok := strings.Cut(marks, "#"); ok {
			b.Manifest.ServerID, _, _ = strings.Cut(rest, "@")
		}
		return b
	}
	for name, c := range map[string]struct {
		policy  repo.Policy
		backups []string
		keep    []string // with reasons
	}{
		"nothing": {},
		"no policy keeps all": {
			backups: []string{"2024-01-01T00:00:00Z u", "2024-01-02T00:00:00Z"},
			keep:    []string{"2024-01-01T00:00:00Z u: no policy", "2024-01-02T00:00:00Z: no policy, newest proved"},
		},
		"last": {
			policy:  repo.Policy{Last: 2},
			backups: []string{"2024-01-03T00:00:00Z", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"},
			keep:    []string{"2024-01-02T00:00:00Z: last", "2024-01-03T00:00:00Z: last, newest proved"},
		},
		"servers of one name on hosts of one name are kept apart": {
			policy:  repo.Policy{Last: 1},
			backups: []string{"2024-01-01T00:00:00Z #madrid", "2024-01-02T00:00:00Z #lima", "2024-01-03T00:00:00Z #lima"},
			keep:    []string{"2024-01-01T00:00:00Z #madrid: last, newest proved", "2024-01-03T00:00:00Z #lima: last, newest proved"},
		},
		"the newest proved one stays though it is old": {
			policy:  repo.Policy{Last: 1},
			backups: []string{"2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "2024-01-03T00:00:00Z u", "2024-01-04T00:00:00Z u"},
			keep:    []string{"2024-01-02T00:00:00Z: newest proved", "2024-01-04T00:00:00Z u: last"},
		},
		"pinned and newer formats stay": {
			policy:  repo.Policy{Last: 1},
			backups: []string{"2024-01-01T00:00:00Z p", "2024-01-02T00:00:00Z un", "2024-01-03T00:00:00Z", "2024-01-04T00:00:00Z"},
			keep:    []string{"2024-01-01T00:00:00Z p: pinned", "2024-01-02T00:00:00Z un: newer format", "2024-01-04T00:00:00Z: last, newest proved"},
		},
		"hourly takes the last of each hour that has one": {
			policy:  repo.Policy{Hourly: 2},
			backups: []string{"2024-01-01T01:10:00Z", "2024-01-01T05:10:00Z", "2024-01-01T05:50:00Z", "2024-01-01T09:00:00Z"},
			keep:    []string{"2024-01-01T05:50:00Z: hourly", "2024-01-01T09:00:00Z: hourly, newest proved"},
		},
		"days are local": {
			policy:  repo.Policy{Daily: 2},
			backups: []string{"2024-01-01T22:59:00Z", "2024-01-01T23:01:00Z", "2024-01-02T22:59:00Z"},
			keep:    []string{"2024-01-01T22:59:00Z: daily", "2024-01-02T22:59:00Z: daily, newest proved"},
		},
		"the hour that summer time repeats is two": {
			policy:  repo.Policy{Hourly: 2},
			backups: []string{"2024-10-27T00:30:00Z", "2024-10-27T01:30:00Z"},
			keep:    []string{"2024-10-27T00:30:00Z: hourly", "2024-10-27T01:30:00Z: hourly, newest proved"},
		},
		"weeks begin on Monday and span the year's end": {
			policy:  repo.Policy{Weekly: 2},
			backups: []string{"2024-12-29T12:00:00Z", "2024-12-30T12:00:00Z", "2025-01-05T12:00:00Z"},
			keep:    []string{"2024-12-29T12:00:00Z: weekly", "2025-01-05T12:00:00Z: weekly, newest proved"},
		},
		"months and years": {
			policy:  repo.Policy{Monthly: 1, Yearly: 2},
			backups: []string{"2023-02-01T00:00:00Z", "2024-05-01T12:00:00Z", "2024-05-31T12:00:00Z"},
			keep:    []string{"2023-02-01T00:00:00Z: yearly", "2024-05-31T12:00:00Z: monthly, yearly, newest proved"},
		},
		"within a period a proved one goes first": {
			policy:  repo.Policy{Daily: 2},
			backups: []string{"2024-01-01T01:00:00Z", "2024-01-01T02:00:00Z u", "2024-01-02T02:00:00Z u"},
			keep:    []string{"2024-01-01T01:00:00Z: daily, newest proved", "2024-01-02T02:00:00Z u: daily"},
		},
		"each host for itself": {
			policy:  repo.Policy{Last: 1},
			backups: []string{"2024-01-01T00:00:00Z @db2", "2024-01-02T00:00:00Z", "2024-01-03T00:00:00Z"},
			keep:    []string{"2024-01-01T00:00:00Z @db2: last, newest proved", "2024-01-03T00:00:00Z: last, newest proved"},
		},
		"more periods than backups": {
			policy:  repo.Policy{Last: 9, Hourly: 9, Daily: 9},
			backups: []string{"2024-01-01T00:00:00Z"},
			keep:    []string{"2024-01-01T00:00:00Z: last, hourly, daily, newest proved"},
		},
	} {
		c.policy.Location = berlin
		var backups []respaldo.Backup
		for _, text := range c.backups {
			backups = append(backups, parse(text))
		}
		keep, forget := repo.Retain(c.policy, backups)
		var kept []string
		for _, k := range keep {
			kept = append(kept, k.Backup.ID+": "+strings.Join(k.Reasons, ", "))
		}
		if !slices.Equal(kept, c.keep) {
			t.Errorf("%s: kept\n%s\ninstead of\n%s", name, strings.Join(kept, "\n"), strings.Join(c.keep, "\n"))
		}
		if len(keep)+len(forget) != len(backups) {
			t.Errorf("%s: %d kept and %d forgotten of %d", name, len(keep), len(forget), len(backups))
		}
	}
}
