//go:build lab

package lab_test

import (
	"os"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

// crashSpec is the guest in which operations are made to die.
func crashSpec() lab.Spec {
	s := lab.Spec{Disks: twoDisks, Memory: 1536, Deadline: 30 * time.Minute, Respaldo: true}
	if soak {
		s.Deadline = 8 * time.Hour
		s.Env = append(s.Env, "RESPALDO_SOAK=1")
	}
	return s
}

// soak is set by make soak, for the large products.
var soak = os.Getenv("RESPALDO_SOAK") != ""

// TestCrash kills respaldo at every step, sends it signals, and kills its volume commands.
func TestCrash(t *testing.T) {
	t.Parallel()
	lab.RunTests(t, crashSpec(), "./cmd/respaldo", "^TestCrash$")
}
