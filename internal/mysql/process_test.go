package mysql

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// testProcess checks that the process is found over socket and TCP, and that whatever
// stands between us and the server is refused.
func testProcess(t *testing.T, b *box) {
	ctx := context.Background()
	for _, o := range []Options{{Socket: b.socket()}, {Port: b.running.Spec().Port}} {
		o.DefaultsFile = b.write(t, "bob.cnf", `[respaldo]
user=bob
password='it\'s "#secret'`)
		s, err := Connect(ctx, o, nil)
		if err != nil {
			t.Fatal(explained(err))
		}
		defer s.Close()
		p, err := s.findProcess(ctx, map[string]string{"datadir": b.data, "pid_file": b.socket() + ".pid"})
		if err != nil {
			t.Fatal(explained(err))
		}
		if p.PID != b.running.PID() || !p.Alive() || p.UID != os.Geteuid() || p.DataDir != b.data {
			t.Errorf("found %+v, want process %d", p, b.running.PID())
		}
		program := p.Binary.Argv[len(p.Binary.Argv)-1]
		if base := filepath.Base(program); base != "mysqld" && base != "mariadbd" {
			t.Errorf("program %q", p.Binary.Argv)
		}
		if len(p.Args) == 0 || !strings.HasPrefix(p.Args[0], "--") {
			t.Errorf("its options: %q", p.Args)
		}

		forwarded := o
		if o.Socket != "" {
			forwarded.Socket = forward(t, "unix", b.path("proxy.sock"), o.Socket)
		} else {
			_, port, _ := net.SplitHostPort(forward(t, "tcp", "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d", o.Port)))
			fmt.Sscan(port, &forwarded.Port)
		}
		through, err := Connect(ctx, forwarded, nil)
		if err != nil {
			t.Fatal(explained(err))
		}
		defer through.Close()
		_, err = through.Facts(ctx)
		mustBe(t, err, respaldo.Refused, "not a MySQL or MariaDB server on this machine", "own socket")
	}
}

// forward is a tunnel as ssh or a container's published port make it; it returns its address.
func forward(t *testing.T, network, address, to string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pipe := func(from, to net.Conn) {
		defer to.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial(network, to)
			if err != nil {
				c.Close()
				continue
			}
			go pipe(c, s)
			go pipe(s, c)
		}
	}()
	return l.Addr().String()
}

// elsewhereVariable names a socket; the test program then sends a TCP connection over it
// that lives in a network of its own.
const elsewhereVariable = "RESPALDO_TEST_ELSEWHERE"

// connectElsewhere does not return. It stays until nobody wants the connection any more.
func connectElsewhere(socket string) {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	loopback, err := unix.NewIfreq("lo")
	must(err)
	loopback.SetUint16(unix.IFF_UP)
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	must(unix.IoctlIfreq(control, unix.SIOCSIFFLAGS, loopback))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	c, err := net.Dial("tcp", l.Addr().String())
	must(err)
	_, err = l.Accept()
	must(err)
	file, err := c.(*net.TCPConn).File()
	must(err)
	to, err := net.Dial("unix", socket)
	must(err)
	_, _, err = to.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(int(file.Fd())), nil)
	must(err)
	to.Read(make([]byte, 1))
	os.Exit(0)
}

// TestServerElsewhereIsRefused has a connection whose other end is no socket of this
// machine's network, as when the server is on another machine or has a container's network.
func TestServerElsewhereIsRefused(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := run.Local{}.Run(context.Background(), run.Cmd{
			Argv: []string{self},
			Env:  []string{elsewhereVariable + "=" + socket},
			SysProcAttr: &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
				Pdeathsig:   syscall.SIGKILL,
			},
		})
		l.Close() // it waits for us unless it failed
		ended <- err
	}()
	from, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(<-ended)
	}
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := from.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "connection")
	c, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&Server{address: c.RemoteAddr().String()}).tcpPeer(c.(*net.TCPConn), "/nowhere/pid")
	mustBe(t, err, respaldo.Refused, "the server at "+c.RemoteAddr().String()+" runs on another machine", "container's network", "run respaldo on the machine")
	c.Close()
	from.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// testOwnView starts the server again such that it sees other files under its data
// directory's path than we do, as in a container.
func testOwnView(t *testing.T, b *box, f *Facts) {
	seen, socket := b.mkdir(t, "seen"), b.path("own.sock")
	argv := append(slices.Clone(f.Process.Binary.Argv), f.Process.Args...)
	argv = append(argv, "--datadir="+seen, "--socket="+socket, "--pid-file="+b.path("own.pid"), "--user=root") // root of its own namespace
	startCommand(t, socket, run.Cmd{
		Argv: append([]string{"/bin/sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, b.data, seen}, argv...),
		Env:  f.Process.Binary.Env,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		},
	})
	s, err := Connect(context.Background(), Options{DefaultsFile: b.write(t, "own.cnf", "[client]\nuser=root\npassword=\n"), Socket: socket}, nil)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer s.Close()
	_, err = s.Facts(context.Background())
	mustBe(t, err, respaldo.Refused, "is not the "+seen+" that we see", "container")
}

// startCommand runs a server that package servers has no way to start, until the test ends.
func startCommand(t *testing.T, socket string, c run.Cmd) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		r, err := run.Local{}.Run(ctx, c)
		done <- fmt.Errorf("%w: %s %s", err, r.Stdout, r.Stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	waitFor(t, "the server at "+socket, func() bool {
		select {
		case err := <-done:
			done <- err
			t.Fatal(err)
		default:
		}
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}
