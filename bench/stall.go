package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo/bench/stall"
	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

const stallCommand = "stall"

// The load: steady, and such that the lab's one processor is more than half idle.
const (
	stallConnections = 4
	labPace          = 60 * time.Millisecond
	hostPace         = 10 * time.Millisecond
	stallWindow      = 2 * time.Second
	stallRead        = 20 * time.Second // how long the long SELECT goes on: longer than a contender that does not wait for it
	stallRounds      = 3
)

// The servers: one that is current, and one on which, as on all MySQL, a SELECT keeps FLUSH TABLES WITH READ LOCK
// waiting. The latter stands in for MySQL 5.7.
const (
	stallServer = "mariadb-10.11"
	readServer  = "mysql-5.6"
)

// place is one of the machines that are measured, under one load.
type place struct {
	Name  string `json:"name"`  // of its files
	Title string `json:"title"` // for people
	once  bool   // however many rounds there are
	plan  stall.Plan
}

var places = []place{
	{"lab", "in the lab", false, stall.Plan{Server: stallServer, Kinds: []string{"thick-ext4", "thin-ext4", "btrfs"}, Connections: stallConnections, Pace: labPace, Window: stallWindow}},
	{"host", "on the host", false, stall.Plan{Server: stallServer, Kinds: []string{"btrfs"}, Connections: stallConnections, Pace: hostPace, Window: stallWindow}},
	{"select", "in the lab, while a SELECT runs", true, stall.Plan{Server: readServer, Kinds: []string{"thick-ext4"}, Connections: stallConnections, Pace: labPace,
		Window: stallRead + stall.Lead, Read: stallRead}},
}

// benchStall is the part of the bench that measures how long writers are held.
func benchStall(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench stall", flag.ContinueOnError)
	rounds := flags.Int("rounds", stallRounds, "how often every contender takes its snapshot")
	only := flags.String("only", "", "`PLACE,…` to measure: "+strings.Join(placeNames(), ", "))
	kinds := flags.String("kinds", "", "`KIND,…` of volume in the lab")
	pace := flags.Duration("pace", 0, "`TIME` in which each of the load's connections commits once, for a machine that is too slow for the usual ones")
	results := flags.String("results", "", "write stall.json, stall.md and the plots into this `folder` (bench/results for a full run)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *rounds < 1 || flags.NArg() > 0 {
		return errors.New("one round at least, and flags only: see bench stall -help")
	}
	chosen := placeNames()
	if *only != "" {
		chosen = strings.Split(*only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(placeNames(), name) {
			return fmt.Errorf("no place is called %q; there are %s", name, strings.Join(placeNames(), ", "))
		}
	}
	if *results == "" && *only == "" && *kinds == "" && *rounds >= stallRounds {
		*results = filepath.Join("bench", "results")
	}
	peers, err := fetchPackages(ctx, stall.Peers(), stall.Release, "mylvmbackup", "btrfs-progs", "libc-bin")
	if err != nil {
		return err
	}
	if err := servers.Ensure(ctx, stallServer, readServer); err != nil {
		return err
	}
	r := newStallReport(ctx, strings.TrimSpace("go run ./bench stall "+strings.Join(args, " ")), *rounds, peers)
	for _, p := range places {
		if !slices.Contains(chosen, p.Name) {
			continue
		}
		if p.plan.Rounds = *rounds; p.once {
			p.plan.Rounds = 1
		}
		if *pace > 0 {
			p.plan.Pace = *pace
		}
		if *kinds != "" && p.Name == "lab" {
			p.plan.Kinds = strings.Split(*kinds, ",")
		}
		measured, err := p.measure(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		r.add(p, measured)
	}
	fmt.Print(r.markdown())
	if *results == "" {
		return nil
	}
	return r.save(*results)
}

func placeNames() (names []string) {
	for _, p := range places {
		names = append(names, p.Name)
	}
	return names
}

func (p place) measure(ctx context.Context) (stall.Results, error) {
	if p.Name == "host" {
		return p.onHost(ctx)
	}
	return p.inGuest(ctx)
}

const runnerPackage = "./bench/stall/stallrun"

func (p place) inGuest(ctx context.Context) (r stall.Results, err error) {
	const results = "stall.json"
	p.plan.Results, p.plan.Respaldo = "/out/"+results, "respaldo"
	argument, err := json.Marshal(p.plan)
	if err != nil {
		return r, err
	}
	spec := lab.Spec{Name: "stall-" + p.Name, Memory: 1536, Systemd: true, Respaldo: true, Deadline: 20 * time.Minute,
		Argv: []string{"/opt/lab/" + filepath.Base(runnerPackage), string(argument)}, OnLine: func(line string) { fmt.Fprintln(os.Stderr, "bench:", line) }}
	for range p.plan.Kinds {
		spec.Disks = append(spec.Disks, lab.Disk{Bytes: 4 << 30})
	}
	if err := lab.BuildProgram(ctx, spec, runnerPackage); err != nil {
		return r, err
	}
	guest, err := lab.Boot(ctx, spec)
	if err != nil {
		return r, err
	}
	code, err := guest.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with exit code %d; the console is in %s", code, guest.Console())
	}
	if err == nil {
		r, err = readResults(filepath.Join(guest.Dir(), results))
	}
	if err != nil {
		return r, errors.Join(err, guest.RemoveDisks())
	}
	return r, guest.Remove()
}

// onHost measures on this machine, where that needs nothing but root and a kernel that knows Btrfs.
func (p place) onHost(ctx context.Context) (r stall.Results, err error) {
	if why := hostCannot(); why != "" {
		fmt.Fprintln(os.Stderr, "bench: Btrfs on this machine itself is left out:", why)
		return r, nil
	}
	dir, err := os.MkdirTemp(filepath.Dir(stall.Peers()), "stall-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	p.plan.Folder, p.plan.Results, p.plan.Respaldo = dir, filepath.Join(dir, "results"), filepath.Join(dir, "respaldo")
	runner := filepath.Join(dir, "stallrun")
	for program, pkg := range map[string]string{runner: runnerPackage, p.plan.Respaldo: "./cmd/respaldo"} {
		build := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", program, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return r, fmt.Errorf("build %s: %w: %s", pkg, err, out)
		}
	}
	argument, err := json.Marshal(p.plan)
	if err != nil {
		return r, err
	}
	run := exec.CommandContext(ctx, runner, string(argument))
	run.Stdout, run.Stderr = os.Stderr, os.Stderr
	// What it mounts is seen by nobody else, and goes with it.
	run.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := run.Run(); err != nil {
		return r, err
	}
	return readResults(p.plan.Results)
}

// hostCannot is why this machine's own Btrfs is not measured; empty if it can be.
func hostCannot() string {
	if os.Geteuid() != 0 {
		return "only root may mount it"
	}
	if list, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(list), "\tbtrfs\n") {
		return "the kernel does not know Btrfs"
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "there are no loop devices"
	}
	return ""
}

func readResults(path string) (r stall.Results, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	return r, err
}
