package mysql

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

const (
	// setupProgram is this very program; as the first word of its command line it also
	// keeps anybody from starting a setup by typing the argument.
	setupProgram  = "/proc/self/exe"
	setupArgument = "respaldo-instance-setup"
	// Exit codes of a setup that did not come to be the server. The last two are also
	// those of a shell, which may be the program's wrapper.
	setupFailed   = 125
	cannotExecute = 126
	notFound      = 127
)

// setup is what the re-executed process does before it becomes the server.
type setup struct {
	Parent   int    // its death is ours
	Binds    []bind // in this order, parents before what lies in them
	Work     string // a private directory to build missing mount points in
	UID, GID int
	Argv     []string
	Env      []string
	// Networking leaves it the host's network; otherwise it has one without any interface.
	// Sockets with a path work all the same.
	Networking bool `json:",omitempty"`
}

// bind makes Source visible as Target.
type bind struct {
	Source, Target string
}

func (s setup) encode() []byte {
	b, _ := json.Marshal(s) // strings and numbers: cannot fail
	return b
}

// sysProcAttr gives the process mount and network namespaces, a session of its own (Ctrl-C is for
// us), and an end when we end. Who is not root gets the right to mount from a user
// namespace in which everything keeps its owner.
func (s setup) sysProcAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS,
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
	}
	// A kernel built without network namespaces has no such file.
	if _, err := os.Stat("/proc/self/ns/net"); err == nil && !s.Networking {
		attr.Cloneflags |= syscall.CLONE_NEWNET
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT}
	}
	return attr
}

// namespaceError is for a host that does not let us isolate the instance. We do not run
// it without.
func namespaceError(err error) error {
	hint := "root needs CAP_SYS_ADMIN here: run outside the container, or give it that capability"
	if os.Geteuid() != 0 {
		hint = "run as root, or allow user namespaces to ordinary users (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
	}
	return &respaldo.Error{
		Kind: respaldo.Refused,
		What: "cannot isolate the private server in namespaces of its own",
		Hint: hint,
		Err:  err,
	}
}

// InstanceMain must be called first thing in main and TestMain. In the process that
// StartInstance made it does not return: it sets up the mount namespace and becomes the
// server. Anywhere else it does nothing.
func InstanceMain() {
	if len(os.Args) != 2 || os.Args[0] != setupProgram || os.Args[1] != setupArgument {
		return
	}
	// What follows is set per thread, and the thread that calls exec is the one that
	// becomes the process.
	runtime.LockOSThread()
	err := becomeServer()
	fmt.Fprintln(os.Stderr, err)
	var exec *os.PathError
	if errors.As(err, &exec) && exec.Op == "exec" {
		os.Exit(cannotExecute)
	}
	os.Exit(setupFailed)
}

// becomeServer returns only when it cannot.
func becomeServer() error {
	input, err := io.ReadAll(os.Stdin) // blocks until the ledger knows us
	if err != nil {
		return fmt.Errorf("reading the setup: %w", err)
	}
	var s setup
	if err := json.Unmarshal(input, &s); err != nil {
		return fmt.Errorf("reading the setup: %w", err)
	}
	if err := s.mount(); err != nil {
		return err
	}
	s.yield()
	if err := s.drop(); err != nil {
		return err
	}
	// Changing the user cleared it. Our parent may have died before this line.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("asking for an end with the parent: %w", err)
	}
	if os.Getppid() != s.Parent {
		return fmt.Errorf("the parent process %d is gone", s.Parent)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	if err := unix.Dup3(int(null.Fd()), 0, 0); err != nil {
		return fmt.Errorf("closing the input: %w", err)
	}
	unix.Umask(0o027)
	return &os.PathError{Op: "exec", Path: s.Argv[0], Err: unix.Exec(s.Argv[0], s.Argv, s.Env)}
}

// yield lets the origin go first, in memory, processor and disk. Each is a favour, not a
// condition: a kernel that refuses one changes nothing else.
func (s setup) yield() {
	os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	unix.Setpriority(unix.PRIO_PROCESS, 0, 10)
	const (
		whoProcess = 1
		bestEffort = 2<<13 | 7 // the class for everybody, its last place
	)
	unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, bestEffort)
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// drop gives up every right that the server does not need.
func (s setup) drop() error {
	if os.Geteuid() != 0 {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capabilities: %w", err)
		}
		return nil
	}
	if err := syscall.Setgroups([]int{s.GID}); err != nil {
		return fmt.Errorf("dropping groups: %w", err)
	}
	if err := syscall.Setresgid(s.GID, s.GID, s.GID); err != nil {
		return fmt.Errorf("becoming group %d: %w", s.GID, err)
	}
	if err := syscall.Setresuid(s.UID, s.UID, s.UID); err != nil {
		return fmt.Errorf("becoming user %d: %w", s.UID, err)
	}
	return nil
}
