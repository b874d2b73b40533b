package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// tools are programs built once in each process that boots guests.
type tools struct {
	dir    string // seen by guests as /opt/lab
	keeper string // labinit on the host, and what systemd starts in a guest
	initrd string // labinit for guests
	module string // the module's root folder
}

var builtTools = sync.OnceValues(func() (tools, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return tools{}, fmt.Errorf("go env GOMOD: %w", err)
	}
	module := filepath.Dir(strings.TrimSpace(string(out)))
	if module == "." || module == "/dev" {
		return tools{}, errors.New("the lab builds its programs from source: run it inside the module")
	}
	sweep()
	dir, err := runFolder("build")
	if err != nil {
		return tools{}, err
	}
	t := tools{dir: filepath.Join(dir, "opt"), keeper: filepath.Join(dir, "opt", "labinit"), initrd: filepath.Join(dir, "initrd"), module: module}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(t.dir, 0o755)); err != nil {
		return tools{}, err
	}
	if err := t.build(context.Background(), t.keeper, "build", "-ldflags=-s -w", "./lab/cmd/labinit"); err != nil {
		return tools{}, err
	}
	program, err := os.ReadFile(t.keeper)
	if err != nil {
		return tools{}, err
	}
	return t, os.WriteFile(t.initrd, archive(program), 0o644)
})

// build runs go build or go test -c in the module; args end with the package.
func (t tools) build(ctx context.Context, output string, args ...string) error {
	pkg, args := args[len(args)-1], args[:len(args)-1]
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", output, pkg)...)
	cmd.Dir = t.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, bytes.TrimSpace(out))
	}
	return nil
}

// runs is where guests keep their disks and consoles.
func runs() string { return filepath.Join(servers.Cache(), "run") }

// runFolder makes a folder there that carries our process ID in its name.
func runFolder(name string) (string, error) {
	if err := os.MkdirAll(runs(), 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(runs(), fmt.Sprintf("%s-%d-", name, os.Getpid()))
}

// sweep removes what processes that were killed left there: builds and disks at once, the
// consoles of failures after a week.
func sweep() {
	folders, _ := os.ReadDir(runs())
	for _, f := range folders {
		path := filepath.Join(runs(), f.Name())
		words := strings.Split(f.Name(), "-")
		if len(words) < 3 {
			continue
		}
		pid, err := strconv.Atoi(words[len(words)-2])
		if err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		info, err := f.Info()
		if words[0] == "build" || (err == nil && time.Since(info.ModTime()) > 7*24*time.Hour) {
			os.RemoveAll(path)
			continue
		}
		(&Guest{dir: path}).RemoveDisks()
	}
}

// Cleanup removes what this process built; TestMain calls it at the end. Guests must have ended.
func Cleanup() error {
	t, err := builtTools()
	if err != nil {
		return nil // nothing was built
	}
	return os.RemoveAll(filepath.Dir(t.dir))
}

// archive is an initial root in cpio's newc format: one program and the console that the
// kernel hands to it, which no ordinary user could make as a device file.
func archive(program []byte) []byte {
	var b bytes.Buffer
	inode := 0
	entry := func(name string, mode, major, minor int, data []byte) {
		inode++
		pad := func() {
			for b.Len()%4 != 0 {
				b.WriteByte(0)
			}
		}
		fields := []int{inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0}
		b.WriteString("070701")
		for _, f := range fields {
			fmt.Fprintf(&b, "%08X", f)
		}
		b.WriteString(name + "\x00")
		pad()
		b.Write(data)
		pad()
	}
	entry("dev", 0o040755, 0, 0, nil)
	entry("dev/console", 0o020600, 5, 1, nil)
	entry("init", 0o100755, 0, 0, program)
	entry("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes()
}
