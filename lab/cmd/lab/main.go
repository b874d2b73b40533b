// Lab is what make calls: it fetches what the lab needs, opens a shell in it, or runs the
// demonstration.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

func main() {
	// A second signal ends us at once; the keepers then end their guests.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	code, err := run(ctx, os.Args[1:])
	if err := lab.Cleanup(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	disks := []lab.Disk{{Bytes: 4 << 30}, {Bytes: 4 << 30}}
	if len(args) == 0 {
		args = []string{""}
	}
	switch args[0] {
	case "prepare":
		return 0, errors.Join(lab.CheckHost(1536), servers.Ensure(ctx), lab.Prepare(ctx))
	case "shell":
		if err := servers.Ensure(ctx, "mariadb-10.11"); err != nil {
			return 1, err
		}
		code, err := lab.RunProgram(ctx, lab.Spec{Name: "lab", Respaldo: true, Terminal: true, Memory: 1536, Disks: disks, Deadline: 24 * time.Hour}, "./lab/cmd/labshell")
		return code, err
	case "demo":
		if err := servers.Ensure(ctx, "mariadb-10.11"); err != nil {
			return 1, err
		}
		return lab.RunProgram(ctx, lab.Spec{Name: "demo", Respaldo: true, Memory: 1536, Disks: disks, Deadline: 5 * time.Minute}, "./lab/cmd/demo", args[1:]...)
	}
	return 2, errors.New("usage: lab prepare | shell | demo")
}
