package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// serviceProgram is the name under which a test's own binary stops and starts a server.
const serviceProgram = "lab-service"

// NewService gives commands that stop and start a server as a service manager would: the
// server that the second one starts is nobody's child, and outlives whoever called it. At
// the end of the test it is killed.
func NewService(t T, s *Server) (stop, start []string) {
	t.Helper()
	spec := s.Spec()
	base := strings.TrimSuffix(spec.Socket, ".sock")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(base), serviceProgram)
	if err := os.Symlink(self, program); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	text, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(base+".json", text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pid := servicePID(spec); pid > 0 {
			syscall.Kill(pid, syscall.SIGKILL)
			Eventually(t, 10*time.Second, func() error {
				if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
					return fmt.Errorf("server %d does not end", pid)
				}
				return nil
			})
		}
	})
	return []string{program, "stop", base + ".json"}, []string{program, "start", base + ".json"}
}

// servicePID is that of the server which runs with a spec, 0 if none does.
func servicePID(spec servers.Spec) int {
	text, err := os.ReadFile(spec.Socket + ".pid")
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if line := commandLine(strconv.Itoa(pid)); strings.Contains(line, "mysqld") || strings.Contains(line, "mariadbd") {
		return pid
	}
	return 0
}

// Under its name this binary is the service's commands.
func init() {
	if filepath.Base(os.Args[0]) != serviceProgram || len(os.Args) != 3 {
		return
	}
	if err := service(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func service(verb, file string) error {
	var spec servers.Spec
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err != nil {
		return err
	}
	switch verb {
	case "stop":
		if pid := servicePID(spec); pid > 0 {
			return syscall.Kill(pid, syscall.SIGTERM)
		}
		return nil
	case "start":
		return startService(spec, file)
	}
	runtime.LockOSThread() // the server dies with the thread that started it
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	running, err := servers.Start(ctx, spec)
	if err != nil {
		fmt.Println(strings.ReplaceAll(err.Error(), "\n", "; "))
		return err
	}
	fmt.Println("up")
	<-running.Exited()
	return nil
}

// startService returns when the server is up. Whoever runs it is a process of its own.
func startService(spec servers.Spec, file string) error {
	if servicePID(spec) > 0 {
		return nil
	}
	cmd := exec.Command("/proc/self/exe", "run", file)
	cmd.Args[0] = serviceProgram
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if strings.TrimSpace(line) != "up" {
		return errors.Join(errors.New(strings.TrimSpace(line)), ignoreEOF(err))
	}
	return nil
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
