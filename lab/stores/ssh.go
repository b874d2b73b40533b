package stores

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// sshRelease is the Debian release whose OpenSSH server is used.
const sshRelease = "bookworm"

// SSHServer is OpenSSH's sshd on loopback.
type SSHServer struct {
	Host, Port string
	User       string // the only one it lets in
	Files      string // a folder in which that user may write
	Key        string // private key file of the client
	KnownHosts string

	listener net.Listener
	running  sync.WaitGroup
	mu       sync.Mutex
	sessions map[*exec.Cmd]bool
}

// lesser is whom root has sshd run as: as root it needs a user "sshd", which only an
// installed one has. Not nobody, whose account systemd's name service calls locked.
const lesser = "daemon"

// StartSSH starts an SSH server for SFTP only, that keeps its keys and files below dir.
func StartSSH(ctx context.Context, dir string) (*SSHServer, error) {
	return startSSH(ctx, dir, "Subsystem sftp internal-sftp\nForceCommand internal-sftp\n", false)
}

// StartShell starts one that runs commands; their cache folder is Files/cache. Who is root gets
// a user with a shell, in a mount namespace in which /etc/passwd says so.
func StartShell(ctx context.Context, dir string) (*SSHServer, error) {
	return startSSH(ctx, dir, "SetEnv XDG_CACHE_HOME="+filepath.Join(dir, "files", "cache")+"\n", true)
}

func startSSH(ctx context.Context, dir, settings string, commands bool) (*SSHServer, error) {
	root, err := openssh(ctx)
	if err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	s := &SSHServer{Host: "127.0.0.1", User: me.Username, Files: filepath.Join(dir, "files"), Key: filepath.Join(dir, "client"),
		KnownHosts: filepath.Join(dir, "known_hosts"), sessions: map[*exec.Cmd]bool{}}
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	server := filepath.Join(dir, "server")
	if err := errors.Join(os.Mkdir(s.Files, 0o755), os.Mkdir(server, 0o755)); err != nil {
		return nil, err
	}
	if me.Uid == "0" {
		account, err := user.Lookup(lesser)
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		s.User, attr.Credential = lesser, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		// It may not read the cache folder of root, so it gets a copy.
		if err := os.CopyFS(filepath.Join(server, "root"), os.DirFS(root)); err != nil {
			return nil, err
		}
		root = filepath.Join(server, "root")
		for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				return nil, err
			}
		}
		defer func() {
			for _, d := range []string{s.Files, server, filepath.Join(server, "host_key"), filepath.Join(server, "authorized_keys")} {
				os.Chown(d, uid, gid)
			}
		}()
	}
	argv := []string{}
	if commands && me.Uid == "0" {
		if argv, err = s.shell(server, attr); err != nil {
			return nil, err
		}
	}
	if s.listener, err = net.Listen("tcp", net.JoinHostPort(s.Host, "0")); err != nil {
		return nil, err
	}
	_, s.Port, _ = net.SplitHostPort(s.listener.Addr().String())
	if err := s.keys(server); err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	config := filepath.Join(server, "sshd_config")
	text := fmt.Sprintf("HostKey %[1]s/host_key\nAuthorizedKeysFile %[1]s/authorized_keys\nStrictModes no\nUsePAM no\n"+
		"PasswordAuthentication no\nPidFile none\nLogLevel ERROR\n%[2]s", server, settings)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	libs := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	argv = append(argv, filepath.Join(libs, "ld-linux-x86-64.so.2"), "--library-path", libs, filepath.Join(root, "usr/sbin/sshd"), "-i", "-e", "-f", config)
	s.running.Add(1)
	go s.serve(argv, attr)
	return s, nil
}

