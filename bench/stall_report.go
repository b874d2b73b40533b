package main

import (
	"cmp"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/respaldo-backup/respaldo/bench/stall"
)

// stallReport is what stall.json holds. All times are in seconds.
type stallReport struct {
	header
	Sets []*stallSet `json:"sets"`
}

// stallSet is everything that was measured on one volume under one load.
type stallSet struct {
	Place       string        `json:"place"`
	Title       string        `json:"title"`
	Kind        string        `json:"kind"`
	Server      string        `json:"server"`
	Kernel      string        `json:"kernel"`
	Connections int           `json:"connections"`
	Pace        float64       `json:"pace_seconds"` // of each connection's transactions
	Read        float64       `json:"read_seconds,omitempty"`
	Runs        []stall.Trial `json:"runs"` // in stallOrder, then by round
}

// stallResult is one contender's: the one of its rounds whose gap is the median.
type stallResult struct {
	*stall.Trial
	Worst float64 // gap of all rounds
}

const stallMethod = "The load does not wait for its turn: a transaction that is due while an earlier one of its connection waits is late from then on. " +
	"Every commit is timed by its client, in memory. The longest gap is the longest time in which no connection had a commit acknowledged, " +
	"from the contender's start on. p99.9 is of whole transactions of three statements, from when each was due. " +
	"The lock is from asking for it to giving it back, as the contender says, or by the server's clock before and after the statements of the script. " +
	"The volume's pause is the longest write of one byte to a file on the volume, without any database: it waits while the filesystem is suspended, and for a processor. " +
	"Suspended is from suspend to resume of the volume, as respaldo saw it in sysfs; on Btrfs the time of the system call. " +
	"Every contender took its snapshot once before, for nothing, and then once in each round, in an order that rotates. " +
	"The row shown is the round whose gap is the median. " +
	"All of them, respaldo included, used LVM with the distribution's lvm.conf; mylvmbackup with backuptype=none, which makes no copy."

func newStallReport(ctx context.Context, command string, rounds int, p *peers) *stallReport {
	r := &stallReport{header: newHeader(ctx, command, stallMethod, rounds)}
	for _, name := range []string{"mylvmbackup", "lvm2", "btrfs-progs"} {
		r.Versions[name] = p.packages[name]
	}
	return r
}

// add keeps the commits of the rounds that are plotted only.
func (r *stallReport) add(p place, measured stall.Results) {
	maps.Copy(r.Versions, measured.Versions)
	for _, kind := range p.plan.Kinds {
		s := &stallSet{Place: p.Name, Title: p.Title, Kind: kind, Server: p.plan.Server, Kernel: measured.Kernel,
			Connections: p.plan.Connections, Pace: p.plan.Pace.Seconds(), Read: p.plan.Read.Seconds()}
		for _, contender := range stallOrder {
			for _, t := range measured.Trials {
				if t.Kind == kind && t.Contender == contender {
					s.Runs = append(s.Runs, t)
				}
			}
		}
		if len(s.Runs) == 0 {
			continue
		}
		shown := map[*stall.Trial]bool{}
		for _, x := range s.results() {
			shown[x.Trial] = true
		}
		for i := range s.Runs {
			if t := &s.Runs[i]; !shown[t] {
				t.Counts = nil
			}
		}
		r.Sets = append(r.Sets, s)
	}
}

var stallOrder = []string{stall.None, stall.Look, stall.Auto, stall.Global, stall.Mylvm, stall.Classic}

// results has one for each contender.
func (s *stallSet) results() (list []stallResult) {
	for _, contender := range stallOrder {
		var rounds []*stall.Trial
		for i := range s.Runs {
			if t := &s.Runs[i]; t.Contender == contender {
				rounds = append(rounds, t)
			}
		}
		if n := len(rounds); n > 0 {
			slices.SortStableFunc(rounds, func(a, b *stall.Trial) int { return cmp.Compare(a.Gap, b.Gap) })
			list = append(list, stallResult{rounds[n/2], rounds[n-1].Gap})
		}
	}
	return list
}

// find is nil for a contender that was not measured.
func (s *stallSet) find(contender string) *stall.Trial {
	for _, x := range s.results() {
		if x.Contender == contender {
			return x.Trial
		}
	}
	return nil
}

func (s *stallSet) file() string { return "stall-" + s.Place + "-" + s.Kind + ".svg" }

// save also writes a plot of each set.
func (r *stallReport) save(dir string) error {
	if err := saveResults(dir, "stall", r, "# How long writers are held\n\n"+r.markdown()); err != nil {
		return err
	}
	for _, s := range r.Sets {
		if err := os.WriteFile(filepath.Join(dir, s.file()), []byte(s.plot()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
