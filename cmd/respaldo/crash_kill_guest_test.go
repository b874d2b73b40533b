//go:build guest

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// crashStands are the kinds of volume and the servers on which operations are made to
// die. The first two have different locks: BACKUP STAGE and FLUSH TABLES WITH READ LOCK.
func crashStands() [][2]string {
	stands := [][2]string{{"thick-ext4", "mariadb-10.11"}, {"thin-ext4", "mysql-5.6"}}
	if !soak {
		return stands
	}
	for _, kind := range []string{"thick-ext4", "thin-ext4", "btrfs-on-lv"} {
		for _, server := range []string{"mariadb-10.5", "mariadb-10.11", "mariadb-11.8", "mysql-9.7", "mysql-5.6"} {
			if pair := [2]string{kind, server}; pair != stands[0] && pair != stands[1] {
				stands = append(stands, pair)
			}
		}
	}
	return stands
}

func ownerOf(info os.FileInfo) string {
	stat := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", stat.Uid, stat.Gid)
}

// TestCrash ends operations abruptly, at every step and in every way, under a write load.
// Each step comes once: thick volumes take every other one of theirs, thin volumes the
// rest and those that thick ones have not; the signals come on thick volumes. Everything
// comes on every stand when soaking.
func TestCrash(t *testing.T) {
	guest.NewFolder(t, 1, "/srv") // room that is not in memory
	swept := map[step]bool{}
	for _, stand := range crashStands() {
		t.Run(stand[0]+" "+stand[1], func(t *testing.T) {
			c := newCrash(t, stand[0], stand[1])
			thick := stand[0] == "thick-ext4"
			if thick && !soak { // a sample: TestServe kills one, too
				c.Steps = append(c.Steps, stepsNamed(c.sides(), "serve snapshot.taken", "copy restore.writing", "dump dump.writing")...)
			}
			c.within("killed", func() { c.killEverywhere(thick, swept) })
			if thick || soak {
				c.within("interrupted", c.interrupted)
			}
			if stand[0] != "btrfs-on-lv" { // whose snapshot is a system call
				c.within("volume command", c.volumeCommandKilled)
			}
			c.within("afterwards", c.finish)
		})
	}
}

// stepsNamed picks the steps with these names.
func stepsNamed(steps []step, names ...string) []step {
	return slices.DeleteFunc(steps, func(s step) bool { return !slices.Contains(names, s.String()) })
}

// killEverywhere kills respaldo at each step that is this stand's to sweep.
func (c *crash) killEverywhere(alternate bool, swept map[step]bool) {
	for n, s := range c.Steps {
		beside := s.Operation == "serve" || s.Operation == "copy" || s.Operation == "dump"
		if !soak && !beside && (swept[s] || alternate && n%2 == 1) {
			continue
		}
		swept[s] = true
		c.within(s.String(), func() {
			o := c.run([]string{"RESPALDO_FAULT=kill:" + s.Point}, c.args(n)...)
			if o.code != -1 {
				c.t.Fatalf("respaldo was not killed: exit code %d\n%s%s", o.code, o.stdout, o.stderr)
			}
			// Before any cleanup: a lock that nobody holds any more must not stay.
			c.load.Moves(c.t, testLimit)
			c.repaired(n)
		})
		if c.t.Failed() {
			return // what follows would only tell the same again
		}
	}
}

