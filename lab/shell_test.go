//go:build lab

package lab_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

// TestShell is a person at make lab: the window is resized, a program interrupted, the
// server asked, and respaldo is there and configured.
func TestShell(t *testing.T) {
	t.Parallel()
	program := t.TempDir() + "/lab"
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/lab").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	terminal, user := guest.Terminal(t)
	cmd := exec.Command(program, "shell")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = user, user, user
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	before, err := unix.IoctlGetTermios(int(user.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	screen := newScreen(terminal)
	ask := func(typed, answer string) {
		t.Helper()
		if _, err := terminal.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		if !screen.shows(answer, time.Minute) {
			t.Fatalf("after typing %q the screen does not show %q:\n%s", typed, answer, screen.text())
		}
	}
	if !screen.shows(":~# ", 3*time.Minute) {
		t.Fatalf("no prompt:\n%s", screen.text())
	}
	ask("stty size\n", "30 100\r\n")
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 41, Col: 123}); err != nil {
		t.Fatal(err)
	}
	ask("until stty size | grep '41 12[3]'; do sleep .2; done; echo do''ne\n", "done\r\n")
	// A shell that has not yet put its program into the foreground would get the interrupt itself.
	ask("sh -c 'echo \"run\"ning; exec sleep 1000'\n", "running\r\n")
	ask("\x03", ":~# ")
	ask("mysql -e 'SELECT COUNT(*) AS shop_orders FROM shop.orders'\n", "| shop_orders |")
	ask("respaldo check; echo che''cked\n", "checked\r\n")
	ask("respaldo version; ls /etc/respaldo\n", "respaldo.toml")
	if _, err := terminal.WriteString("exit\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, screen.text())
	}
	after, err := unix.IoctlGetTermios(int(user.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *before != *after {
		t.Errorf("the terminal is not as it was before: %+v, %+v", *before, *after)
	}
}

// screen collects what a terminal shows.
type screen struct {
	shown  []byte
	seen   int // where the last answer ended
	output chan []byte
}

func newScreen(terminal *os.File) *screen {
	s := &screen{output: make(chan []byte, 1000)}
	go func() {
		defer close(s.output)
		for {
			buf := make([]byte, 4096)
			n, err := terminal.Read(buf)
			if err != nil {
				return
			}
			s.output <- buf[:n]
		}
	}()
	return s
}

// shows waits until the text appears after what was found last.
func (s *screen) shows(text string, limit time.Duration) bool {
	end := time.After(limit)
	for {
		if i := bytes.Index(s.shown[s.seen:], []byte(text)); i >= 0 {
			s.seen += i + len(text)
			return true
		}
		select {
		case more, ok := <-s.output:
			if !ok {
				return false
			}
			s.shown = append(s.shown, more...)
		case <-end:
			return false
		}
	}
}

func (s *screen) text() string { return strings.ReplaceAll(string(s.shown), "\r", "") }
