package mysql

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// InstanceRequest is what it takes to start a private server over an image.
type InstanceRequest struct {
	// Manifest says what the files need: version, layout and all global variables.
	Manifest respaldo.Manifest
	// Dirs maps the origin's absolute paths to local, writable directories (or files)
	// that hold the image's copy. The data directory is always among them, and so is
	// every place outside it that the server would write. The instance sees the copies
	// under the origin's names and everything else read-only.
	Dirs map[string]string
	// Binary starts the server; the zero value means Manifest.Binary.
	Binary respaldo.Binary
	// Scratch is a fresh private directory for socket, log, pid and temporary files. It
	// belongs to the user of the instance afterwards. Its path must be short enough for
	// a socket in it (107 bytes). The caller removes it when the log is of no more use.
	Scratch string
	// SocketDir, if set, is a directory for the socket alone, which others than root may be
	// let into. It belongs to the user of the instance afterwards.
	SocketDir string
	// Owner is whose instance it is, for FindInstances; "" means Manifest.Server.
	Owner string
	// Run is the operation's ID: FindInstances finds the process by it when the ledger
	// is gone.
	Run string
	Log *slog.Logger // nil is silent
	// Memory is roughly how many bytes the instance may use; 0 means 256 MiB, or up to
	// 2 GiB where the origin has a large redo log. Half of it becomes the buffer pool.
	Memory int64
	// Started is called with the process ID before the process does anything at all: it
	// waits for Started to return.
	Started func(pid int)
	// Ready, if set, is called when the server has recovered and lets us in.
	Ready func()
	// Account, if set, makes the instance check accounts as the origin did, and connects
	// as this one. Without it accounts are not looked at, whatever the image holds; only
	// the instance's own user and root reach the socket.
	Account *Account
	// Networking leaves the process in the host's network. A proof has no business there:
	// whatever the image makes the server load (components, plugins) can reach nobody.
	Networking bool
	// Options are server options added last ("--read-only=ON"), for servers that are to
	// be more than a proof.
	Options []string
}

// Account is a login on the image's own accounts.
type Account struct {
	User, Password string
}

// Instance is a private server over an image, reachable over a socket only. It dies
// with this process, however that ends.
type Instance struct {
	request  InstanceRequest
	image    *image
	log      *slog.Logger
	process  *os.Process
	exited   chan struct{} // closed when the process is gone
	exitErr  error         // how it went; read after exited
	killed   bool          // by us
	db       *sql.DB
	recovery time.Duration
	stop     sync.Mutex
}

// InstanceLog is the name of an instance's error log in its Scratch.
const InstanceLog = "error.log"

const (
	socketName   = "mysqld.sock"
	socketFolder = "socket" // where SocketDir appears in Scratch
)

// StartInstance starts a server over the image and waits until it has recovered and
// accepts connections. ctx bounds the wait: when it ends first, the process is ended too
// and the error is ctx's cause. An image that does not start is a NotProved error with
// the last errors of the server's log; the log stays in Scratch. What the host or the
// request forbids is Refused.
//
// The copies in Dirs are changed by it: auto.cnf goes (the instance makes its own
// server_uuid), the binlog index is rewritten with relative names, recovery writes.
func StartInstance(ctx context.Context, request InstanceRequest) (*Instance, error) {
	img, err := prepareImage(ctx, request)
	if err != nil {
		return nil, err
	}
	i := &Instance{request: request, image: img, log: request.Log, exited: make(chan struct{})}
	if i.log == nil {
		i.log = slog.New(slog.DiscardHandler)
	}
	start := time.Now()
	if err := i.launch(); err != nil {
		img.tidy()
		return nil, err
	}
	if err := i.awaitReady(ctx); err != nil {
		now, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancel() // nothing in there is worth a polite end
		i.end(now)
		return nil, err
	}
	i.recovery = time.Since(start)
	if request.Ready != nil {
		request.Ready()
	}
	i.log.Debug("instance ready", "pid", i.PID(), "recovery", i.recovery.Round(time.Millisecond), "log", i.LogPath())
	return i, nil
}

