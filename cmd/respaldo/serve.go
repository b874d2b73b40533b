package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/config"
	runner "github.com/respaldo-backup/respaldo/internal/run"
)

func newServeCmd(a *app) *cobra.Command {
	var request backup.ServeRequest
	var memory config.Size
	readOnly, detach := true, false
	cmd := &cobra.Command{
		Use:     "serve IMAGE",
		GroupID: groupRestore,
		Short:   "Run a private server on a snapshot or a backup",
		Long: `Starts a second server on an image, on a port and a socket of its own: to look up what a
row was, to try a statement, to dump. It shows the data as of the image and knows the
users and passwords that the image holds; nothing of it reaches the origin, and what is
written into it (--read-only=false) is thrown away. It runs no events, does not
replicate, and purges no binlogs.

IMAGE is "now" (a snapshot taken on the spot, as backup takes one, and removed afterwards),
the name of a kept snapshot, or a backup: an ID, the beginning of one, or "latest". A kept
snapshot is not changed: on thin LVM and Btrfs the server works on a snapshot of it, on
thick LVM on a copy in the state directory, as it does with a backup.

It lives until Ctrl-C, until --ttl has passed, or until respaldo stop; then nothing is left
of it. If its snapshot is about to overflow, it ends, and says so. Backups go on meanwhile.

Root of this machine gets in without a password of anybody's: the option file that is
printed names an account made for this server alone.`,
		Example: `  respaldo serve now
  respaldo serve latest --port 3307 --ttl 2h
  respaldo serve respaldo-main-20261123T030000-9f3a01 --detach
  respaldo serve k3f9a2 --read-only=false --memory 2GiB`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTTL(cmd); err != nil {
				return err
			}
			if request.Port < 0 || request.Port > 65535 {
				return usageError(fmt.Sprintf("--port: %d is no TCP port", request.Port), "")
			}
			site, err := a.site()
			if err != nil {
				return err
			}
			if detach && !inBackground() {
				served, err := a.detach(cmd.Context(), site)
				if err != nil {
					return err
				}
				return a.show(served, func(p *page) { showServed(p, served) })
			}
			request.Image, request.Of, request.Writable, request.Memory = args[0], a.flags.server, !readOnly, int64(memory)
			request.Ready = func(served backup.Served) error {
				if inBackground() {
					os.Chdir("/") // to keep no filesystem busy
				}
				return a.show(served, func(p *page) { showServed(p, served) })
			}
			return site.Serve(cmd.Context(), request)
		},
	}
	f := cmd.Flags()
	f.IntVar(&request.Port, "port", 0, "TCP `PORT`; without it, one that is free")
	f.StringVar(&request.Bind, "bind", "127.0.0.1", "IP `ADDRESS` to listen on; 0.0.0.0 lets other machines in")
	f.StringVar(&request.Socket, "socket", "", "`PATH` at which the socket is to appear, too")
	f.BoolVar(&readOnly, "read-only", true, "let nobody write; --read-only=false lets people, for as long as it lives")
	f.Var(&memory, "memory", "roughly how much memory the server may use (1GiB); without it, little")
	f.DurationVar(&request.TTL, "ttl", 0, "end after this `TIME` (2h); without it, it is stopped by hand")
	f.BoolVar(&detach, "detach", false, "run in the background; returns when it is ready")
	return cmd
}

func showServed(p *page, s backup.Served) {
	f := newFields()
	f.field("serving", fmt.Sprintf("%s (%s)", s.Image, s.Version))
	f.field("as of", fmt.Sprintf("%s at %s", formatTime(s.Taken), s.At))
	f.field("name", s.Name)
	f.field("port", net.JoinHostPort(s.Bind, strconv.Itoa(s.Port)))
	f.field("socket", s.Socket)
	f.field("until", servedUntil(s))
	if s.Log != "" {
		f.field("messages", s.Log)
	}
	p.table(f)
	client := "mysql"
	p.printf("\nConnect with the users and passwords of the image:\n\n  %s --socket=%s --user=NAME --password\n  %s --host=%s --port=%d --protocol=tcp --user=NAME --password\n",
		client, s.Socket, client, s.Bind, s.Port)
	p.printf("\nor, as root of this machine, without a password of anybody's:\n\n  %s --defaults-file=%s\n", client, s.Login)
	if s.Writable {
		p.printf("\nWhat is written is thrown away when it ends. Nothing of it reaches the origin.\n")
	} else {
		p.printf("\nIt is read-only. Nothing of it reaches the origin.\n")
	}
}

func servedUntil(s backup.Served) string {
	stop := "respaldo stop " + s.Name
	if s.Until.IsZero() {
		return stop
	}
	return formatTime(s.Until) + ", or " + stop
}

func newStopCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "stop [NAME]",
		GroupID: groupRestore,
		Short:   "End a server that respaldo serve has started",
		Long: `Ends a server that respaldo serve has started, and waits until nothing is left of it.
NAME is not needed where there is one; respaldo list shows the names.`,
		Example: `  respaldo stop
  respaldo stop serve-3f9a
  respaldo stop --all`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			if all && name != "" {
				return usageError("--all and "+name+" contradict each other", "give one of them")
			}
			stopped, err := a.stop(cmd.Context(), name, all)
			if err != nil {
				return err
			}
			return a.show(stopped, func(p *page) {
				for _, s := range stopped {
					p.printf("stopped %s\n", s.Name)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end all: of the server that --server names, or of every one")
	return cmd
}

// stop ends what ChooseServed picks, whichever server's it is.
func (a *app) stop(ctx context.Context, name string, all bool) ([]backup.Served, error) {
	sites, err := a.onlookers()
	if err != nil {
		return nil, err
	}
	list := []backup.Served{}
	of := map[string]*backup.Site{}
	for _, s := range sites {
		served, err := s.Served()
		if err != nil {
			return nil, err
		}
		list, of[s.Server] = append(list, served...), s
	}
	chosen, err := backup.ChooseServed(list, name, all)
	for _, served := range chosen {
		if err == nil {
			err = of[served.Server].StopServed(ctx, served)
		}
	}
	return chosen, err
}

// onlookers are the server that --server names, or all, for who only looks at what there is
// on this machine.
func (a *app) onlookers() ([]*backup.Site, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	var sites []*backup.Site
	for _, name := range a.servers(c) {
		sites = append(sites, &backup.Site{Server: name, StateDir: c.StateDir, RunDir: c.RunDir, LVMConfig: c.LVMConfig,
			PoolData: c.Thresholds.PoolData, PoolMetadata: c.Thresholds.PoolMetadata, Run: runner.Local{Log: a.log}, Log: a.log})
	}
	return sites, nil
}