// interrupted sends signals. One ends an operation in order and leaves nothing; a second
// one ends it at once, and what it leaves is for cleanup.
func (c *crash) interrupted() {
	target := c.target(len(c.Steps))
	for _, i := range []struct {
		fault string
		code  int
		args  []string
	}{
		{"int:locked", 130, []string{"backup"}},
		{"term:snapshot.command", 143, []string{"backup"}},
		{"term:snapshot.ready", 143, []string{"backup"}},
		{"term:backup.saving", 143, []string{"backup"}},
		{"int:instance.ready", 130, []string{"backup"}},
		{"int:restore.writing", 130, []string{"restore", c.Source, "--to", target}},
	} {
		_, point, _ := strings.Cut(i.fault, ":")
		if !slices.ContainsFunc(c.Steps, func(s step) bool { return s.Point == point }) {
			continue // on Btrfs no command takes the snapshot
		}
		c.within(i.fault, func() {
			o := c.run([]string{"RESPALDO_FAULT=" + i.fault}, i.args...)
			if o.code != i.code {
				c.t.Errorf("exit code %d, not %d\n%s%s", o.code, i.code, o.stdout, o.stderr)
			}
			c.nothingLeft()
			c.load.Moves(c.t, testLimit)
		})
	}
	c.within("restored again", func() {
		if !repo.Incomplete(target) {
			c.t.Error("the interrupted restore left no mark")
		}
		c.ok("restore", c.Source, "--to", target)
		c.sameFiles(target)
		c.removeTarget(target)
	})
	c.within("twice", func() {
		o := c.run([]string{"RESPALDO_FAULT=int:backup.saving,int:mount.released"}, "backup")
		if o.code != 130 {
			c.t.Errorf("exit code %d, not 130\n%s%s", o.code, o.stdout, o.stderr)
		}
		c.load.Moves(c.t, testLimit)
		if swept := c.cleaned(); len(swept.Removed) == 0 {
			c.t.Error("the second signal did not end it at once: nothing was left to clean up")
		}
	})
	c.nextBackup("--prove", "none")
}

// volumeCommandKilled has the command that takes the snapshot killed by somebody else while
// the origin is suspended, so that every writer hangs: once alone, and once together with respaldo.
func (c *crash) volumeCommandKilled() {
	bin := filepath.Join(c.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		c.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	storage, _, _ := strings.Cut(c.volume.Kind, "-")
	killed := killedCommands[storage]
	if err := os.Symlink(self, filepath.Join(bin, killed)); err != nil {
		c.t.Fatal(err)
	}
	evidence := filepath.Join(c.dir, "suspended")
	shim := []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "LAB_REAL_PATH=" + os.Getenv("PATH"), "LAB_EVIDENCE=" + evidence}
	wasSuspended := func() {
		if err := os.Remove(evidence); err != nil {
			c.t.Errorf("the volume was not suspended when %s was killed: %v", killed, err)
		}
	}
	c.within("alone", func() {
		o := c.run(shim, "backup")
		wasSuspended()
		if o.code != int(respaldo.SnapshotLost) {
			c.t.Errorf("exit code %d, not %d\n%s%s", o.code, respaldo.SnapshotLost, o.stdout, o.stderr)
		}
		if strings.Count(o.stderr, "respaldo: ") != 1 || !strings.Contains(o.stderr, "ended by SIGKILL") || !strings.Contains(o.stderr, "hint: ") {
			c.t.Errorf("not one clear error:\n%s", o.stderr)
		}
		c.nothingLeft()
		c.load.Moves(c.t, testLimit)
	})
	c.within("with respaldo", func() {
		o := c.run(append(shim, "LAB_KILL_PARENT=1"), "backup")
		wasSuspended()
		if o.code != -1 {
			c.t.Errorf("respaldo was not killed: exit code %d\n%s%s", o.code, o.stdout, o.stderr)
		}
		c.cleaned()
	})
	c.nextBackup("--prove", "none")
}

// killedCommands suspend the origin on each kind of volume.
var killedCommands = map[string]string{"thick": "lvconvert", "thin": "lvcreate"}

// Under the name of one of them this binary is a command that is killed while the origin is
// suspended.
func init() {
	command := filepath.Base(os.Args[0])
	if !slices.Contains(slices.Collect(maps.Values(killedCommands)), command) {
		return
	}
	guest.Main(func(t guest.T) {
		os.Setenv("PATH", os.Getenv("LAB_REAL_PATH"))
		suspended := func(calls []string) bool {
			return strings.HasPrefix(calls[len(calls)-1], "suspend ") && strings.HasSuffix(calls[len(calls)-1], "-data")
		}
		calls, killed := guest.KillWhen(t, append([]string{command}, os.Args[1:]...), suspended)
		if !killed {
			t.Fatalf("%v suspended nothing", os.Args)
		}
		_, device, _ := strings.Cut(calls[len(calls)-1], " ")
		if state := guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "suspended", device); strings.TrimSpace(state) != "Suspended" {
			t.Fatalf("%s is %s", device, state)
		}
		parent := os.Getppid()
		if err := os.WriteFile(os.Getenv("LAB_EVIDENCE"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if os.Getenv("LAB_KILL_PARENT") != "" {
			syscall.Kill(parent, syscall.SIGKILL)
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	})
}
