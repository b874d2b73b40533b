//go:build guest

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestPowerCut is what a guest does between two power cuts: it sees to it that what the
// last one interrupted can be repaired, and begins the operation that the next one
// interrupts. The lab's TestCrashPower boots one guest after another with the same disks,
// until one finds no step left and this test ends. LAB_BOOT counts the guests from 0,
// LAB_STAND is the kind of volume and the server; which steps to sweep is said at after.
func TestPowerCut(t *testing.T) {
	kind, server, driven := strings.Cut(os.Getenv("LAB_STAND"), " ")
	if !driven {
		t.Fatal("nobody would cut the power: TestCrashPower of ./lab drives this test")
	}
	var c *crash
	if os.Getenv("LAB_BOOT") == "0" {
		guest.NewFolder(t, 1, "/srv")
		c = newCrash(t, kind, server)
		c.Next = -1
		unix.Sync() // what the test itself needs is not what it tests
	} else {
		c = rebootedCrash(t, kind, server)
		c.repaired(c.Next)
	}
	if c.Next = c.after(c.Next); c.Next == len(c.Steps) {
		c.finish()
		fmt.Println("LAB-STEP none")
		return
	}
	c.remember()
	step := c.Steps[c.Next]
	fmt.Println("LAB-STEP", step)
	cmd := c.command(c.args(c.Next)...)
	cmd.Env = append(cmd.Env, "RESPALDO_FAULT=stop:"+step.Point)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // the lab waits for LAB-AT there
	t.Fatalf("respaldo ended before %s: %v", step, cmd.Run())
}

// after is the next step to sweep: LAB_EVERY says one of how many, LAB_SWEPT which others do
// not count, separated by commas.
func (c *crash) after(n int) int {
	every, err := strconv.Atoi(os.Getenv("LAB_EVERY"))
	if err != nil {
		c.t.Fatal(err)
	}
	swept := strings.Split(os.Getenv("LAB_SWEPT"), ",")
	counted := 0
	for i, s := range c.Steps {
		if slices.Contains(swept, s.String()) {
			continue
		}
		if counted++; i > n && counted%every == 0 {
			return i
		}
	}
	return len(c.Steps)
}

// crashFile is where a guest leaves what the next one must know.
const crashFile = "/srv/crash.json"

func (c *crash) remember() {
	c.t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		c.t.Fatal(err)
	}
	temp := crashFile + ".new"
	f, err := os.Create(temp)
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Sync(), f.Close(), os.Rename(temp, crashFile))
	}
	if err == nil {
		f, err = os.Open(filepath.Dir(crashFile))
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// rebootedCrash finds the stand on the disks, as it was when the power went, and starts
// the server and its load again.
func rebootedCrash(t *testing.T, kind, server string) *crash {
	t.Helper()
	guest.OpenFolder(t, 1, "/srv")
	c := &crash{}
	text, err := os.ReadFile(crashFile)
	if err == nil {
		err = json.Unmarshal(text, c)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.stand = &stand{t: t, whole: t, dir: c.Dir, config: filepath.Join(c.Dir, "respaldo.toml")}
	c.volume = guest.OpenVolume(t, guest.VolumeSpec{Kind: kind})
	c.server = guest.StartServer(t, guest.ServerSpec{Name: server, DataDir: filepath.Join(c.volume.Path, "mysql")})
	c.startLoad()
	c.Before = c.Before.Rebooted()
	return c
}
