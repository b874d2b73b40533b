package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Node is another machine, reached by OpenSSH's own program as the user has configured it.
type Node struct {
	Host, Port, User string
	Options          []string // given to ssh as -o, before ours
	Sudo             bool     // run the receiver as root there, by sudo
	Run              run.Runner
}

// ParseNode reads ssh://[user@]host[:port]/DIR. Host may be an alias of the user's
// ssh_config.
func ParseNode(text string) (n Node, dir string, err error) {
	u, err := url.Parse(text)
	if err == nil {
		_, password := u.User.Password()
		switch {
		case u.Scheme != "ssh" || u.Hostname() == "":
			err = errors.New("it has the form ssh://[user@]host[:port]/DIR")
		case strings.HasPrefix(u.Hostname(), "-") || strings.HasPrefix(u.User.Username(), "-"):
			err = errors.New("a name cannot begin with -")
		case password:
			err = errors.New("a password does not belong there: let ssh log in with a key")
		case u.RawQuery != "" || u.Fragment != "":
			err = errors.New("what follows the directory is not understood")
		case path.Clean(u.Path) == "/" || u.Path == "":
			err = errors.New("the directory is missing")
		}
	}
	if err != nil {
		return n, "", &respaldo.Error{Kind: respaldo.Usage, What: "cannot use " + text + " as the place on another node", Err: err,
			Hint: "for example ssh://root@db2.example.com/var/lib/mysql"}
	}
	return Node{Host: u.Hostname(), Port: u.Port(), User: u.User.Username()}, path.Clean(u.Path), nil
}

// String is the node's name for people.
func (n Node) String() string { return n.Host }

// argv is a call of ssh. Nobody is asked for anything; no connection is shared, as each is
// to carry its own part; one that hangs is noticed.
func (n Node) argv(more []string, command string) []string {
	argv := []string{"ssh", "-T", "-S", "none"}
	for _, o := range append(append([]string{}, n.Options...), more...) {
		argv = append(argv, "-o", o)
	}
	argv = append(argv, "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes", "-o", "ConnectTimeout=20",
		"-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
	if n.Port != "" {
		argv = append(argv, "-p", n.Port)
	}
	if n.User != "" {
		argv = append(argv, "-l", n.User)
	}
	return append(argv, "--", n.Host, command)
}

// Output runs a shell script there and returns what it prints.
func (n Node) Output(ctx context.Context, script string, stdin io.Reader, options ...string) (string, error) {
	r, err := n.Run.Run(ctx, run.Cmd{Argv: n.argv(options, "exec sh -c "+run.Quote(script)), Stdin: stdin, Quiet: true,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}})
	return string(r.Stdout), n.explain(err)
}

// Open starts the receiver there, by its program's path, and connects to it.
func (n Node) Open(ctx context.Context, program string) (Conn, error) {
	command := run.Quote(program) + " receive"
	if n.Sudo {
		command = "sudo -n -- " + command
	}
	fromUs, toThem, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	toUs, fromThem, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, fromUs.Close(), toThem.Close())
	}
	theirs := sync.OnceFunc(func() { fromUs.Close(); fromThem.Close() })
	ctx, cancel := context.WithCancel(ctx)
	c := &sshConn{node: n, in: toUs, out: toThem, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		_, c.err = n.Run.Run(ctx, run.Cmd{Argv: n.argv(nil, "exec "+command), Stdin: fromUs, Stdout: fromThem, Quiet: true,
			Started:     func(int) { theirs() },
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}) // Ctrl-C is for us, who end it in order
		theirs()
	}()
	return c, nil
}

// sshConn is a running ssh.
type sshConn struct {
	node    Node
	in, out *os.File
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error // read after ended
}

func (c *sshConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *sshConn) Write(b []byte) (int, error) { return c.out.Write(b) }

// farewell is how long an ssh may take to end by itself once it has no input.
const farewell = 3 * time.Second

// Close ends ssh. What it said on its way out, if it did not end in order, is the error.
func (c *sshConn) Close() error {
	c.out.Close()
	select {
	case <-c.ended:
	case <-time.After(farewell):
		c.in.Close()
		c.cancel()
		<-c.ended
		return nil
	}
	c.cancel()
	c.in.Close()
	return c.node.explain(c.err)
}

