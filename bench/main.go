// Command bench measures respaldo side by side with what people use today, on the same
// data, in the same run. make bench runs it; nothing is installed, and no root is needed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// A smaller run is for trying the bench itself: it leaves the results alone.
const fullSize, fullRounds = 2 << 30, 3

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == contenderCommand {
		return contend(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == stallCommand {
		return benchStall(ctx, args[1:])
	}
	o := options{command: "go run ./bench " + strings.Join(args, " ")}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	size := flags.String("size", "2GiB", "`size` of the data directory, about")
	flags.IntVar(&o.rounds, "rounds", fullRounds, "how often everything is measured; the median is shown")
	flags.StringVar(&o.dir, "dir", filepath.Join(servers.Cache(), "bench"), "`folder` for data, repositories and restored files")
	flags.StringVar(&o.profile, "profile", "", "write respaldo's CPU and heap profiles into this `folder`")
	results := flags.String("results", "", "write backup.json and backup.md into this `folder` (bench/results for a run of full size)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("there is no part %q of the bench; the other one is %s", flags.Arg(0), stallCommand)
	}
	bytes, err := humanize.ParseBytes(*size)
	if err != nil || bytes < 1<<20 || o.rounds < 1 {
		return fmt.Errorf("a size like 200MB, of 1 MB at least, and one round at least")
	}
	o.size, o.command = int64(bytes), strings.TrimSpace(o.command)
	if *results == "" && o.size >= fullSize && o.rounds >= fullRounds {
		*results = filepath.Join("bench", "results")
	}
	report, err := run(ctx, o)
	if err != nil {
		return err
	}
	fmt.Print(report.markdown())
	if *results == "" {
		return nil
	}
	return report.save(*results)
}

func logf(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

type options struct {
	command string
	size    int64
	rounds  int
	dir     string
	profile string
}

// run measures every contender in every round, each time in another order.
func run(ctx context.Context, o options) (*report, error) {
	if err := room(o.dir, o.size); err != nil {
		return nil, err
	}
	if err := servers.Ensure(ctx, server); err != nil {
		return nil, err
	}
	peers, err := fetchPeers(ctx, o.dir)
	if err != nil {
		return nil, err
	}
	data, err := prepareData(ctx, o.dir, o.size)
	if err != nil {
		return nil, err
	}
	defer data.release()
	list, err := contenders(peers, data, o.profile)
	if err != nil {
		return nil, err
	}
	r := newReport(ctx, o, peers, data)
	for round := range o.rounds {
		for i := range list {
			c := list[(round+i)%len(list)]
			for _, s := range c.steps {
				m, err := s.measure(ctx)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				} else if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", c.name, s.name, err)
				}
				logf("bench: round %d of %d: %-22s %-26s %6.1f s, CPU %6.1f s, %s", round+1, o.rounds, c.name, s.name,
					m.Wall, m.User+m.System, humanize.IBytes(uint64(m.Peak)))
				r.add(c.name, s.name, m)
			}
			if err := os.RemoveAll(c.dir); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// room refuses early what cannot fit: the data, one contender's backup and what it restores.
func room(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	need, free := uint64(size)*3+1<<30, st.Bavail*uint64(st.Bsize)
	if free < need {
		return fmt.Errorf("%s has room for %s, and %s is needed: name another folder with -dir, or a smaller -size",
			dir, humanize.IBytes(free), humanize.IBytes(need))
	}
	return nil
}
