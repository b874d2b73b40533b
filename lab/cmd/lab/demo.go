package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/term"

	"github.com/respaldo-backup/respaldo/lab"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// demo runs the demonstration, both acts of it or the second alone, and says how long it took.
func demo(ctx context.Context, disks []lab.Disk, act string) (code int, err error) {
	start := time.Now()
	fmt.Println("Building respaldo and booting the lab; the first time fetches some 160 MB and takes minutes…")
	spec := lab.Spec{Name: "demo", Respaldo: true, Memory: 1536, Disks: disks, Deadline: 15 * time.Minute, Env: looks()}
	if act != "second" {
		code, err = program(ctx, spec, "./lab/cmd/demo")
	}
	if err == nil && code == 0 {
		code, err = secondAct(ctx, spec)
	}
	if err == nil {
		fmt.Printf("make demo took %s.\n", time.Since(start).Round(time.Second))
	}
	return code, err
}

// secondAct runs the demonstration's on two machines with a cable between them. The program
// on the first tells the story; the second lets it in by ssh until it has ended.
func secondAct(ctx context.Context, spec lab.Spec) (int, error) {
	here, there, err := lab.NewLink(guest.HereAddress, guest.ThereAddress)
	if err != nil {
		return 1, err
	}
	spec.Name, spec.Systemd, spec.Link = guest.HereName, true, here
	// MariaDB's data directory is on the root before it is on a volume of its own.
	spec.Root = lab.Disk{Bytes: 2 << 30}
	node := lab.Spec{Name: guest.ThereName, Memory: 1024, Disks: spec.Disks[:1], Deadline: spec.Deadline, Link: there, Argv: []string{"/opt/lab/labnode"}}
	if err := lab.BuildProgram(ctx, node, "./lab/cmd/labnode"); err != nil {
		return 1, err
	}
	other, err := lab.Boot(ctx, node)
	if err != nil {
		return 1, err
	}
	code, err := program(ctx, spec, "./lab/cmd/demo", "steps")
	other.Kill()
	if _, ended := other.Wait(); !errors.Is(ended, lab.ErrKilled) {
		return max(code, 1), errors.Join(err, ended)
	}
	return code, errors.Join(err, other.Remove())
}

// looks tell the guest, which has no terminal of ours, what our output can show.
func looks() []string {
	columns, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		return []string{"NO_COLOR=1", "COLUMNS=132"}
	}
	env := []string{"COLUMNS=" + strconv.Itoa(max(columns, 40))}
	if plain := os.Getenv("NO_COLOR"); plain != "" || os.Getenv("TERM") == "dumb" {
		env = append(env, "NO_COLOR=1")
	}
	return env
}
