package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"golang.org/x/sys/unix"

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
	log, err := d.openLog()
	if err != nil {
		return 0, err
	}
	defer log.Close()
	before, _ := log.Stat()
	pid, exited, err := run.Detach(cmd, log)
	if err != nil {
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: "cannot run the server program " + d.Binary.Argv[0], Hint: "install the server, or name its program with --mysqld", Err: err}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if server := d.answers(ctx); server == pid || server != 0 && d.isAt(server) {
			return server, nil
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

// openLog opens the log for the server's user. The directory may be that user's: neither a
// link nor a file that has another name too is given away.
func (d Daemon) openLog() (*os.File, error) {
	log, err := os.OpenFile(d.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, d.noLog()
	}
	if err != nil {
		return nil, err
	}
	info, err := log.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink != 1) {
		err = d.noLog()
	}
	if err == nil && os.Geteuid() == 0 {
		err = log.Chown(d.UID, d.GID)
	}
	if err != nil {
		log.Close()
		return nil, err
	}
	return log, nil
}

func (d Daemon) noLog() error {
	return refused("the log of the server cannot be "+d.Log+", which is no plain file of one name", "move it away")
}

// answers returns the process that answers on the socket; 0 is nobody. One that does not let
// us in answers, too.
func (d Daemon) answers(ctx context.Context) (pid int) {
	cfg := driver.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Timeout = "unix", d.Socket, "root", dialTimeout
	cfg.Logger = &driver.NopLogger{}
	peer := 0
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
		if err == nil {
			peer = peerOf(conn)
		}
		return conn, err
	}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return 0
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	err = db.PingContext(ctx)
	var refusal *driver.MySQLError
	if err != nil && !errors.As(err, &refusal) {
		return 0
	}
	return peer
}

// peerOf is the process that listens at the other end of a socket; 0 if it cannot be told.
func peerOf(conn net.Conn) (pid int) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	sys, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	sys.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
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

// Running is its process if it runs and answers; 0 otherwise.
func (d Daemon) Running(ctx context.Context) int {
	if pid := d.PID(); pid != 0 && d.answers(ctx) == pid {
		return pid
	}
	return 0
}

// isAt tells whether a process is that server: a server's program, told this option file,
// and at home in the data directory. An editor or a client that was told the file is not.
func (d Daemon) isAt(pid int) bool {
	if !slices.Contains(readArgs(fmt.Sprintf("/proc/%d/cmdline", pid)), d.argument()) || !isServerProgram(pid) {
		return false
	}
	home, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	here, err := os.Stat(d.DataDir)
	return err == nil && os.SameFile(home, here)
}

// Told is what the option file, which is the user's to change, says: by the names of the
// variables. Paths are whole.
func (d Daemon) Told() (map[string]string, error) {
	parsed, err := readOptionFiles([]string{d.OptionFile}, []string{"mysqld", "server", "mariadb", "mariadbd"})
	if err != nil {
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: "cannot understand " + d.OptionFile, Hint: "correct the line", Err: err}
	}
	told := map[string]string{}
	for _, option := range parsed.options {
		told[strings.ReplaceAll(option.name, "-", "_")] = option.value
	}
	if socket := told["socket"]; socket != "" && !filepath.IsAbs(socket) {
		told["socket"] = filepath.Join(d.DataDir, socket)
	}
	return told, nil
}

// Stop ends it in order if it runs, and tells whether it did.
func (d Daemon) Stop(ctx context.Context) (bool, error) {
	pid := d.PID()
	if pid == 0 {
		return false, nil
	}
	started, err := processStarted(pid)
	if err != nil || !d.isAt(pid) {
		return false, nil // it has just ended
	}
	still := func() bool { // with its files, which are closed late
		now, err := processStarted(pid)
		return err == nil && now == started
	}
	if err := run.End(ctx.Done(), pid, still); err != nil {
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
