//go:build lab

package lab_test

import (
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

// TestExact takes images of servers that are written to, and compares each with its origin.
func TestExact(t *testing.T) {
	t.Parallel()
	lab.RunTests(t, lab.Spec{Name: "exact", Disks: twoDisks, Memory: 2048, Deadline: 20 * time.Minute, Respaldo: true}, "./cmd/respaldo", "^TestExact$")
}
