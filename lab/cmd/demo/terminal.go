package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminal is where commands run: a pseudo-terminal of the size of the person's own, so
// that they print what they would print for a person.
type terminal struct {
	out     io.Writer
	columns int
	colour  bool
}

func newTerminal() *terminal {
	columns, err := strconv.Atoi(os.Getenv("COLUMNS"))
	if err != nil || columns < 1 {
		columns = 100
	}
	return &terminal{out: os.Stdout, columns: columns, colour: os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
)

func (c *terminal) paint(colour, text string) string {
	if !c.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// run shows a command and, as it comes, what it prints. It returns that, without colours.
func (c *terminal) run(argv ...string) (string, error) {
	words := make([]string, len(argv))
	for i, word := range argv {
		words[i] = quote(word)
	}
	fmt.Fprintln(c.out, c.paint(bold, "$ "+strings.Join(words, " ")))
	ours, theirs, err := pty(c.columns)
	if err != nil {
		return "", err
	}
	defer ours.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return "", err
	}
	var text strings.Builder
	s := screen{show: func(line string) {
		line = strings.TrimRight(line, " ")
		fmt.Fprintln(c.out, line)
		text.WriteString(colours.ReplaceAllString(line, "") + "\n")
	}}
	io.Copy(&s, ours) // ends with EIO when the last writer is gone
	s.end()
	fmt.Fprintln(c.out)
	if err := cmd.Wait(); err != nil {
		return text.String(), fmt.Errorf("%s: %w", strings.Join(words, " "), err)
	}
	return text.String(), nil
}

var (
	plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=,+-]+$`)
	colours   = regexp.MustCompile(`\x1b\[[0-9;]*m`)
)

// quote writes a word as one would type it.
func quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", "$", `\$`).Replace(word) + `"`
}

// wrap breaks a text between words into lines of at most so many columns.
func wrap(text string, columns int) []string {
	var lines []string
	for _, word := range strings.Fields(text) {
		last := len(lines) - 1
		if last < 0 || utf8.RuneCountInString(lines[last]+" "+word) > columns {
			lines = append(lines, word)
		} else {
			lines[last] += " " + word
		}
	}
	return lines
}

// pty returns both ends of a pseudo-terminal that leaves line ends alone.
func pty(columns int) (ours, theirs *os.File, err error) {
	if ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(ours.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		theirs, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		err = setUp(int(theirs.Fd()), columns)
	}
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

func setUp(fd, columns int) error {
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	modes.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, modes); err != nil {
		return err
	}
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: uint16(columns)})
}

// screen turns what is drawn on a terminal into the lines that stay. It knows as much of
// terminals as progress bars need, and takes a line that begins with a blank for one: that
// is held back until nobody can draw over it any more.
type screen struct {
	show    func(line string)
	lines   []string // not shown yet
	row     int      // the cursor's, among them
	atStart bool     // the cursor stands at the beginning of a line that is not empty
	escape  string   // as far as it has come
}

func (s *screen) Write(p []byte) (int, error) {
	for _, b := range p {
		s.put(b)
	}
	return len(p), nil
}

func (s *screen) put(b byte) {
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, "")
	}
	switch {
	case s.escape != "":
		s.escape += string(b)
		if len(s.escape) > 2 && b >= '@' && b <= '~' || len(s.escape) == 2 && b != '[' {
			s.control(s.escape)
			s.escape = ""
		}
	case b == '\x1b':
		s.escape = "\x1b"
	case b == '\r':
		s.atStart = true
	case b == '\n':
		s.row, s.atStart = s.row+1, false
		for s.row > 0 && !strings.HasPrefix(s.lines[0], " ") {
			s.show(s.lines[0])
			s.lines, s.row = s.lines[1:], s.row-1
		}
	default:
		s.draw(string([]byte{b}))
	}
}

func (s *screen) draw(text string) {
	if s.atStart {
		s.lines[s.row], s.atStart = "", false
	}
	s.lines[s.row] += text
}

func (s *screen) control(sequence string) {
	n, err := strconv.Atoi(strings.Trim(sequence, "\x1b[ABCDEFGHJKm"))
	if err != nil {
		n = 1
	}
	switch sequence[len(sequence)-1] {
	case 'm':
		s.draw(sequence)
	case 'A':
		s.row, s.atStart = max(0, s.row-n), true
	case 'J':
		s.lines, s.atStart = s.lines[:s.row], false
	case 'K':
		s.lines[s.row] = ""
	}
}

func (s *screen) end() {
	for i, line := range s.lines {
		if line != "" || i < s.row {
			s.show(line)
		}
	}
	s.lines, s.row = nil, 0
}