// DB is a connection pool on the instance, closed by Stop.
func (i *Instance) DB() *sql.DB { return i.db }

// Socket is the path of the instance's socket, for client programs.
func (i *Instance) Socket() string { return i.request.socket() }

// LogPath is the server's error log.
func (i *Instance) LogPath() string { return filepath.Join(i.request.Scratch, InstanceLog) }

// PID is the process ID of the server.
func (i *Instance) PID() int { return i.process.Pid }

// Exited is closed when the server is gone, whoever ended it.
func (i *Instance) Exited() <-chan struct{} { return i.exited }

// RecoverySeconds passed from the start of the process to the first connection.
func (i *Instance) RecoverySeconds() float64 { return i.recovery.Seconds() }

// launch starts the process and returns when it is known to the caller's ledger and
// on its way. The goroutine that starts it keeps its thread until the process ends: the
// kernel sends the parent-death signal when the *thread* dies that made the child. It gives
// the thread back alive, as others may have started children from it.
func (i *Instance) launch() error {
	setup, err := i.image.setup(i.request)
	if err != nil {
		return err
	}
	i.log.Debug("starting instance", "argv", setup.Argv, "binds", setup.Binds)
	input, release := newGate(setup.encode())
	started := make(chan int, 1)
	cmd := run.Cmd{
		Argv:        []string{setupProgram, setupArgument},
		Env:         i.request.identify(),
		Dir:         "/",
		Stdin:       input,
		Quiet:       true,
		SysProcAttr: setup.sysProcAttr(),
		Started: func(pid int) {
			if i.request.Started != nil {
				i.request.Started(pid)
			}
			// FindProcess holds a pidfd where the kernel has them: a signal never hits
			// a later process of the same number.
			i.process, _ = os.FindProcess(pid)
			started <- pid
			release()
		},
	}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, i.exitErr = run.Local{Log: i.request.Log}.Run(context.Background(), cmd)
		close(i.exited)
	}()
	select {
	case <-started:
		return nil
	case <-i.exited:
		select {
		case <-started: // it lived, and ended at once: awaitReady says why
			return nil
		default:
			return namespaceError(i.exitErr)
		}
	}
}

// newGate returns a reader that blocks until release is called.
func newGate(content []byte) (io.Reader, func()) {
	open := make(chan struct{})
	return &gate{open: open, r: bytes.NewReader(content)}, sync.OnceFunc(func() { close(open) })
}

type gate struct {
	open <-chan struct{}
	r    io.Reader
}

func (g *gate) Read(p []byte) (int, error) {
	<-g.open
	return g.r.Read(p)
}

// pollReady is how often the socket is tried while a server recovers, and where a server
// that accepts nothing yet costs us a connect call each time.
const pollReady = 25 * time.Millisecond

