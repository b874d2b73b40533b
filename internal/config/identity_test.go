package config

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

func TestServerIDStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	ids := make([]string, 8)
	var asking sync.WaitGroup
	for i := range ids {
		asking.Go(func() {
			id, err := ServerID(dir, "main")
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	asking.Wait()
	for _, id := range ids {
		if len(id) != 32 || id != ids[0] {
			t.Fatalf("IDs: %v", ids)
		}
	}
	if other, err := ServerID(dir, "second"); err != nil || other == ids[0] {
		t.Errorf("another server: %q, %v", other, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("in the directory: %v, %v", entries, err)
	}
}

func TestDamagedServerIDIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "main.id")
	if err := os.WriteFile(path, []byte("half an"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ServerID(dir, "main"); respaldo.KindOf(err) != respaldo.Refused || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("error: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "half an" {
		t.Error("the file was touched")
	}
}
