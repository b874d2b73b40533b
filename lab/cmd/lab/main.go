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

	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/servers"
	"github.com/respaldo-backup/respaldo/lab/vagrant"
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
	args = append(args, "", "")
	switch args[0] {
	case "prepare":
		if err := lab.CheckHost(lab.TestMemory); err != nil {
			return 1, err
		}
		var g errgroup.Group
		g.Go(func() error { return servers.Ensure(ctx) })
		g.Go(func() error { return lab.Prepare(ctx) })
		g.Go(func() error { return vagrant.Ensure(ctx) })
		return 0, g.Wait()
	case "shell":
		spec := lab.Spec{Name: "lab", Respaldo: true, Terminal: true, Memory: 1536, Disks: disks, Deadline: 24 * time.Hour}
		return program(ctx, spec, "./lab/cmd/labshell")
	case "demo":
		return demo(ctx, disks, args[1])
	}
	return 2, errors.New("usage: lab prepare | shell | demo [second]")
}

// program runs a program in a guest that has one server.
func program(ctx context.Context, spec lab.Spec, pkg string, args ...string) (int, error) {
	if err := lab.CheckHost(spec.Memory); err != nil {
		return 1, err
	}
	var g errgroup.Group
	g.Go(func() error { return servers.Ensure(ctx, "mariadb-10.11") })
	g.Go(func() error { return lab.BuildProgram(ctx, spec, pkg) })
	if err := g.Wait(); err != nil {
		return 1, err
	}
	return lab.RunProgram(ctx, spec, pkg, args...)
}
