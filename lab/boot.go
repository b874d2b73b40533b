package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo/lab/job"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Disk is one of a guest's disks. Without a path it is made anew, sparse, and goes away
// with the guest; with one it is used as it is, or made if it does not exist, so that a
// second guest finds what the first one left on it.
type Disk struct {
	Path  string
	Bytes int64
}

// Spec says what guest to boot. The zero value of everything but Argv will do.
type Spec struct {
	Name     string        // of the guest; its hostname
	Memory   int           // MiB; 1024 if 0. MySQL 9.7 wants 1536
	Disks    []Disk        // /dev/ubdb, /dev/ubdc, …
	Argv     []string      // what to run, by its path inside
	Env      []string      // added to PATH, HOME, LC_ALL, RESPALDO_CACHE=/cache
	Dir      string        // working directory inside; / if empty
	Deadline time.Duration // from boot; five minutes if 0
	// OnLine is called for every line on the console, in order, from one goroutine; the
	// guest goes on meanwhile. It may call Kill.
	OnLine   func(line string)
	StockLVM bool // with the distribution's lvm.conf, instead of one that waits for nothing
	// Systemd boots the guest as a real host is: systemd is its first process, udevd opens
	// every new device, LVM waits for it with the distribution's lvm.conf. The job runs when
	// the machine is up, and the guest is shut down in order afterwards.
	Systemd bool
	// Root holds what the guest writes to its root: a second guest with the same is the first
	// one, booted again. That is in memory if it is left out.
	Root Disk
	// Terminal makes the console this process's own terminal, for an interactive session.
	Terminal bool
	Respaldo bool  // build the program, with crash points, and put it on the guest's PATH
	Link     *Link // network card, joined to another guest's
	// Skip is for RunTests: what it leaves out, as for go test -skip, because another test
	// of the lab runs it.
	Skip string
}

// Guest is a running guest.
type Guest struct {
	spec    Spec
	dir     string
	cmd     *exec.Cmd
	life    io.Closer // closing it makes the keeper kill the guest
	console *os.File
	lines   sync.WaitGroup
	done    chan struct{}
	restore func() // puts our terminal back as it was

	mu     sync.Mutex
	reason error // why it was killed
}

// ErrKilled is what Wait returns for a guest that Kill ended.
var ErrKilled = errors.New("the guest's power was cut")

const defaultDeadline = 5 * time.Minute

var unsafeName = regexp.MustCompile(`[^A-Za-z0-9-]+`)

