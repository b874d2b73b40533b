package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/target"
	"github.com/respaldo-backup/respaldo/lab/stores"
)

// newNode is this machine, reached by a real ssh and a real sshd.
func newNode(t *testing.T) (Node, *stores.SSHServer) {
	t.Helper()
	s, err := stores.StartShell(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return Node{Host: s.Host, Port: s.Port, User: s.User, Run: run.Local{},
		Options: []string{"IdentityFile=" + s.Key, "IdentitiesOnly=yes", "UserKnownHostsFile=" + s.KnownHosts, "StrictHostKeyChecking=yes"}}, s
}

func (n Node) opener(program string) Opener {
	return Opener{Node: n.String(), Open: func(ctx context.Context) (Conn, error) { return n.Open(ctx, program) }}
}

// proxy passes connections on, and cuts each of the first few after some bytes.
func proxy(t *testing.T, to string, cuts int32, after int64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	seen := atomic.Int32{}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			limit := int64(1 << 50)
			if n := seen.Add(1); n > 1 && n <= 1+cuts { // the first one prepares
				limit = after
			}
			go func() {
				io.CopyN(server, client, limit)
				server.Close()
				client.Close()
			}()
			go io.Copy(client, server)
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// Over a real ssh: the program is carried once, files arrive though the connection is cut
// midway, and only the rest is sent then.
func TestOverSSH(t *testing.T) {
	n, s := newNode(t)
	self, err := os.Executable()
	must(t, err)
	carried, err := n.Carry(t.Context(), self)
	must(t, err)
	if !strings.HasPrefix(carried.Program, filepath.Join(s.Files, "cache/respaldo/respaldo-")) || carried.Bytes == 0 {
		t.Errorf("carried %+v", carried)
	}
	again, err := n.Carry(t.Context(), self)
	if err != nil || again.Program != carried.Program || again.Bytes != 0 {
		t.Errorf("carried again: %+v, %v", again, err)
	}

	from, to := newTree(t), filepath.Join(s.Files, "data")
	cut := n
	cut.Port = proxy(t, net.JoinHostPort(n.Host, n.Port), 3, 4<<20)
	cut.Options = append(cut.Options, "HostKeyAlias="+fmt.Sprintf("[%s]:%s", n.Host, n.Port))
	r := request(t, cut.opener(carried.Program), from, to, "one")
	sent, err := Send(t.Context(), r)
	if err != nil || sent.Retries == 0 || sent.Carried > 60<<20 {
		t.Fatalf("over a connection that is cut: %+v, %v", sent, err)
	}
	sameTree(t, from, to)
	r.Begin.Session, r.Begin.Force = "two", true
	sent, err = Send(t.Context(), r)
	if err != nil || sent.Changed != 0 || sent.Carried > 1<<20 {
		t.Errorf("what has arrived is sent again: %+v, %v", sent, err)
	}
	if target.Incomplete(to) {
		t.Error("it says that it is incomplete")
	}
}

// What ssh says reaches the user, with what to do about it.
func TestSSHRefuses(t *testing.T) {
	n, _ := newNode(t)
	other, _ := newNode(t)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	_, port, _ := net.SplitHostPort(nobody.Addr().String())
	nobody.Close()
	with := func(change func(*Node)) Node {
		c := n
		c.Options = append([]string{}, n.Options...)
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		node Node
		says string
		hint string
	}{
		"wrong host key": {with(func(c *Node) {
			c.Port = other.Port
			c.Options = append(c.Options, "HostKeyAlias="+fmt.Sprintf("[%s]:%s", n.Host, n.Port))
		}), "Host key verification failed", "known_hosts"},
		"nobody there": {with(func(c *Node) { c.Port = port }), "Connection refused", "ssh 127.0.0.1 works"},
		"wrong key":    {with(func(c *Node) { c.Options[0] = "IdentityFile=/dev/null" }), "Permission denied", "key or an agent"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.node.Carry(t.Context(), os.Args[0])
			if respaldo.KindOf(err) != respaldo.Unreachable || !strings.Contains(err.Error(), c.says) || !strings.Contains(strings.Join(respaldo.HintsOf(err), " "), c.hint) {
				t.Errorf("%v, hints %q", err, respaldo.HintsOf(err))
			}
			if _, err := c.node.opener("/bin/true").Dial(t.Context(), "test", nil); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("a receiver: %v", err)
			}
		})
	}
	if _, err := n.opener("/no/such/program").Dial(t.Context(), "test", nil); respaldo.KindOf(err) != respaldo.Failed || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("no program there: %v", err)
	}
}

// An interrupted sender ends its receivers.
func TestReceiversEndWithTheSender(t *testing.T) {
	n, s := newNode(t)
	carried, err := n.Carry(t.Context(), os.Args[0])
	must(t, err)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	r := request(t, n.opener(carried.Program), newTree(t), filepath.Join(s.Files, "data"), "one")
	r.Limit = Limit(4 << 20)
	r.Progress = func(p respaldo.Progress) {
		if p.Done > 0 {
			cancel(interrupted)
		}
	}
	if _, err := Send(ctx, r); !errors.Is(err, interrupted) {
		t.Errorf("the interrupted sender: %v", err)
	}
	end, tick := time.After(30*time.Second), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for left := receivers(carried.Program); len(left) > 0; left = receivers(carried.Program) {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("receivers are left: %v", left)
		}
	}
}

func receivers(program string) (found []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		if text, _ := os.ReadFile(file); strings.HasPrefix(string(text), program+"\x00") {
			found = append(found, file)
		}
	}
	return found
}

func TestParseNode(t *testing.T) {
	n, dir, err := ParseNode("ssh://root@db2.example.com:2222/var/lib/mysql/")
	if err != nil || n.User != "root" || n.Host != "db2.example.com" || n.Port != "2222" || dir != "/var/lib/mysql" {
		t.Errorf("%+v %s %v", n, dir, err)
	}
	for _, bad := range []string{"db2:/srv", "ssh://db2", "ssh://db2/", "ssh://-oProxyCommand=x/srv", "ssh://a:secret@db2/srv", "sftp://db2/srv", "ssh:///srv", "ssh://db2/srv?x=1"} {
		if _, _, err := ParseNode(bad); respaldo.KindOf(err) != respaldo.Usage {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
