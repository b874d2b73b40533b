package mysql

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
	"golang.org/x/sys/unix"
)

// Process is the server's process on this machine, proved to be the one that we are
// connected to and to see the same data directory as we do.
type Process struct {
	PID int
	// Started is in clock ticks after boot: with the PID it names one process for ever.
	Started uint64
	Binary  respaldo.Binary
	Args    []string // what follows the program on its command line
	DataDir string   // absolute, as the server names it
	UID     int      // effective, what its files belong to
	GID     int
	// Replaced tells that its program's file is not the one that it was started from.
	Replaced bool

	env map[string]string
}

// Alive tells whether that very process still runs. A restarted server is another one.
func (p Process) Alive() bool {
	started, err := processStarted(p.PID)
	return err == nil && started == p.Started
}

// findProcess finds the process at the other end of a connection. What it cannot prove
// to be a server on this machine, in our view of the files, it refuses.
func (s *Server) findProcess(ctx context.Context, vars map[string]string) (Process, error) {
	conn, raw, closeAll, err := s.open(ctx)
	if err != nil {
		return Process{}, s.explain(err, "connecting")
	}
	defer closeAll()
	if err := conn.PingContext(ctx); err != nil {
		return Process{}, s.explain(err, "connecting")
	}
	datadir := filepath.Clean(vars["datadir"])
	pidFile := vars["pid_file"]
	if !filepath.IsAbs(pidFile) {
		pidFile = filepath.Join(datadir, pidFile)
	}
	var pid int
	switch c := raw.(type) {
	case *net.UnixConn:
		pid, err = s.unixPeer(c, pidFile)
	case *net.TCPConn:
		pid, err = s.tcpPeer(c, pidFile)
	default:
		err = fmt.Errorf("connection of type %T", raw)
	}
	if err != nil {
		return Process{}, err
	}
	p, err := readProcess(pid)
	if errors.Is(err, fs.ErrPermission) {
		return p, asRoot(fmt.Sprintf("process %d of the server may not be looked at", pid), err)
	}
	if err != nil {
		return p, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("cannot look at the server's process %d", pid), Hint: "was it restarted just now? run again", Err: err}
	}
	p.DataDir = datadir
	return p, sameDirectory(pid, datadir)
}

func asRoot(what string, err error) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: what, Hint: "run as root, or as the user that the server runs as", Err: err}
}

// unixPeer asks the kernel who listens on the socket.
func (s *Server) unixPeer(c *net.UnixConn, pidFile string) (int, error) {
	var cred *unix.Ucred
	sys, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := sys.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(ctlErr, err); err != nil {
		return 0, fmt.Errorf("asking who serves %s: %w", s.address, err)
	}
	switch {
	case cred.Pid == 0:
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: "the server at " + s.address + " runs in a container that we cannot look into",
			Hint: "run respaldo where the server's processes are seen, with the same view of its files"}
	case cred.Pid == 1: // systemd listened and handed the socket over: mariadb.socket
		return readPIDFile(pidFile)
	case !isServerProgram(int(cred.Pid)):
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the socket %s is served by %s, which is not a MySQL or MariaDB server on this machine", s.address, processName(int(cred.Pid))),
			Hint: "connect to the server's own socket, on the machine where it runs"}
	}
	return int(cred.Pid), nil
}

// tcpPeer finds who holds the other end of our own connection: the one proof that holds
// against tunnels, proxies and published container ports.
func (s *Server) tcpPeer(c *net.TCPConn, pidFile string) (int, error) {
	ours, theirs := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	inode, err := socketInode(theirs, ours)
	if err != nil {
		return 0, err
	}
	if inode == "" {
		return 0, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the server at %s runs on another machine, or in a container's network", s.address),
			Hint: "run respaldo on the machine whose volume holds the data directory, and connect to the server's socket there"}
	}
	var candidates []int
	if pid, err := readPIDFile(pidFile); err == nil {
		candidates = append(candidates, pid)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			candidates = append(candidates, pid)
		}
	}
	for _, pid := range candidates {
		if !holdsSocket(pid, inode) {
			continue
		}
		if !isServerProgram(pid) {
			return 0, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is served by %s, which is not a MySQL or MariaDB server on this machine", s.address, processName(pid)),
				Hint: "connect to the server's own socket or port, on the machine where it runs"}
		}
		return pid, nil
	}
	return 0, asRoot(fmt.Sprintf("cannot tell which process serves %s", s.address), nil)
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}

// socketInode looks up a connected socket of this network namespace; "" when there is none.
func socketInode(local, remote netip.AddrPort) (string, error) {
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		content, err := os.ReadFile(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // IPv6 switched off
		}
		if err != nil {
			return "", err
		}
		scan := bufio.NewScanner(bytes.NewReader(content))
		for scan.Scan() {
			f := strings.Fields(scan.Text())
			if len(f) > 9 && procAddrPort(f[1]) == local && procAddrPort(f[2]) == remote && f[9] != "0" {
				return f[9], nil
			}
		}
	}
	return "", nil
}

