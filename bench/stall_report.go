package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo/bench/stall"
)

// stallReport is what stall.json holds. All times are in seconds.
type stallReport struct {
	Format   int               `json:"format"` // of this file: 1
	Command  string            `json:"command"`
	Date     time.Time         `json:"date"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Rounds   int               `json:"rounds"`
	Method   string            `json:"method"`
	Sets     []*stallSet       `json:"sets"`
}

// stallSet is everything that was measured on one volume under one load.
type stallSet struct {
	Place       string         `json:"place"`
	Title       string         `json:"title"`
	Kind        string         `json:"kind"`
	Server      string         `json:"server"`
	Kernel      string         `json:"kernel"`
	Connections int            `json:"connections"`
	Pace        float64        `json:"pace_seconds"` // of each connection's transactions
	Read        float64        `json:"read_seconds,omitempty"`
	Results     []*stallResult `json:"results"`
}

// stallResult is one contender's. Trial is the one of its rounds whose gap is the median.
type stallResult struct {
	stall.Trial
	Worst float64       `json:"worst_gap_seconds"` // of all rounds
	Runs  []stall.Trial `json:"runs"`
}

const stallMethod = "The load does not wait for its turn: a transaction that is due while an earlier one of its connection waits is late from then on. " +
	"Every commit is timed by its client, in memory. The longest gap is the longest time in which no connection had a commit acknowledged, " +
	"from the contender's start on. p99.9 is of whole transactions of three statements, from when each was due. " +
	"The lock is from asking for it to giving it back, as the contender says, or by the server's clock before and after the statements of the script. " +
	"The volume's pause is the longest write of one byte to a file on the volume, without any database: it waits while the filesystem is suspended. " +
	"Every contender took its snapshot once before, for nothing, and then once in each round, in an order that rotates. " +
	"The row shown is the round whose gap is the median. " +
	"All of them, respaldo included, used LVM with the distribution's lvm.conf; mylvmbackup with backuptype=none, which makes no copy."

func newStallReport(ctx context.Context, command string, rounds int, p *peers) *stallReport {
	r := &stallReport{Format: 1, Command: command, Date: time.Now().UTC().Truncate(time.Second), Rounds: rounds, Method: stallMethod,
		Versions: map[string]string{"mylvmbackup": p.packages["mylvmbackup"], "lvm2": p.packages["lvm2"], "btrfs-progs": p.packages["btrfs-progs"]},
		Machine:  thisMachine(func(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) })}
	out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output()
	if r.Versions["respaldo"] = strings.TrimSpace(string(out)); err != nil {
		r.Versions["respaldo"] = "unknown"
	}
	return r
}

func (r *stallReport) add(p place, measured stall.Results) {
	for name, version := range measured.Versions {
		r.Versions[name] = version
	}
	for _, kind := range p.plan.Kinds {
		s := &stallSet{Place: p.Name, Title: p.Title, Kind: kind, Server: p.plan.Server, Kernel: measured.Kernel,
			Connections: p.plan.Connections, Pace: p.plan.Pace.Seconds(), Read: p.plan.Read.Seconds()}
		for _, t := range measured.Trials {
			if t.Kind == kind {
				s.add(t)
			}
		}
		if len(s.Results) > 0 {
			slices.SortFunc(s.Results, func(a, b *stallResult) int {
				return slices.Index(stallOrder, a.Contender) - slices.Index(stallOrder, b.Contender)
			})
			r.Sets = append(r.Sets, s)
		}
	}
}

var stallOrder = []string{stall.None, stall.Look, stall.Auto, stall.Global, stall.Mylvm, stall.Classic}

// add keeps the commits of the round that is plotted only.
func (s *stallSet) add(t stall.Trial) {
	x := s.find(t.Contender)
	if x == nil {
		x = &stallResult{}
		s.Results = append(s.Results, x)
	}
	x.Runs = append(x.Runs, t)
	byGap := slices.SortedFunc(slices.Values(x.Runs), func(a, b stall.Trial) int {
		switch {
		case a.Gap < b.Gap:
			return -1
		case a.Gap > b.Gap:
			return 1
		}
		return 0
	})
	x.Trial, x.Worst = byGap[len(byGap)/2], byGap[len(byGap)-1].Gap
}

func (s *stallSet) find(contender string) *stallResult {
	i := slices.IndexFunc(s.Results, func(x *stallResult) bool { return x.Contender == contender })
	if i < 0 {
		return nil
	}
	return s.Results[i]
}

func (s *stallSet) file() string { return "stall-" + s.Place + "-" + s.Kind + ".svg" }

// save writes stall.json for programs, stall.md for people, and a plot of each set.
func (r *stallReport) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, s := range r.Sets {
		if err := os.WriteFile(filepath.Join(dir, s.file()), []byte(s.plot()), 0o644); err != nil {
			return err
		}
		for _, x := range s.Results { // the plots show them
			for i := range x.Runs {
				x.Runs[i].Counts = nil
			}
		}
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "stall.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "stall.md"), []byte("# How long writers are held\n\n"+r.markdown()), 0o644)
}
