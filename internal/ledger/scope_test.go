package ledger

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// A side lives beside its server and beside others, and nothing is left of it.
func TestSides(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	main, err := Open(dir, "main", "backup", run)
	if err != nil {
		t.Fatal(err)
	}
	defer main.Close()
	one, err := OpenSide(dir, "main", "serve", run)
	if err != nil {
		t.Fatal(err)
	}
	two, err := OpenSide(dir, "main", "serve", run)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"main-2.lock", "other.serve-1234.ledger"} { // of other servers
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{one.Server(), two.Server()}
	slices.Sort(want)
	if sides, err := Sides("main", dir, run, filepath.Join(dir, "missing")); err != nil || !slices.Equal(sides, want) {
		t.Errorf("sides %v, %v, not %v", sides, err, want)
	}
	if server, side := serverOf(one.Server()); server != "main" || !side || !SideOf(one.Server(), "main") || SideOf("main", "main") || SideOf(one.Server(), "mai") {
		t.Errorf("%s is of %q", one.Server(), server)
	}
	if !Living(dir, one.Server()) {
		t.Error("one that lives does not")
	}
	if _, err := Open(dir, one.Server(), "cleanup", run); respaldo.KindOf(err) != respaldo.Busy {
		t.Errorf("one that lives is swept: %v", err)
	}
	elsewhere := t.TempDir() // another configuration, which shares the run directory
	if _, err := Open(elsewhere, one.Server(), "cleanup", run); respaldo.KindOf(err) != respaldo.Busy {
		t.Errorf("one that lives is swept from another state directory: %v", err)
	}
	if left, _ := os.ReadDir(elsewhere); len(left) != 0 {
		t.Errorf("looking has left %s", left[0].Name())
	}

	if _, err := one.Intend("mount", map[string]string{"path": "/x"}); err != nil {
		t.Fatal(err)
	}
	name := one.Server()
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	if Living(dir, name) {
		t.Error("one that is closed lives")
	}
	if sides, err := Sides("main", dir, run); err != nil || !slices.Equal(sides, []string{name}) {
		t.Errorf("after the end %v, %v: only %s has left something", sides, err, name)
	}
	dead, err := Open(dir, name, "cleanup", run)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dead.Leftovers() {
		if err := dead.Cleaned(e); err != nil {
			t.Error(err)
		}
	}
	if err := dead.Close(); err != nil {
		t.Error(err)
	}
	if sides, err := Sides("main", dir, run); err != nil || len(sides) != 0 {
		t.Errorf("swept, and still there: %v, %v", sides, err)
	}
}

// Whoever has opened a lock file that goes away right then, does not hold a lock that
// nobody sees.
func TestLockFileGoesAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "main.serve-1.lock")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if removed(file) {
		t.Error("a file that is there is taken for removed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !removed(file) {
		t.Error("a removed file is taken for the lock")
	}
	if _, err := os.Create(path); err != nil {
		t.Fatal(err)
	}
	if !removed(file) {
		t.Error("the file before is taken for the lock")
	}
}

// A side keeps what it holds out of the server's own ledger.
func TestSideHoldsForItself(t *testing.T) {
	dir := t.TempDir()
	side, err := OpenSide(dir, "main", "dump")
	if err != nil {
		t.Fatal(err)
	}
	released := false
	if _, err := side.Acquire(t.Context(), "mount", nil, func(*Held) error { return nil }, func(context.Context) error { released = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if held, err := Peek(dir, "main"); err != nil || len(held) != 0 {
		t.Errorf("noted for the server: %v, %v", held, err)
	}
	if held, err := Peek(dir, side.Server()); err != nil || len(held) != 1 {
		t.Errorf("noted for the side: %v, %v", held, err)
	}
	if err := side.ReleaseAll(t.Context()); err != nil || !released {
		t.Errorf("released: %v, %v", released, err)
	}
	if err := side.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %s", left[0].Name())
	}
}