// awaitReady returns when the server answers on its socket. It is not a matter of time:
// a recovery may take hours as long as the process lives and ctx allows.
func (i *Instance) awaitReady(ctx context.Context) error {
	db, err := i.open()
	if err != nil {
		return err
	}
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-i.exited:
			cancel() // a ping that hangs on a dying server
		case <-trying.Done():
		}
	}()
	tick := time.NewTicker(pollReady)
	defer tick.Stop()
	for {
		err := db.PingContext(trying)
		var refusal *driver.MySQLError
		switch {
		case err == nil:
			i.db = db
			return nil
		case errors.As(err, &refusal):
			db.Close()
			return &respaldo.Error{Kind: respaldo.NotProved, What: "the started image does not let us in", Hint: "see its log " + i.LogPath(), Err: err}
		}
		select {
		case <-i.exited:
			db.Close()
			return i.startFailed()
		case <-ctx.Done():
			db.Close()
			return i.notReady(context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// notReady tells that ctx ended first. Running out of time speaks against the image, being
// cancelled does not.
func (i *Instance) notReady(cause error) error {
	kind := respaldo.KindOf(cause)
	if errors.Is(cause, context.DeadlineExceeded) {
		kind = respaldo.NotProved
	}
	return &respaldo.Error{Kind: kind, What: "the image did not get ready", Hint: "its log is " + i.LogPath(), Err: cause}
}

func (i *Instance) open() (*sql.DB, error) {
	cfg := driver.NewConfig()
	cfg.Net, cfg.Addr, cfg.User = "unix", i.Socket(), "root"
	cfg.Logger = &driver.NopLogger{} // refused connects while it recovers are no news
	if a := i.request.Account; a != nil {
		cfg.User, cfg.Passwd = a.User, a.Password
	}
	// The socket of a server that hangs must not hang us: dialing obeys the context alone.
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to the instance: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// startFailed tells why the process ended before it was ready.
func (i *Instance) startFailed() error {
	var exit *run.ExitError
	if errors.As(i.exitErr, &exit) {
		if exit.Signal == unix.SIGKILL { // which no server does to itself, whatever its image
			return &respaldo.Error{
				Kind: respaldo.Failed,
				What: "the server started on the image was killed before it was ready",
				Hint: "was memory short? dmesg tells; then run again",
				Err:  exit,
			}
		}
		switch exit.Exit {
		case setupFailed:
			return namespaceError(errors.New(strings.TrimSpace(exit.Stderr)))
		case cannotExecute, notFound:
			return &respaldo.Error{
				Kind: respaldo.Refused,
				What: "cannot run the origin's server program",
				Hint: "install the server that the image comes from (" + i.request.Manifest.Version.String() + ") on this machine",
				Err:  errors.New(strings.TrimSpace(exit.Stderr)),
			}
		}
	}
	return &respaldo.Error{
		Kind: respaldo.NotProved,
		What: "the image does not start",
		Hint: "its log is " + i.LogPath(),
		Err:  errors.New(i.lastWords()),
	}
}

// Stop ends the server: SIGTERM, and SIGKILL when ctx ends before it is gone. It returns
// when the process is gone, and again and again without doing anything. The error is nil
// only if the server shut down in order: of one that was killed or crashed, however late,
// the redo log may hold what its files lack.
func (i *Instance) Stop(ctx context.Context) error {
	i.end(ctx)
	switch {
	case i.killed:
		return &respaldo.Error{Kind: respaldo.KindOf(context.Cause(ctx)), What: "the server started on the image did not shut down in time and was killed",
			Hint: "its log is " + i.LogPath(), Err: context.Cause(ctx)}
	case i.exitErr != nil:
		return i.crashed()
	}
	return nil
}

// crashed tells how a server ended that did not shut down in order.
func (i *Instance) crashed() error {
	return &respaldo.Error{Kind: respaldo.NotProved, What: "the server started on the image did not shut down in order",
		Hint: "its log is " + i.LogPath(), Err: fmt.Errorf("%s: %w", i.lastWords(), i.exitErr)}
}

// end is Stop without the verdict.
func (i *Instance) end(ctx context.Context) {
	i.stop.Lock()
	defer i.stop.Unlock()
	if i.db != nil {
		i.db.Close()
	}
	i.process.Signal(syscall.SIGTERM) // fails only for a process that is gone
	select {
	case <-i.exited:
	case <-ctx.Done():
		i.kill()
	}
	i.image.tidy()
}

// kill ends the server if it is not gone yet, and returns when it is.
func (i *Instance) kill() {
	select {
	case <-i.exited: // the number may be another's by now
		return
	default:
	}
	i.log.Debug("killing the instance", "pid", i.PID())
	i.killed = true
	unix.Kill(-i.PID(), unix.SIGKILL) // it leads a group of its own: with all that it started
	<-i.exited
}

// runAs is who the instance runs as: the owner of the data directory.
func runAs(dataDir string) (uid, gid int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dataDir, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: dataDir, Err: err}
	}
	uid, gid = int(st.Uid), int(st.Gid)
	if me := os.Geteuid(); me != 0 && me != uid {
		return 0, 0, &respaldo.Error{
			Kind: respaldo.Refused,
			What: fmt.Sprintf("%s belongs to user %d, and a server on it must run as that user", dataDir, uid),
			Hint: "run as root, or as that user",
		}
	}
	return uid, gid, nil
}
