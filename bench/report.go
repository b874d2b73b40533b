package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// report is what backup.json holds.
type report struct {
	header
	Data    dataFacts `json:"data"`
	Results []*result `json:"results"`
}

type dataFacts struct {
	Bytes  int64 `json:"bytes"`
	Files  int   `json:"files"`
	Tables int   `json:"tables"`
	Rows   int   `json:"rows"` // of each table
}

// result is one step of one contender. Measurement is the median of each number by itself.
type result struct {
	Contender string `json:"contender"`
	Step      string `json:"step"`
	Measurement
	Ratios *ratios       `json:"ratios,omitempty"`
	Runs   []Measurement `json:"runs"` // by round
}

// ratios are to the baseline's same step, where it has one.
type ratios struct {
	Wall   float64 `json:"wall"`
	CPU    float64 `json:"cpu"`
	Peak   float64 `json:"peak"`
	Stored float64 `json:"stored,omitempty"`
}

const method = "Before each step everything written earlier was flushed, and what the step reads was read once, so that it was in the page cache " +
	"as far as memory allows. What a step writes was fsynced within its time. The order of the contenders rotates from round to round; " +
	"each number is the median of the rounds. CPU is user and system time of all processes of the contender; " +
	"peak memory is the kernel's high-water mark of resident memory (VmHWM), summed over a pipeline's processes. " +
	"Repositories were created before, and every restored directory was compared with the data byte by byte afterwards, none of it in the measured time; " +
	"for mariabackup, a server was started on it instead."

func newReport(ctx context.Context, o options, p *peers, d *dataset) *report {
	r := &report{header: newHeader(ctx, o.command, method, o.rounds), Data: dataFacts{d.bytes, d.files, tables, d.rows}}
	r.Versions["go"], r.Versions["restic"], r.Versions["zstd"] = runtime.Version(), p.packages["restic"], p.packages["zstd"]
	for name, argv := range map[string][]string{
		"tar":         {"tar", "--version"},
		"mariadb":     {servers.Binary(server, "mysqld"), "--no-defaults", "--version"},
		"mariabackup": {servers.Binary(server, "mariabackup"), "--version"},
	} {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if _, after, found := strings.Cut(first, "based on MariaDB server "); found {
			first = after
		} else if _, after, found := strings.Cut(first, "Ver "); found {
			first = after
		} else if _, after, found := strings.Cut(first, ") "); found {
			first = after
		}
		first, _, _ = strings.Cut(first, " ")
		if err != nil || first == "" {
			first = "unknown"
		}
		r.Versions[name] = first
	}
	return r
}

func (r *report) find(contender, step string) *result {
	i := slices.IndexFunc(r.Results, func(x *result) bool { return x.Contender == contender && x.Step == step })
	if i < 0 {
		return nil
	}
	return r.Results[i]
}

func (r *report) add(contender, step string, m Measurement) {
	x := r.find(contender, step)
	if x == nil {
		x = &result{Contender: contender, Step: step}
		r.Results = append(r.Results, x)
	}
	x.Runs = append(x.Runs, m)
	x.Measurement = Measurement{
		Wall:   median(x.Runs, func(m Measurement) float64 { return m.Wall }),
		User:   median(x.Runs, func(m Measurement) float64 { return m.User }),
		System: median(x.Runs, func(m Measurement) float64 { return m.System }),
		Peak:   median(x.Runs, func(m Measurement) int64 { return m.Peak }),
		Stored: median(x.Runs, func(m Measurement) int64 { return m.Stored }),
		Read:   median(x.Runs, func(m Measurement) int64 { return m.Read }),
		Others: median(x.Runs, func(m Measurement) float64 { return m.Others }),
	}
	for _, x := range r.Results {
		step := x.Step
		if step == againStep || step == againForcedStep {
			step = backupStep // the baseline knows no other
		}
		if base := r.find(baseline, step); base != nil {
			x.Ratios = &ratios{Wall: ratio(x.Wall, base.Wall), CPU: ratio(x.cpu(), base.cpu()), Peak: ratio(x.Peak, base.Peak), Stored: ratio(x.Stored, base.Stored)}
		}
	}
}

