package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/bench/stall"
)

// measured is what three rounds on one volume could have shown.
func measured() *stallReport {
	r := &stallReport{header: header{Format: 1, Rounds: 3, Versions: map[string]string{}}}
	var m stall.Results
	for round, noise := range []float64{1.5, 1, 0.9} {
		for _, contender := range []string{stall.Classic, stall.Mylvm, stall.Global, stall.Auto, stall.Look, stall.None} {
			gap := map[string]float64{stall.None: 0.010, stall.Look: 0.010, stall.Auto: 0.011, stall.Global: 0.1, stall.Mylvm: 1, stall.Classic: 2}[contender]
			counts := make([]int, 300)
			for i := range counts {
				counts[i] = i % 4
			}
			m.Trials = append(m.Trials, stall.Trial{Kind: "thin-ext4", Contender: contender, Round: round + 1, Window: 2, Took: 0.5, Gap: gap * noise, Latency: gap, Lock: "global", Held: gap, Counts: counts})
		}
	}
	p := places[0]
	p.plan.Kinds = []string{"thin-ext4"}
	r.add(p, m)
	return r
}

// The row is the round with the median gap, and beside it stands the worst.
func TestStallReport(t *testing.T) {
	r := measured()
	dir := filepath.Join(t.TempDir(), "results")
	must(t, r.save(dir))
	text, err := os.ReadFile(filepath.Join(dir, "stall.md"))
	must(t, err)
	for _, line := range []string{
		"| `classic script` | 2000 ms | 3000 ms | 2000 ms | 2000 ms (global) |",
		"Met: respaldo's longest gap is 1.10 times that without a backup",
		"Met: the classic script's is 181.8 times respaldo's",
		"](stall-lab-thin-ext4.svg)",
	} {
		if !strings.Contains(string(text), line) {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "stall.json"))
	must(t, err)
	var back stallReport
	must(t, json.Unmarshal(b, &back))
	if x := back.Sets[0].find(stall.Auto); x == nil || x.Round != 2 || x.Gap != 0.011 || len(x.Counts) != 300 {
		t.Errorf("%+v", x)
	}
	for i, run := range back.Sets[0].Runs {
		if run.Contender != stallOrder[i/3] || run.Round != i%3+1 || (run.Counts != nil) != (run.Round == 2) {
			t.Errorf("run %d is round %d of %s, with %d counts", i, run.Round, run.Contender, len(run.Counts))
		}
	}
	if lines := bytes.Count(b, []byte("\n")); lines > 50 {
		t.Errorf("18 runs take %d lines", lines)
	}
	if _, err := os.Stat(filepath.Join(dir, "stall-lab-thin-ext4.svg")); err != nil {
		t.Error(err)
	}
}

func TestMissedAimsAreTold(t *testing.T) {
	s := measured().Sets[0]
	for i := range s.Runs {
		if s.Runs[i].Contender == stall.Auto {
			s.Runs[i].Gap = 0.5
		}
	}
	if told := strings.Join(s.aims(), "\n"); strings.Contains(told, "Met: ") || strings.Count(told, "Missed: ") != 2 {
		t.Error(told)
	}
	s.Kind = "thick-ext4"
	for suspended, met := range map[float64]bool{0.48: true, 0.3: false, 0: false} {
		ours := s.find(stall.Auto)
		ours.Suspended, ours.Pause = suspended, 0.5
		if aim := s.aims()[0]; strings.HasPrefix(aim, "Met: ") != met {
			t.Errorf("suspended for %v s: %s", suspended, aim)
		}
	}
}

// The plot is a picture that any viewer takes, with every contender on the same axes.
func TestPlot(t *testing.T) {
	s := measured().Sets[0]
	s.find(stall.Global).Failed = "it was refused"
	s.find(stall.Classic).Window = 4
	picture := s.plot()
	var texts []string
	paths := 0
	for d, within := xml.NewDecoder(strings.NewReader(picture)), ""; ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		switch e := token.(type) {
		case xml.StartElement:
			if within = e.Name.Local; within == "script" {
				t.Error("it has a script")
			}
			if i := slices.IndexFunc(e.Attr, func(a xml.Attr) bool { return a.Name.Local == "stroke-width" && e.Name.Local == "path" }); i >= 0 && e.Attr[i].Value != "3" {
				paths++
			}
		case xml.CharData:
			if within == "text" {
				texts = append(texts, string(e))
			}
		}
	}
	at := -1
	for _, name := range stallOrder {
		i := slices.Index(texts, name)
		if i <= at {
			t.Errorf("%s is not where it belongs among %q", name, texts)
		}
		at = i
	}
	if paths != len(stallOrder) {
		t.Errorf("%d panels with bars", paths)
	}
	if !strings.Contains(strings.Join(texts, "\n"), "took no snapshot") {
		t.Error("a contender that was refused looks like one that was not")
	}
	if strings.Contains(picture, "NaN") || strings.Contains(picture, "Inf") {
		t.Error("a number is none")
	}
}
