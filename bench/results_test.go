package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "make what is in bench/results for people anew, of the data there")

// What people read and see in bench/results is of the data that is there.
func TestResultsAreOfTheirData(t *testing.T) {
	for data, r := range map[string]interface{ save(dir string) error }{"backup.json": new(report), "stall.json": new(stallReport)} {
		text, err := os.ReadFile(filepath.Join("results", data))
		must(t, err)
		must(t, json.Unmarshal(text, r))
		if *update {
			must(t, r.save("results"))
		}
		dir := t.TempDir()
		must(t, r.save(dir))
		made, err := os.ReadDir(dir)
		must(t, err)
		for _, f := range made {
			want, err := os.ReadFile(filepath.Join(dir, f.Name()))
			must(t, err)
			if got, err := os.ReadFile(filepath.Join("results", f.Name())); err != nil || !bytes.Equal(got, want) {
				t.Errorf("results/%s is not what %s gives (%v); go test ./bench -update makes it anew", f.Name(), data, err)
			}
		}
	}
}