func median[T float64 | int64](runs []Measurement, of func(Measurement) T) T {
	var list []T
	for _, m := range runs {
		list = append(list, of(m))
	}
	slices.Sort(list)
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// ratio is rounded: more digits would pretend to a precision that nobody measured.
func ratio[T float64 | int64](a, b T) float64 {
	if b == 0 {
		return 0
	}
	return float64(int(float64(a)/float64(b)*1000+0.5)) / 1000
}

// others is the part of the machine's processors that did something else.
func (r *report) others() float64 {
	var others, all float64
	for _, x := range r.Results {
		for _, m := range x.Runs {
			others += m.Others
			all += m.Wall * float64(max(1, r.Machine.Cores))
		}
	}
	return others / max(all, 1e-9)
}

func (r *report) save(dir string) error {
	return saveResults(dir, "backup", r, "# Backup and restore\n\n"+r.markdown())
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "A data directory of %s (%d tables like sysbench's with %d rows each, in %d files), made by MariaDB %s. %s\n\n",
		size(r.Data.Bytes), r.Data.Tables, r.Data.Rows, r.Data.Files, r.Versions["mariadb"], r.conditions())
	fmt.Fprintf(&b, "Meanwhile everything else on the machine, the kernel's own threads included, took %.0f%% of its processors.\n\n", 100*r.others())
	fmt.Fprintf(&b, "In brackets: how many times that of `%s`.\n\n", baseline)
	for _, t := range []struct {
		title, stored string
		steps         []string
	}{
		{"Full backup", "Stored", []string{backupStep}},
		{"Second backup of the unchanged directory", "Stored in addition", []string{againStep, againForcedStep}},
		{"Restore, on disk", "", []string{restoreStep, prepareStep}},
	} {
		fmt.Fprintf(&b, "## %s\n\n", t.title)
		columns := []string{"", "Time", "CPU", "Peak memory"}
		if t.stored != "" {
			columns = append(columns, t.stored)
		}
		fmt.Fprintf(&b, "| %s |\n|---%s|\n", strings.Join(columns, " | "), strings.Repeat("|---:", len(columns)-1))
		for _, step := range t.steps {
			for _, x := range r.Results {
				if x.Step == step {
					b.WriteString(x.row(t.stored != ""))
				}
			}
		}
		b.WriteByte('\n')
	}
	if x := r.find(ours, againStep); x != nil {
		fmt.Fprintf(&b, "respaldo's second backup read %s: all of it, since InnoDB writes without always changing a file's time. restic skips a file whose size and time are as they were, unless told `--force`.\n\n", size(x.Read))
	}
	b.WriteString(r.Method + " mariabackup leaves out what it does not need of the redo log.\n\n")
	b.WriteString(r.versions())
	return b.String()
}

func (x *result) row(stored bool) string {
	name := x.Contender
	switch {
	case x.Contender == baseline && x.Step == restoreStep:
		name = "zstd -d | mbstream -x"
	case x.Step == prepareStep:
		name = "mariabackup --prepare, in addition"
	case x.Step == againForcedStep:
		name += " --force"
	}
	over := func(r float64) string {
		if x.Ratios == nil || r < 0.005 || x.Step == prepareStep {
			return ""
		}
		return fmt.Sprintf(" (%.2f)", r)
	}
	r := x.Ratios
	if r == nil {
		r = &ratios{}
	}
	cells := []string{"`" + name + "`",
		fmt.Sprintf("%.1f s", x.Wall) + over(r.Wall),
		fmt.Sprintf("%.1f s", x.cpu()) + over(r.CPU),
		size(x.Peak) + over(r.Peak)}
	if stored {
		cells = append(cells, size(x.Stored)+over(r.Stored))
	}
	// A pipe would end the table's cell.
	for i := range cells {
		cells[i] = strings.ReplaceAll(cells[i], "|", `\|`)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
