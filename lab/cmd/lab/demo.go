package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/term"

	"github.com/respaldo-backup/respaldo/lab"
)

// demo runs the demonstration and says how long it took.
func demo(ctx context.Context, disks []lab.Disk) (int, error) {
	start := time.Now()
	fmt.Println("Building respaldo and booting the lab; the first time fetches some 150 MB and takes minutes…")
	spec := lab.Spec{Name: "demo", Respaldo: true, Memory: 1536, Disks: disks, Deadline: 15 * time.Minute, Env: looks()}
	code, err := program(ctx, spec, "./lab/cmd/demo")
	if err == nil {
		fmt.Printf("make demo took %s.\n", time.Since(start).Round(time.Second))
	}
	return code, err
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