// procAddrPort reads the kernel's "0100007F:0CEA": 32-bit words in host order.
func procAddrPort(s string) netip.AddrPort {
	address, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(address)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	ip, _ := netip.AddrFromSlice(b)
	p, _ := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(ip.Unmap(), uint16(p))
}

func holdsSocket(pid int, inode string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && link == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

func readPIDFile(path string) (int, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return 0, asRoot("cannot read the server's pid file", err)
	}
	if err == nil {
		var pid int
		if pid, err = strconv.Atoi(strings.TrimSpace(string(content))); err == nil {
			return pid, nil
		}
	}
	return 0, &respaldo.Error{Kind: respaldo.Refused, What: "cannot find the server's process", Hint: "does the server run on this machine? its pid_file says where to look", Err: err}
}

var serverProgram = regexp.MustCompile(`^(mysqld|mariadbd)([-_.].*)?$`)

// loader is glibc's or musl's dynamic loader: what /proc/PID/exe shows of a program that
// was started through it.
var loader = regexp.MustCompile(`^ld(-linux.*|-musl.*|-2.*)?\.so.*$`)

func isServerProgram(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil { // another user's; its name is public
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		comm := strings.TrimSpace(string(name))
		return serverProgram.MatchString(comm) || loader.MatchString(comm)
	}
	argv, _ := programOf(exe, readArgs(fmt.Sprintf("/proc/%d/cmdline", pid)))
	return serverProgram.MatchString(filepath.Base(argv[len(argv)-1]))
}

func processName(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}

// readArgs splits a NUL-separated file of /proc; nil when it cannot be read.
func readArgs(path string) []string {
	content, err := os.ReadFile(path)
	if err != nil || len(content) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(content), "\x00"), "\x00")
}

func readProcess(pid int) (Process, error) {
	p := Process{PID: pid, env: map[string]string{}}
	dir := fmt.Sprintf("/proc/%d", pid)
	var err error
	if p.Started, err = processStarted(pid); err != nil {
		return p, err
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return p, err
	}
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return p, err
	}
	for _, e := range strings.Split(string(environ), "\x00") {
		if name, value, ok := strings.Cut(e, "="); ok {
			p.env[name] = value
			if name == "LD_PRELOAD" || name == "LD_LIBRARY_PATH" {
				p.Binary.Env = append(p.Binary.Env, e)
			}
		}
	}
	args := readArgs(filepath.Join(dir, "cmdline"))
	p.Replaced = strings.HasSuffix(exe, deletedSuffix)
	p.Binary.Argv, p.Args = programOf(exe, args)
	p.UID, p.GID, err = effectiveIDs(filepath.Join(dir, "status"))
	return p, err
}

// A package upgrade replaces the program under a running server: its exe then reads
// "/usr/sbin/mysqld (deleted)", and the path holds the new version.
const deletedSuffix = " (deleted)"

// programOf tells the program from its options. A server that was started through a
// dynamic loader (ld-linux-x86-64.so.2 --library-path … mysqld …) needs it again.
func programOf(exe string, args []string) (argv, rest []string) {
	exe = strings.TrimSuffix(exe, deletedSuffix)
	if len(args) == 0 {
		return []string{exe}, nil
	}
	if loader.MatchString(filepath.Base(exe)) {
		for i := 1; i < len(args); i++ {
			if serverProgram.MatchString(filepath.Base(args[i])) && args[i-1] != "--library-path" && args[i-1] != "--preload" {
				return append([]string{exe}, args[1:i+1]...), args[i+1:]
			}
		}
	}
	return []string{exe}, args[1:]
}

func processStarted(pid int) (uint64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, which may contain anything.
	i := bytes.LastIndexByte(content, ')')
	fields := strings.Fields(string(content[i+1:]))
	if i < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func effectiveIDs(status string) (uid, gid int, err error) {
	content, err := os.ReadFile(status)
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(content), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		switch f[0] {
		case "Uid:":
			uid, err = strconv.Atoi(f[2])
		case "Gid:":
			gid, err = strconv.Atoi(f[2])
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return uid, gid, nil
}

// sameDirectory refuses a server whose data directory is not what we see under that
// path: it runs in a container, a chroot or a mount namespace of its own.
func sameDirectory(pid int, datadir string) error {
	theirs, err := os.Stat(filepath.Join(fmt.Sprintf("/proc/%d/root", pid), datadir))
	if errors.Is(err, fs.ErrPermission) {
		return asRoot("the server's data directory "+datadir+" may not be looked at", err)
	}
	ours, ourErr := os.Stat(datadir)
	if errors.Is(ourErr, fs.ErrPermission) {
		return asRoot("the data directory "+datadir+" may not be looked at", ourErr)
	}
	if err == nil && ourErr == nil && os.SameFile(theirs, ours) {
		return nil
	}
	return &respaldo.Error{Kind: respaldo.Refused,
		What: fmt.Sprintf("the server's data directory %s is not the %s that we see: it runs in a container or has a view of its own of the files", datadir, datadir),
		Hint: "run respaldo where that path is the server's data directory", Err: errors.Join(err, ourErr)}
}