// Boot checks the host, fetches and builds what is missing, and starts a guest. Cancelling
// ctx cuts its power, and so does the end of this process, whatever ends it. Several guests
// may run at the same time. Wait must be called.
func Boot(ctx context.Context, spec Spec) (*Guest, error) {
	if spec.Memory == 0 {
		spec.Memory = 1024
	}
	if spec.Deadline == 0 {
		spec.Deadline = defaultDeadline
	}
	if spec.Name = strings.Trim(unsafeName.ReplaceAllString(spec.Name, "-"), "-"); spec.Name == "" {
		spec.Name = "lab"
	}
	if err := CheckHost(spec.Memory); err != nil {
		return nil, err
	}
	img, err := ensureImage(ctx)
	if err != nil {
		return nil, err
	}
	t, err := builtTools()
	if err != nil {
		return nil, err
	}
	g := &Guest{spec: spec, done: make(chan struct{})}
	if g.dir, err = runFolder(spec.Name); err != nil {
		return nil, err
	}
	if err := os.Chmod(g.dir, 0o777); err != nil { // the guest's accounts write there
		return nil, err
	}
	if err := g.start(ctx, img, t); err != nil {
		return nil, errors.Join(err, os.RemoveAll(g.dir))
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context, img image, t tools) error {
	j := job.Job{
		Name: g.spec.Name, Argv: g.spec.Argv, Env: g.spec.Env, Dir: g.spec.Dir, StockLVM: g.spec.StockLVM || g.spec.Systemd, Systemd: g.spec.Systemd,
		Mounts: []job.Mount{{Host: servers.Cache(), Guest: "/cache"}, {Host: t.dir, Guest: "/opt/lab"}, {Host: t.module, Guest: "/src"}},
	}
	if j.Dir == "" {
		j.Dir = "/"
	}
	// Keep the socket that the kernel makes there within the length of a socket's path.
	sockets, err := os.MkdirTemp("", "uml")
	if err != nil {
		return err
	}
	args := []string{"keep", img.kernel, "mem=" + strconv.Itoa(g.spec.Memory) + "M", "ubd0r=" + img.root, "initrd=" + t.initrd,
		"quiet", "loglevel=3", "seccomp=auto", "noreboot", "selinux=0", "panic=1", "umid=" + filepath.Base(g.dir), "uml_dir=" + sockets + "/", job.DirArg + "=" + g.dir,
		"con=null", "ssl=null"}
	if g.spec.Systemd {
		args = append(args, "systemd.unit="+jobUnit, "systemd.show_status=0", "systemd.hostname="+g.spec.Name)
	}
	for i, d := range g.spec.Disks {
		path, err := g.disk(i, d)
		if err != nil {
			return err
		}
		args = append(args, fmt.Sprintf("ubd%d=%s", i+1, path))
	}
	if root := g.spec.Root; root != (Disk{}) {
		path := root.Path
		if path == "" {
			path = filepath.Join(g.dir, "disk-root")
		}
		if err := makeRoot(ctx, path, root.Bytes); err != nil {
			return err
		}
		letter := len(g.spec.Disks) + 1
		args = append(args, fmt.Sprintf("ubd%d=%s", letter, path), fmt.Sprintf("%s=/dev/ubd%c", job.RootArg, 'a'+letter))
	}
	g.cmd = exec.Command(t.keeper, args...)
	g.cmd.Dir = filepath.Dir(img.kernel)
	g.cmd.Env = append(os.Environ(), "TMPDIR="+memoryFolder(), "LD_LIBRARY_PATH="+g.cmd.Dir)
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	life, err := g.cmd.StdinPipe()
	if err != nil {
		return err
	}
	g.life = life
	if g.console, err = os.Create(g.Console()); err != nil {
		return err
	}
	extra, err := g.wire(&j)
	if err != nil {
		return err
	}
	defer extra.close()
	g.cmd.ExtraFiles = extra.files
	g.cmd.Args = append(g.cmd.Args, extra.args...)
	if err := job.Write(g.dir, j); err != nil {
		return err
	}
	output, err := g.output()
	if err != nil {
		return err
	}
	defer output.Close()
	g.cmd.Stdout, g.cmd.Stderr = output, output
	if err := g.cmd.Start(); err != nil {
		return err
	}
	go g.watch(ctx, sockets)
	return nil
}

// disk makes disk i, or takes the one given.
func (g *Guest) disk(i int, d Disk) (string, error) {
	path := d.Path
	if path == "" {
		path = filepath.Join(g.dir, fmt.Sprintf("disk%d", i))
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Size() == 0 {
		err = f.Truncate(d.Bytes)
	}
	return path, err
}

// output returns where the guest's console goes: through us into the log, and line by
// line to OnLine, or to the terminal.
func (g *Guest) output() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	g.lines.Add(1)
	go func() {
		defer g.lines.Done()
		defer r.Close()
		if g.spec.Terminal {
			io.Copy(os.Stdout, r)
			return
		}
		in := bufio.NewReaderSize(r, 1<<16)
		for {
			line, err := in.ReadString('\n')
			g.console.WriteString(line)
			if line = strings.TrimRight(line, "\r\n"); g.spec.OnLine != nil && (line != "" || err == nil) {
				g.spec.OnLine(line)
			}
			if err != nil {
				return
			}
		}
	}()
	return w, nil
}

// watch ends the guest at its deadline or with ctx, and closes done when it is gone.
func (g *Guest) watch(ctx context.Context, sockets string) {
	ended := make(chan struct{})
	go func() {
		g.cmd.Wait()
		close(ended)
	}()
	deadline := time.NewTimer(g.spec.Deadline)
	defer deadline.Stop()
	select {
	case <-ended:
	case <-deadline.C:
		g.cut(fmt.Errorf("the guest %s was still running after %s and was killed; its console is in %s", g.spec.Name, g.spec.Deadline, g.Console()))
	case <-ctx.Done():
		g.cut(context.Cause(ctx))
	}
	<-ended
	g.lines.Wait()
	g.console.Close()
	if g.restore != nil {
		g.restore()
	}
	os.RemoveAll(sockets)
	close(g.done)
}

func (g *Guest) cut(reason error) {
	g.mu.Lock()
	if g.reason == nil {
		g.reason = reason
	}
	g.mu.Unlock()
	g.life.Close()
}

// Kill cuts the guest's power: its kernel and everything in it is gone without a last
// write. It does not wait; Wait does. A guest that has ended already is no error.
func (g *Guest) Kill() { g.cut(ErrKilled) }

// Wait waits for the guest's end and returns the exit code of its job. The error is
// ErrKilled after Kill, says so when the deadline passed, and shows the end of the console
// when the guest died by itself or never ran its job.
func (g *Guest) Wait() (int, error) {
	<-g.done
	g.mu.Lock()
	reason := g.reason
	g.mu.Unlock()
	exit, err := job.ReadExit(g.dir)
	switch {
	case reason != nil && !errors.Is(reason, ErrKilled):
		return -1, fmt.Errorf("%w\n%s", reason, g.tail())
	case reason != nil:
		return -1, reason
	case err != nil:
		return -1, fmt.Errorf("the guest %s died; its console is in %s\n%s", g.spec.Name, g.Console(), g.tail())
	case exit.Problem != "":
		return exit.Code, fmt.Errorf("%s; the console is in %s", exit.Problem, g.Console())
	}
	return exit.Code, nil
}

// Done is closed when the guest has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Dir is the guest's folder on the host, /out inside.
func (g *Guest) Dir() string { return g.dir }

// Console is the file that holds everything the guest printed.
func (g *Guest) Console() string { return filepath.Join(g.dir, "console") }

// Remove deletes the guest's folder, with the disks that were made for it. Call it after
// Wait, and leave it out to keep the console of a failure.
func (g *Guest) Remove() error { return os.RemoveAll(g.dir) }

// RemoveDisks deletes the disks that were made for the guest and leaves its console.
func (g *Guest) RemoveDisks() error {
	disks, _ := filepath.Glob(filepath.Join(g.dir, "disk*"))
	var err error
	for _, d := range disks {
		err = errors.Join(err, os.Remove(d))
	}
	return err
}

func (g *Guest) tail() string {
	text, err := os.ReadFile(g.Console())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}