// shell gives the lesser user a shell. It returns what starts sshd as that user
// where this is seen.
func (s *SSHServer) shell(server string, attr *syscall.SysProcAttr) ([]string, error) {
	uid, gid := attr.Credential.Uid, attr.Credential.Gid
	attr.Credential = nil
	passwd := filepath.Join(server, "passwd")
	line := fmt.Sprintf("root:x:0:0::/root:/bin/sh\n%s:x:%d:%d::%s:/bin/sh\n", lesser, uid, gid, s.Files)
	if err := os.WriteFile(passwd, []byte(line), 0o644); err != nil {
		return nil, err
	}
	return []string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/passwd && u=$1 g=$2 && shift 2 && exec setpriv --reuid "$u" --regid "$g" --clear-groups -- "$@"`,
		passwd, strconv.Itoa(int(uid)), strconv.Itoa(int(gid))}, nil
}

// URL is that of a repository in a folder of the server.
func (s *SSHServer) URL(folder string) string {
	return fmt.Sprintf("sftp://%s@%s:%s%s?key=%s&known_hosts=%s", s.User, s.Host, s.Port, filepath.Join(s.Files, folder), s.Key, s.KnownHosts)
}

// Stop ends the server and the sessions that are open. It may be called twice.
func (s *SSHServer) Stop() error {
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	for cmd := range s.sessions {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	s.mu.Unlock()
	s.running.Wait()
	return err
}

// serve starts one sshd for each connection, as inetd would: the port is ours from the
// start, and nobody else can take it.
func (s *SSHServer) serve(argv []string, attr *syscall.SysProcAttr) {
	defer s.running.Done()
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		socket, err := conn.(*net.TCPConn).File()
		conn.Close()
		if err != nil {
			continue
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Dir = socket, socket, os.Stderr, attr, "/"
		err = cmd.Start()
		socket.Close()
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab: sshd:", err)
			continue
		}
		s.mu.Lock()
		s.sessions[cmd] = true
		s.mu.Unlock()
		s.running.Go(func() {
			cmd.Wait()
			s.mu.Lock()
			delete(s.sessions, cmd)
			s.mu.Unlock()
		})
	}
}

func (s *SSHServer) keys(server string) error {
	host, err := newKey(filepath.Join(server, "host_key"))
	if err != nil {
		return err
	}
	client, err := newKey(s.Key)
	if err != nil {
		return err
	}
	known := fmt.Sprintf("[%s]:%s %s", s.Host, s.Port, ssh.MarshalAuthorizedKey(host))
	return errors.Join(
		os.WriteFile(s.KnownHosts, []byte(known), 0o644),
		os.WriteFile(filepath.Join(server, "authorized_keys"), ssh.MarshalAuthorizedKey(client), 0o644))
}

func newKey(path string) (ssh.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return ssh.NewPublicKey(public)
}

// openssh returns a folder with sshd and the libraries that it needs, and nothing else.
func openssh(ctx context.Context) (string, error) {
	dir := filepath.Join(servers.Cache(), "openssh")
	exists := func() bool { _, err := os.Stat(filepath.Join(dir, "usr/sbin/sshd")); return err == nil }
	if exists() {
		return dir, nil
	}
	unlock, err := debian.Lock(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists() {
		return dir, nil
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	debs, err := debian.Fetch(ctx, debian.Request{
		State:   filepath.Join(servers.Cache(), "apt"),
		Suites:  []string{sshRelease, sshRelease + "-updates", sshRelease + "-security"},
		Install: []string{"openssh-server"},
		Dest:    filepath.Join(tmp, "debs"),
	})
	if err != nil {
		return "", err
	}
	all := filepath.Join(tmp, "all")
	if err := debian.Skeleton(all); err != nil {
		return "", err
	}
	for _, deb := range debs {
		if err := debian.Unpack(ctx, deb, all); err != nil {
			return "", err
		}
		if name, version := debian.Version(deb); name == "openssh-server" {
			fmt.Fprintf(os.Stderr, "lab: the SSH server is openssh-server %s\n", version)
		}
	}
	if err := pick(ctx, all, filepath.Join(tmp, "root")); err != nil {
		return "", err
	}
	return dir, os.Rename(filepath.Join(tmp, "root"), dir)
}

// pick copies sshd, its loader and the libraries that the loader says it needs.
func pick(ctx context.Context, from, to string) error {
	libs := filepath.Join(from, "usr/lib/x86_64-linux-gnu")
	loader, sshd := filepath.Join(libs, "ld-linux-x86-64.so.2"), filepath.Join(from, "usr/sbin/sshd")
	list, err := exec.CommandContext(ctx, loader, "--library-path", libs, "--list", sshd).Output()
	if err != nil {
		return fmt.Errorf("the libraries of sshd: %w", err)
	}
	files := []string{loader, sshd}
	for _, word := range strings.Fields(string(list)) {
		if strings.HasPrefix(word, libs) {
			files = append(files, word)
		}
	}
	// Asked for by name at run time: how to look up users.
	more, _ := filepath.Glob(filepath.Join(libs, "libnss_files*"))
	for _, f := range append(files, more...) {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(f, from))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, data, 0o755); err != nil {
			return err
		}
	}
	return nil
}
