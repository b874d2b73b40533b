package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a pipeline costs is what all of its programs cost.
func TestPipelineIsMeasuredWhole(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	const n = 50_000_000
	m, err := step{name: "copy", writes: out, stores: true, out: out, warm: t.TempDir(), pipe: [][]string{
		{"head", "-c", "50000000", "/dev/zero"},
		{"tail", "-c", "50000000"}, // keeps all of it in memory
		{"cat"},
	}}.measure(t.Context())
	must(t, err)
	if m.Stored != n {
		t.Errorf("stored %d bytes", m.Stored)
	}
	if m.Peak < n || m.Peak > 2*n {
		t.Errorf("peak memory %d", m.Peak)
	}
	if m.cpu() <= 0 || m.Wall <= 0 {
		t.Errorf("%+v", m)
	}
}

// A backup of which only a part was written is no measurement.
func TestFailureInThePipelineIsNoticed(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	_, err := step{out: out, writes: out, warm: t.TempDir(), pipe: [][]string{{"sh", "-c", "echo disk on fire >&2; exit 3"}, {"cat"}}}.measure(t.Context())
	if err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("error: %v", err)
	}
	_, err = step{out: out, writes: out, warm: t.TempDir(), pipe: [][]string{{"yes"}, {"no-such-program"}}}.measure(t.Context())
	if err == nil {
		t.Error("no error for a program that does not exist")
	}
}

// The process that is measured as respaldo does what respaldo does.
func TestContenderBringsBackWhatItSaved(t *testing.T) {
	dir := t.TempDir()
	data, restored := filepath.Join(dir, "data"), filepath.Join(dir, "restored")
	must(t, os.MkdirAll(filepath.Join(data, "sbtest"), 0o755))
	var rows bytes.Buffer
	must(t, writeRows(&rows, rand.New(rand.NewPCG(1, 1)), 5000))
	must(t, os.WriteFile(filepath.Join(data, "sbtest", "rows"), rows.Bytes(), 0o644))
	for _, action := range [][]string{{"create", data}, {"backup", data, tellsRead}, {"restore", restored}} {
		args := append([]string{action[0], filepath.Join(dir, "repository"), filepath.Join(dir, "cache")}, action[1:]...)
		must(t, contend(t.Context(), args))
	}
	must(t, sameTree(data, restored))

	changed := filepath.Join(restored, "sbtest", "rows")
	b, err := os.ReadFile(changed)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(changed, b, 0o644))
	if sameTree(data, restored) == nil {
		t.Error("a changed byte was not noticed")
	}
	must(t, os.WriteFile(changed, rows.Bytes(), 0o644))
	must(t, os.WriteFile(filepath.Join(restored, "more"), nil, 0o644))
	if sameTree(data, restored) == nil {
		t.Error("a file too many was not noticed")
	}
}

func TestRowsLookLikeSysbenchs(t *testing.T) {
	var rows bytes.Buffer
	must(t, writeRows(&rows, rand.New(rand.NewPCG(1, 1)), 100))
	line := regexp.MustCompile(`^\d+\t\d+\t(\d{11}-){9}\d{11}\t(\d{11}-){4}\d{11}$`)
	lines := strings.Split(strings.TrimSpace(rows.String()), "\n")
	if len(lines) != 100 {
		t.Errorf("%d rows", len(lines))
	}
	for _, l := range lines {
		if !line.MatchString(l) {
			t.Fatalf("row %q", l)
		}
	}
}

// The table shows the median of the rounds, beside its ratio to the baseline.
func TestReport(t *testing.T) {
	r := &report{header: header{Format: 1, Versions: map[string]string{}}}
	for _, wall := range []float64{9, 2, 3} {
		r.add(ours, backupStep, Measurement{Wall: wall, User: 6, System: 2, Peak: 200 << 20, Stored: 1 << 30})
		r.add(ours, againStep, Measurement{Wall: 1, User: 1, Peak: 100 << 20, Stored: 8 << 10, Read: 2 << 30})
		r.add(baseline, backupStep, Measurement{Wall: 2, User: 3, System: 1, Peak: 100 << 20, Stored: 2 << 30})
		r.add(baseline, prepareStep, Measurement{Wall: 1, User: 1})
	}
	dir := filepath.Join(t.TempDir(), "results")
	must(t, r.save(dir))
	text, err := os.ReadFile(filepath.Join(dir, "backup.md"))
	must(t, err)
	for _, line := range []string{
		"| `respaldo` | 3.0 s (1.50) | 8.0 s (2.00) | 200 MiB (2.00) | 1.00 GiB (0.50) |",
		"| `respaldo` | 1.0 s (0.50) | 1.0 s (0.25) | 100 MiB (1.00) | 8.0 KiB |",
		"| `mariabackup \\| zstd -1` | 2.0 s (1.00) | 4.0 s (1.00) |",
		"second backup read 2.00 GiB",
	} {
		if !strings.Contains(string(text), line) {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "backup.json"))
	must(t, err)
	var back struct {
		Results []struct {
			Contender, Step string
			Wall            float64 `json:"wall_seconds"`
			Ratios          map[string]float64
			Runs            []any
		}
	}
	must(t, json.Unmarshal(b, &back))
	if x := back.Results[0]; x.Contender != ours || x.Step != backupStep || x.Wall != 3 || x.Ratios["wall"] != 1.5 || len(x.Runs) != 3 {
		t.Errorf("%+v", x)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
