package lab

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/respaldo-backup/respaldo/lab/job"
)

// Link is one end of a network cable between two guests.
type Link struct {
	Address string // "10.9.0.1/24", of the guest's interface vec0
	mac     string
	end     *os.File
}

// NewLink makes a cable: both ends, for one guest each. It needs no privileges.
func NewLink(address1, address2 string) (*Link, *Link, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	link := func(i int, address string) *Link {
		for _, option := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
			unix.SetsockoptInt(fds[i], unix.SOL_SOCKET, option, 4<<20)
		}
		return &Link{Address: address, mac: fmt.Sprintf("02:00:00:00:00:%02d", i+1), end: os.NewFile(uintptr(fds[i]), "link")}
	}
	return link(0, address1), link(1, address2), nil
}

// wires are what a guest is connected to beside its output: its standard input is
// descriptor 3 in the keeper, the others follow.
type wires struct {
	files []*os.File
	args  []string
	after []io.Closer
}

func (w *wires) close() {
	for _, c := range w.after {
		c.Close()
	}
}

func (w *wires) add(f *os.File) int {
	w.files = append(w.files, f)
	w.after = append(w.after, f)
	return 2 + len(w.files)
}

func (g *Guest) wire(j *job.Job) (*wires, error) {
	w := &wires{}
	if !g.spec.Terminal {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		w.add(null)
		w.args = append(w.args, "con0=null,fd:1")
	} else if err := g.terminal(w, j); err != nil {
		w.close()
		return nil, err
	}
	if l := g.spec.Link; l != nil {
		j.Address = l.Address
		fd := w.add(l.end)
		w.args = append(w.args, fmt.Sprintf("vec0:transport=fd,fd=%d,mac=%s", fd, l.mac))
	}
	return w, nil
}

// terminal hands keystrokes raw to the guest, whose own terminal interprets them, and
// tells it every change of the window's size over its second console.
func (g *Guest) terminal(w *wires, j *job.Job) error {
	stdin := int(os.Stdin.Fd())
	keys, typed, err := os.Pipe()
	if err != nil {
		return err
	}
	w.add(keys)
	sizes, changed, err := os.Pipe()
	if err != nil {
		return err
	}
	w.args = append(w.args, "con0=fd:0,fd:1", fmt.Sprintf("con1=fd:%d,null", w.add(sizes)))
	j.Terminal, j.Term = true, os.Getenv("TERM")
	if cols, rows, err := term.GetSize(stdin); err == nil {
		j.Rows, j.Cols = uint16(rows), uint16(cols)
	}
	if term.IsTerminal(stdin) {
		before, err := term.MakeRaw(stdin)
		if err != nil {
			return err
		}
		g.restore = func() { term.Restore(stdin, before) }
	}
	go func() {
		io.Copy(typed, os.Stdin)
		typed.Close()
	}()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	go func() {
		defer changed.Close()
		for {
			select {
			case <-resized:
				if cols, rows, err := term.GetSize(stdin); err == nil {
					fmt.Fprintf(changed, "%d %d\n", rows, cols)
				}
			case <-g.done:
				signal.Stop(resized)
				return
			}
		}
	}()
	return nil
}
