package servers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Spec says how to run a server. The zero value of everything but Name and DataDir will do.
type Spec struct {
	Name    string
	DataDir string
	Socket  string   // chosen by Start when empty; keep it short, a socket's path ends at 107 bytes
	Port    int      // 0: no TCP
	Args    []string // beat the defaults; a leading --defaults-file=… takes the place of --no-defaults
	User    string   // to run as, when started by root; root when empty
	Log     string   // the error log; beside the data directory when empty
}

// Running is a server that Start started. It dies with the process that started it.
type Running struct {
	spec   Spec
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; read after exited
	once   sync.Once
	tmp    string // socket folder of ours
}

// Start starts a server and returns when it accepts connections, or with the end of its
// log when it does not. ctx bounds the start only; Stop or Kill ends the server.
// Binlogs, GTIDs, sync_binlog=1 and innodb_flush_log_at_trx_commit=1 are on.
func Start(ctx context.Context, spec Spec) (*Running, error) {
	if _, ok := recipes[spec.Name]; !ok {
		return nil, fmt.Errorf("no server named %q", spec.Name)
	}
	r := &Running{spec: spec, exited: make(chan struct{})}
	if r.spec.Socket == "" {
		dir, err := os.MkdirTemp("", "srv")
		if err != nil {
			return nil, err
		}
		r.tmp, r.spec.Socket = dir, filepath.Join(dir, "s")
		if spec.User != "" {
			if err := os.Chmod(dir, 0o777); err != nil {
				return nil, err
			}
		}
	}
	if r.spec.Log == "" {
		r.spec.Log = filepath.Clean(spec.DataDir) + ".err"
	}
	if err := r.start(ctx); err != nil {
		if r.tmp != "" {
			err = errors.Join(err, os.RemoveAll(r.tmp))
		}
		return nil, err
	}
	return r, nil
}

func (r *Running) start(ctx context.Context) error {
	log, err := os.OpenFile(r.spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command(Binary(r.spec.Name, "mysqld"), r.args()...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.Dir = r.spec.DataDir
	// A Ctrl-C meant for the tests must not reach it, their death must.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.exited)
	}()
	if err := r.accepting(ctx); err != nil {
		return errors.Join(err, r.Kill())
	}
	return nil
}

func (r *Running) args() []string {
	name := r.spec.Name
	args := files(name, filepath.Join(home(name), "root"))
	extra := r.spec.Args
	if len(extra) > 0 && strings.HasPrefix(extra[0], "--defaults-") {
		args[0], extra = extra[0], extra[1:]
	}
	args = append(args, "--datadir="+r.spec.DataDir, "--socket="+r.spec.Socket, "--pid-file="+r.spec.Socket+".pid", "--bind-address=127.0.0.1",
		"--server-id=1", "--log-bin=binlog", "--binlog-format=ROW", "--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=64M")
	if r.spec.Port != 0 {
		args = append(args, "--port="+strconv.Itoa(r.spec.Port))
	} else {
		args = append(args, "--skip-networking")
	}
	switch name {
	case "mysql-9.7":
		args = append(args, "--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--mysqlx=OFF", "--secure-file-priv=")
	case "mysql-5.6":
		args = append(args, "--gtid-mode=ON", "--enforce-gtid-consistency", "--log-slave-updates", "--explicit-defaults-for-timestamp")
	default:
		// Since 10.11.19 MariaDB reserves 8 TiB of address space unless told otherwise.
		args = append(args, "--log-slave-updates", "--loose-innodb-buffer-pool-size-max=256M")
	}
	args = append(args, redo(name)...)
	switch {
	case r.spec.User != "":
		args = append(args, "--user="+r.spec.User)
	case os.Geteuid() == 0:
		args = append(args, "--user=root")
	}
	return append(args, extra...)
}

// accepting waits until the server answers over its socket, an access error included: a
// data directory may have a root password.
func (r *Running) accepting(ctx context.Context) error {
	db := r.Open()
	defer db.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// A look at the file is cheap even where connecting is not.
		if _, err := os.Stat(r.spec.Socket); err == nil {
			err := db.PingContext(ctx)
			var refused *mysql.MySQLError
			if err == nil || errors.As(err, &refused) {
				return nil
			}
		}
		select {
		case <-r.exited:
			return fmt.Errorf("%s ended at start: %w\n%s", r.spec.Name, r.err, r.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not accept connections: %w\n%s", r.spec.Name, context.Cause(ctx), r.logTail())
		case <-tick.C:
		}
	}
}

func (r *Running) logTail() string {
	text, err := os.ReadFile(r.spec.Log)
	if err != nil {
		return err.Error()
	}
	return lastLines(text, 20)
}

// Stop shuts the server down in order and waits for it. A server that has ended already
// is no error.
func (r *Running) Stop() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-r.exited:
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not stop within %s\n%s", r.spec.Name, stopTimeout, r.logTail()), r.Kill())
	}
	return r.tidy()
}

// Kill ends the server as a crash would and waits until it is gone.
func (r *Running) Kill() error {
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-r.exited
	return r.tidy()
}

func (r *Running) tidy() (err error) {
	r.once.Do(func() {
		if r.tmp != "" {
			err = os.RemoveAll(r.tmp)
		}
	})
	return err
}

// PID is the server's own process, not that of a wrapper.
func (r *Running) PID() int { return r.cmd.Process.Pid }

// Exited is closed when the server has ended, for whatever reason.
func (r *Running) Exited() <-chan struct{} { return r.exited }

// Spec is what Start was given, with everything that it chose filled in.
func (r *Running) Spec() Spec { return r.spec }

// DSN connects go-sql-driver/mysql as root over the socket, without a database.
func (r *Running) DSN() string { return config(r.spec.Socket).FormatDSN() }

// Open returns connections by DSN that do not print to standard error when the server is
// killed under them. Close them before Stop.
func (r *Running) Open() *sql.DB { return OpenSocket(r.spec.Socket) }

// OpenSocket is Open for a server that somebody else has started.
func OpenSocket(socket string) *sql.DB {
	c, err := mysql.NewConnector(config(socket))
	if err != nil {
		panic(err) // the configuration holds nothing of the caller's
	}
	return sql.OpenDB(c)
}

func config(socket string) *mysql.Config {
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr = "root", "unix", socket
	c.Logger = &mysql.NopLogger{}
	return c
}
