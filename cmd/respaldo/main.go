// Command respaldo takes consistent backups of MySQL and MariaDB servers from volume
// snapshots and brings them back.
package main

import (
	"context"
	"io"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// memoryLimit makes the collector work harder rather than take memory that belongs to the
// database's caches. It is a soft limit (runtime/debug): a backup needs about half of it.
const memoryLimit = 256 << 20

func main() {
	mysql.InstanceMain() // first: in a process of ours that is to become a server, it does not return
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program: everything else returns errors, here they become exit codes.
// Tests add commands of their own.
func run(args []string, stdout, stderr io.Writer, extra ...func(*app) *cobra.Command) int {
	a := newApp(stdout, stderr)
	ctx, signals := catchSignals(context.Background(), a)
	defer signals.stop()
	a.signals = signals

	root := newRootCmd(a, extra...)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		err = a.asUsage(err, args)
	}
	code := exitCode(err, signals.first())
	if err != nil {
		a.reportError(err, code)
	}
	a.close()
	return code
}
