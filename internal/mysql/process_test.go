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
