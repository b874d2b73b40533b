//go:build lab

package lab_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/guest"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// resultsEnv is set by make exactness: what TestExact has found out is written into bench/results and docs.
const resultsEnv = "RESPALDO_RESULTS"

// TestExact takes images of servers that are written to, and compares each with its origin.
// When soaking, each server comes in a guest of its own, with every volume, lock and profile.
func TestExact(t *testing.T) {
	t.Parallel()
	spec := lab.Spec{Name: "exact", Disks: twoDisks, Memory: 2048, Deadline: 20 * time.Minute, Respaldo: true}
	if os.Getenv(lab.SoakEnv) == "" {
		lab.RunTests(t, spec, "./cmd/respaldo", "^TestExact$")
		return
	}
	results := &exactResults{Date: time.Now().UTC().Truncate(time.Second), Command: "make exactness"}
	t.Cleanup(func() {
		t.Logf("\n%s", results.table())
		if t.Failed() {
			return
		}
		if err := results.write(); err != nil {
			t.Error(err)
		}
	})
	for _, server := range servers.Names {
		t.Run(server, func(t *testing.T) {
			t.Parallel()
			spec := spec
			spec.Name, spec.OnLine, spec.Env = "exact-"+server, results.read, []string{"LAB_SERVER=" + server}
			lab.RunTests(t, spec, "./cmd/respaldo", "^TestExact$")
		})
	}
}

// exactResults are what bench/results/exactness.json holds.
type exactResults struct {
	Format  int               `json:"format"` // of this file: 1
	Command string            `json:"command"`
	Date    time.Time         `json:"date"`
	Results []guest.Exactness `json:"results"`

	mu sync.Mutex
}

func (r *exactResults) read(line string) {
	_, text, ok := strings.Cut(line, "LAB-EXACT ")
	var one guest.Exactness
	if !ok || json.Unmarshal([]byte(text), &one) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Results = append(r.Results, one)
}

// write puts the results where people find them, if that was asked for and they are whole.
func (r *exactResults) write() error {
	if os.Getenv(resultsEnv) == "" {
		return nil
	}
	for _, server := range servers.Names {
		if !slices.ContainsFunc(r.Results, func(e guest.Exactness) bool { return e.Server == server }) {
			return fmt.Errorf("nothing is written of a run without %s", server)
		}
	}
	r.Format = 1
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	text = bytes.ReplaceAll(text, []byte(`{"server":`), []byte("\n{\"server\":")) // a line each
	if err := os.WriteFile(filepath.Join("..", "bench", "results", "exactness.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	page := filepath.Join("..", "docs", "exactness.md")
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	const mark = "<!-- what follows is written by the command -->\n"
	head, _, ok := strings.Cut(string(old), mark)
	if !ok {
		return fmt.Errorf("%s has no line %q", page, mark)
	}
	return os.WriteFile(page, []byte(head+mark+"\n"+r.table()), 0o644)
}

// table is for people: servers and profiles down, locks across, volumes together.
func (r *exactResults) table() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	type key struct{ server, profile, lock string }
	sums, all := map[key]*guest.Exactness{}, &guest.Exactness{}
	var rows []key
	volumes, locks := map[string]bool{}, []string{"auto", "none", "backup", "global"}
	for _, one := range r.Results {
		k := key{one.Server, one.Profile, one.Lock}
		if sums[k] == nil {
			sums[k] = &guest.Exactness{}
		}
		sums[k].Add(one)
		all.Add(one)
		volumes[one.Volume] = true
		if k.lock = ""; !slices.Contains(rows, k) {
			rows = append(rows, k)
		}
	}
	slices.SortStableFunc(rows, func(a, b key) int {
		return cmp.Compare(slices.Index(servers.Names, a.server), slices.Index(servers.Names, b.server))
	})
	var b strings.Builder
	fmt.Fprintf(&b, "`%s`, %s. %d images were asked for, on the volumes %s: %d exact, %d refused beforehand, %d marked as not exact, **%d silently wrong**.\n\n", r.Command,
		r.Date.Format("2006-01-02"), all.Images, strings.Join(slices.Sorted(maps.Keys(volumes)), ", "), all.Exact, all.Refused, all.Marked, all.Wrong)
	fmt.Fprintf(&b, "| Server | Written meanwhile | `--lock=%s` |\n|---|---|%s\n", strings.Join(locks, "` | `--lock="), strings.Repeat("---|", len(locks)))
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s |", row.server, row.profile)
		for _, lock := range locks {
			fmt.Fprintf(&b, " %s |", sums[key{row.server, row.profile, lock}])
		}
		b.WriteString("\n")
	}
	return b.String()
}