// explain says what to do about a failure of ssh's own, in its own words.
func (n Node) explain(err error) error {
	var exit *run.ExitError
	if err == nil {
		return nil
	}
	if run.NotInstalled(err) {
		return &respaldo.Error{Kind: respaldo.Refused, What: "there is no ssh program here", Hint: "install OpenSSH's client (openssh-client)", Err: err}
	}
	if !errors.As(err, &exit) {
		return err
	}
	said := strings.TrimSpace(exit.Stderr)
	e := &respaldo.Error{Kind: respaldo.Unreachable, What: "cannot reach " + n.Host + " by ssh", Err: errors.New(said)}
	if said == "" {
		e.Err = fmt.Errorf("ssh ended with exit code %d", exit.Exit)
	}
	has := func(words string) bool { return strings.Contains(said, words) }
	switch {
	case exit.Exit != 255:
		e.Kind, e.What = respaldo.Failed, "a command on "+n.Host+" failed"
		switch {
		case has("sudo:"):
			e.Hint = "allow it in sudoers without a password, or log in as root"
		case exit.Exit == 126 || has("ermission denied"):
			e.Hint = "may programs be started from the cache folder there? Else install respaldo on the node and name it with --remote-program"
		}
	case has("Host key verification failed"), has("REMOTE HOST IDENTIFICATION HAS CHANGED"):
		e.Hint = "the node did not show the host key that known_hosts has. If it is new, log in once by hand with ssh and compare its fingerprint; if it was changed on purpose, ssh-keygen -R removes the old one"
	case has("Permission denied"):
		e.Hint = "nobody can be asked for a password here: see that ssh " + n.Host + " logs in by itself, with a key or an agent"
	case has("Connection refused"), has("timed out"), has("Could not resolve"), has("No route"):
		e.Hint = "see that ssh " + n.Host + " works from this machine"
	}
	return e
}

// machine is what uname -m calls what this program was built for.
var machine = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]

// Carried is where this program is on the other node.
type Carried struct {
	Program string
	Bytes   int64 // that were sent; 0 where it was there
}

// Carry finds this very program on the other node, installed or from an earlier time, or
// brings it there: to respaldo below the user's cache folder. One that nobody has used for
// two weeks goes: until then, another node may be sending to it.
func (n Node) Carry(ctx context.Context, self string) (Carried, error) {
	f, err := os.Open(self)
	if err != nil {
		return Carried{}, err
	}
	defer f.Close()
	digest := sha256.New()
	size, err := io.Copy(digest, f)
	if err != nil {
		return Carried{}, err
	}
	sum := hex.EncodeToString(digest.Sum(nil))
	const folder = `d="${XDG_CACHE_HOME:-$HOME/.cache}/respaldo"; `
	said, err := n.Output(ctx, folder+`uname -sm; for p in "$d/respaldo-`+sum[:16]+`" "$(command -v respaldo)"; do [ -x "$p" ] && sha256sum "$p"; done; touch -c "$d/respaldo-`+sum[:16]+`" 2>/dev/null; true`, nil)
	if err != nil {
		return Carried{}, err
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	for _, line := range lines {
		if found, ok := strings.CutPrefix(line, sum+"  "); ok {
			return Carried{Program: found}, nil
		}
	}
	if fits := "Linux " + machine; lines[0] != fits {
		return Carried{}, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is %s, and this program is for %s", n.Host, lines[0], fits),
			Hint: "install the same version of respaldo there, and name it with --remote-program"}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Carried{}, err
	}
	// Written under another name, compared, and only then what it is to be called.
	said, err = n.Output(ctx, folder+`umask 077; mkdir -p "$d" && t="$d/new-$$" && { cat >"$t" && s=$(sha256sum "$t") && [ "${s%% *}" = `+sum+
		` ] && chmod 700 "$t" && find "$d" '(' -name 'respaldo-*' -o -name 'new-*' ')' -type f -mtime +14 -exec rm -f {} + && mv "$t" "$d/respaldo-`+sum[:16]+`" && echo "$d/respaldo-`+sum[:16]+`" || { rm -f "$t"; exit 1; }; }`, f, "Compression=yes")
	if err != nil {
		return Carried{}, err
	}
	return Carried{Program: strings.TrimSpace(said), Bytes: size}, nil
}
