// Package stores has the real things that a repository may lie on or be read by, for tests:
// an SSH server, an S3 server, and the stock kopia program. All are fetched or built into
// the cache folder when it lacks them; nothing is installed, and no root is needed.
package stores

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// gateway is the S3 server: it serves a folder, each file an object.
const gateway = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// Kopia returns the path of the stock kopia program, of the version that this module uses.
// Building it the first time takes a minute or two. It must be called below the module.
func Kopia(ctx context.Context) (string, error) {
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", "github.com/kopia/kopia").Output()
	if err != nil {
		return "", fmt.Errorf("which kopia this module uses: %w", err)
	}
	return program(ctx, "kopia-"+strings.TrimSpace(string(version)), "build", "-o", ".", "github.com/kopia/kopia")
}

// program returns a program in the cache, built there by go with args when it is missing.
// The last word of name before a dash is what go calls it.
func program(ctx context.Context, name string, args ...string) (string, error) {
	bin := filepath.Join(servers.Cache(), "bin")
	path := filepath.Join(bin, name)
	exists := func() bool { _, err := os.Stat(path); return err == nil }
	if exists() {
		return path, nil
	}
	unlock, err := debian.Lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists() {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "lab: building %s\n", name)
	tmp := path + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o755)); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for i, arg := range args {
		if arg == "." {
			args[i] = tmp
		}
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	base, _, _ := strings.Cut(name, "-")
	if info, err := os.Stat(filepath.Join(tmp, base)); err == nil && info.IsDir() {
		base = filepath.Join(base, base)
	}
	return path, os.Rename(filepath.Join(tmp, base), path)
}

// What an S3 server of StartS3 lets in.
const (
	S3AccessKey = "respaldo"
	S3SecretKey = "no secret at all"
)

// S3Server is a running S3 server with one empty bucket.
type S3Server struct {
	Endpoint string // http://127.0.0.1:PORT
	Bucket   string
	cmd      *exec.Cmd
	ended    chan struct{}
	log      *bytes.Buffer
}

// StartS3 starts a server on loopback that keeps its objects below dir, and returns when
// it accepts connections. ctx bounds the start only.
func StartS3(ctx context.Context, dir string) (*S3Server, error) {
	version := gateway[strings.LastIndex(gateway, "@")+1:]
	path, err := program(ctx, "versitygw-"+version, "install", gateway)
	if err != nil {
		return nil, err
	}
	s := &S3Server{Bucket: "backups"}
	for _, d := range []string{filepath.Join("objects", s.Bucket), "metadata"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for range 3 { // somebody else may take the port first
		if err = s.start(ctx, path, dir); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func (s *S3Server) start(ctx context.Context, path, dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := l.Addr().String()
	l.Close()
	s.Endpoint, s.log, s.ended = "http://"+address, &bytes.Buffer{}, make(chan struct{})
	// Beside the objects and not in extended attributes: not every file system has them.
	s.cmd = exec.Command(path, "--port", address, "--quiet", "posix", "--sidecar", filepath.Join(dir, "metadata"), filepath.Join(dir, "objects"))
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+S3AccessKey, "ROOT_SECRET_KEY="+S3SecretKey)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		s.cmd.Wait()
		close(s.ended)
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("tcp", address); err == nil {
			return c.Close()
		}
		select {
		case <-s.ended:
			return fmt.Errorf("the S3 server ended: %s", s.log)
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), s.Stop())
		case <-tick.C:
		}
	}
}

// Stop ends the server.
func (s *S3Server) Stop() error {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(5 * time.Second):
		s.cmd.Process.Kill()
		<-s.ended
	}
	return nil
}
