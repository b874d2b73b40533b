package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

// Format is the number of the ledger file that this program writes; a higher one is
// refused.
const Format = 1

// header is the first line of the file.
type header struct {
	Format int    `json:"format"`
	Server string `json:"server"`
}

// record is any later line: exactly one of Intent, Note and Released is set.
type record struct {
	Intent   *Entry            `json:"intent,omitempty"`
	Note     string            `json:"note,omitempty"` // an entry's ID, whose Attrs grow
	Attrs    map[string]string `json:"attrs,omitempty"`
	Released string            `json:"released,omitempty"` // an entry's ID
}

// journal is a file of JSON lines that only grows while it is open. Each line is on the
// disk before the next one is written, so that at most the last one can be torn by a power
// cut.
type journal struct {
	file    *os.File
	size    int64
	waiting bool // the last line may not be on the disk yet
	broken  error
}

type journalContent struct {
	held   []Entry
	tidy   bool // nothing but the header and held entries: no need to rewrite it
	exists bool
}

// openJournal opens the file for appending, made or compacted first if need be, and
// returns the entries that were never released.
func openJournal(path, server string) (*journal, []Entry, error) {
	content, err := readJournal(path, server)
	if err != nil {
		return nil, nil, err
	}
	if !content.exists || !content.tidy {
		if err := writeJournal(path, server, content.held); err != nil {
			return nil, nil, err
		}
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return &journal{file: file, size: info.Size()}, content.held, nil
}

// append returns when the line is on the disk, and with it all before.
func (j *journal) append(r record) error {
	if j.waiting && j.broken == nil { // or a power cut might keep this line and tear that one
		if err := j.file.Sync(); err != nil {
			j.broken = err
			return err
		}
		j.waiting = false
	}
	if err := j.write(r); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		// After a failed fsync the kernel may have dropped the page and report success
		// the next time: nothing written here can be trusted any more.
		j.broken = err
		return err
	}
	return nil
}

// appendLazily does not wait for the disk: the line outlives us (kill -9 included), but
// not a power cut, until append has written the next one. Two such lines would get to the
// disk in any order, so the second waits for both.
func (j *journal) appendLazily(r record) error {
	if j.waiting {
		return j.append(r)
	}
	err := j.write(r)
	j.waiting = err == nil
	return err
}

// write hands the line to the kernel.
func (j *journal) write(r record) error {
	if j.broken != nil {
		return j.broken
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := j.file.Write(line); err != nil {
		// Half a line would swallow the next one.
		if truncErr := j.file.Truncate(j.size); truncErr != nil {
			j.broken = err
		}
		return err
	}
	j.size += int64(len(line))
	return nil
}

func (j *journal) close() error { return j.file.Close() }

// readJournal replays the file. What a power cut can leave at its end, half a line or a
// run of zeros, is dropped: an intent that was not fsynced was not acted upon.
func readJournal(path, server string) (journalContent, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return journalContent{}, nil
	}
	if err != nil {
		return journalContent{}, err
	}
	content := journalContent{exists: true, tidy: true}
	if len(bytes.Trim(data, "\x00\n ")) == 0 {
		content.tidy = false
		return content, nil
	}
	damaged := func(line int, err error) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the ledger %s is damaged in line %d", path, line),
			Hint: "move the file aside and run `respaldo cleanup`, which also finds leftovers by their tags and names", Err: err}
	}
	for number := 1; len(data) > 0; number++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		last := len(bytes.Trim(rest, "\x00\n ")) == 0
		err := content.replay(number, line, path, server)
		switch {
		case err == nil && whole:
		case number > 1 && last && (!whole || isSyntax(err)):
			content.tidy = false
			return content, nil
		case err == nil:
			content.tidy = false // the header alone, without its newline
		case isSyntax(err):
			return journalContent{}, damaged(number, err)
		default:
			return journalContent{}, err
		}
		if last && len(rest) > 0 {
			content.tidy = false
			return content, nil
		}
		data = rest
	}
	return content, nil
}

type syntaxError struct{ error }

func isSyntax(err error) bool {
	var s syntaxError
	return errors.As(err, &s)
}

func (c *journalContent) replay(number int, line []byte, path, server string) error {
	if number == 1 {
		var h header
		if err := json.Unmarshal(line, &h); err != nil || h.Format == 0 {
			return syntaxError{fmt.Errorf("no ledger header: %w", err)}
		}
		if h.Format > Format {
			return &respaldo.Error{Kind: respaldo.Refused,
				What: fmt.Sprintf("the ledger %s has format %d, this respaldo knows %d", path, h.Format, Format),
				Hint: "a newer respaldo wrote it: use that one, or let it run `respaldo cleanup` before going back"}
		}
		if h.Server != server {
			return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the ledger %s is of server %q, not %q", path, h.Server, server),
				Hint: "rename it back, or move it aside and run `respaldo cleanup`"}
		}
		return nil
	}
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return syntaxError{err}
	}
	switch {
	case r.Intent != nil && r.Intent.ID != "":
		c.held = append(c.held, *r.Intent)
	case r.Note != "":
		c.tidy = false
		for i := range c.held {
			if c.held[i].ID == r.Note {
				c.held[i].set(r.Attrs)
			}
		}
	case r.Released != "":
		c.tidy = false
		for i := range c.held {
			if c.held[i].ID == r.Released {
				c.held = append(c.held[:i], c.held[i+1:]...)
				break
			}
		}
	default:
		return syntaxError{errors.New("neither intent, note nor release")}
	}
	return nil
}

// writeJournal replaces the file by one that holds just these entries. After a power cut
// there is either the old one or the new one.
func writeJournal(path, server string, entries []Entry) error {
	var content bytes.Buffer
	encode := json.NewEncoder(&content)
	if err := encode.Encode(header{Format: Format, Server: server}); err != nil {
		return err
	}
	for i := range entries {
		if err := encode.Encode(record{Intent: &entries[i]}); err != nil {
			return err
		}
	}
	return disk.Replace(path, content.Bytes(), 0o600)
}

// makeDir makes dir and what is missing above it, 0700, and sees to it that the names
// survive a power cut. A directory that others can write to is refused: entries planted
// there would be acted upon as root.
func makeDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil {
		if !info.IsDir() {
			return &respaldo.Error{Kind: respaldo.Refused, What: dir + " is not a directory", Hint: "give another state_dir or run_dir"}
		}
		if info.Mode().Perm()&0o022 != 0 {
			return &respaldo.Error{Kind: respaldo.Refused, What: "others may write to " + dir, Hint: "chmod go-w " + dir}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return stateDirError(dir, err)
	}
	if parent := filepath.Dir(dir); parent != dir {
		if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
			if err := makeDir(parent); err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return stateDirError(dir, err)
	}
	return disk.Sync(filepath.Dir(dir))
}

func stateDirError(dir string, err error) error {
	hint := "give another state_dir or run_dir"
	if errors.Is(err, fs.ErrPermission) {
		hint = "run it as root"
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: "cannot use " + dir + " for our state", Hint: hint, Err: err}
}
