// Command respaldo takes consistent backups of MySQL and MariaDB servers from volume
// snapshots and brings them back.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/mysql"
)

func main() {
	mysql.InstanceMain() // first: in a process of ours that is to become a server, it does not return
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program: everything else returns errors, here they become exit codes.
// Tests add commands of their own.
func run(args []string, stdout, stderr io.Writer, extra ...func(*app) *cobra.Command) int {
	a := newApp(stdout, stderr)
	ctx, signals := catchSignals(context.Background(), a)
	defer signals.stop()

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
