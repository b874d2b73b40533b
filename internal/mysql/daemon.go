package mysql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Daemon is a server that is to live on without us: an option file of its own says all that
// it is.
type Daemon struct {
	Binary     respaldo.Binary
	OptionFile string // with datadir, socket, log_error
	DataDir    string
	Socket     string
	Log        string
	UID, GID   int
}

// argument is how its process is known.
func (d Daemon) argument() string { return "--defaults-file=" + d.OptionFile }

// Start starts it, and waits until it answers on its socket or has ended.
func (d Daemon) Start(ctx context.Context) (pid int, err error) {
	cmd := run.Cmd{Argv: append(append([]string{}, d.Binary.Argv...), d.argument()), Dir: d.DataDir,
		Env: append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}, d.Binary.Env...)}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(d.UID), Gid: uint32(d.GID)}}
	}
	log, err := os.OpenFile(d.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	if os.Geteuid() == 0 {
		if err := log.Chown(d.UID, d.GID); err != nil {
			return 0, err
		}
	}
	before, _ := os.Stat(d.Log)
	pid, exited, err := run.Detach(cmd, d.Log)
	if err != nil {
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: "cannot run the server program " + d.Binary.Argv[0], Hint: "install the server, or name its program with --mysqld", Err: err}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if d.answers(ctx) {
			return pid, nil
		}
		select {
		case <-tick.C:
		case <-exited:
			return pid, &respaldo.Error{Kind: respaldo.NotProved, What: "the server ended at its start", Hint: "its log is " + d.Log,
				Err: errors.New(d.firstErrors(before))}
		case <-ctx.Done():
			syscall.Kill(pid, syscall.SIGTERM)
			return pid, context.Cause(ctx)
		}
	}
}

// answers is true, too, for a server that does not let us in.
func (d Daemon) answers(ctx context.Context) bool {
	if _, err := os.Stat(d.Socket); err != nil {
		return false
	}
	db, err := openAt("unix", d.Socket, Account{User: "root"})
	if err != nil {
		return false
	}
	defer db.Close()
	err = db.PingContext(ctx)
	var refusal *driver.MySQLError
	return err == nil || errors.As(err, &refusal)
}

// firstErrors are what it wrote into its log since then, without the farewell.
func (d Daemon) firstErrors(before os.FileInfo) string {
	text, _ := os.ReadFile(d.Log)
	if before != nil && before.Size() <= int64(len(text)) {
		text = text[before.Size():]
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "ERROR") && !strings.Contains(line, "Aborting") && len(found) < 3 {
			found = append(found, shorten(strings.TrimSpace(line)))
		}
	}
	if len(found) == 0 {
		return "no message"
	}
	return strings.Join(found, "; ")
}

// PID finds its process; 0 when it does not run.
func (d Daemon) PID() int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && d.isAt(pid) {
			return pid
		}
	}
	return 0
}

func (d Daemon) isAt(pid int) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	for word := range bytes.SplitSeq(line, []byte{0}) {
		if string(word) == d.argument() {
			return true
		}
	}
	return false
}

// Stop ends it in order if it runs, and tells whether it did.
func (d Daemon) Stop(ctx context.Context) (bool, error) {
	pid := d.PID()
	if pid == 0 {
		return false, nil
	}
	if err := run.End(ctx.Done(), pid, func() bool { return d.isAt(pid) }); err != nil {
		return true, &respaldo.Error{Kind: respaldo.Failed, What: fmt.Sprintf("cannot stop the server with process ID %d", pid), Hint: "stop it by hand", Err: err}
	}
	return true, nil
}

// FindProgram returns what starts a server of this machine for data of a version: the given
// program, the one that ran at the origin, or where distributions put it. One of another
// series, or older than the data, is refused.
func FindProgram(ctx context.Context, given []string, m respaldo.Manifest) (respaldo.Binary, error) {
	candidates := []respaldo.Binary{{Argv: given}}
	if len(given) == 0 {
		candidates = []respaldo.Binary{m.Binary}
		for _, path := range []string{"/usr/sbin/mariadbd", "/usr/sbin/mysqld", "/usr/libexec/mariadbd", "/usr/libexec/mysqld", "/usr/local/mysql/bin/mysqld"} {
			candidates = append(candidates, respaldo.Binary{Argv: []string{path}})
		}
	}
	var wrong error
	for _, b := range candidates {
		if len(b.Argv) == 0 {
			continue
		}
		if path := b.Argv[len(b.Argv)-1]; filepath.IsAbs(path) {
			if _, err := os.Stat(path); err != nil {
				continue
			}
		}
		have, err := saysVersion(ctx, b)
		if err != nil {
			continue
		}
		if wrong = fits(have, m.Version, b.Argv[len(b.Argv)-1]); wrong == nil {
			return b, nil
		}
	}
	if wrong != nil {
		return respaldo.Binary{}, wrong
	}
	return respaldo.Binary{}, refused("there is no server program for "+m.Version.String(), "install the server there, or name its program with --mysqld")
}

func saysVersion(ctx context.Context, b respaldo.Binary) (respaldo.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	argv := append(append(append([]string{"env", "-i"}, b.Env...), b.Argv...), "--no-defaults", "--version")
	out, err := run.Local{}.Run(ctx, run.Cmd{Argv: argv, Dir: "/", Quiet: true})
	if err != nil {
		return respaldo.Version{}, err
	}
	said := programVersion.FindStringSubmatch(string(out.Stdout))
	if said == nil {
		return respaldo.Version{}, fmt.Errorf("%s does not say its version", b.Argv[0])
	}
	return respaldo.ParseVersion(said[1], said[2])
}

// fits refuses a program that the data are not for.
func fits(have, want respaldo.Version, path string) error {
	switch {
	case have.Flavor != want.Flavor || have.Major != want.Major || have.Minor != want.Minor:
		return refused(fmt.Sprintf("the data are of %s, and %s is %s", want, path, have), fmt.Sprintf("a server of the same series is needed: install %d.%d, or name its program with --mysqld", want.Major, want.Minor))
	case have.Patch < want.Patch:
		return refused(fmt.Sprintf("the data are of %s, and %s is the older %s", want, path, have), "install "+want.String()+" or a later release of that series")
	}
	return nil
}
