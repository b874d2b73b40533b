package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// holder is what the lock file says about the operation that has it.
type holder struct {
	PID       int       `json:"pid"`
	Operation string    `json:"operation"`
	Run       string    `json:"run"`
	Started   time.Time `json:"started"`
}

// takeLock locks the file without waiting. The kernel drops the lock with the last
// descriptor, so a dead holder locks nobody out; Go opens files close-on-exec, so no
// child keeps it either. A side's file is removed with it (dropLock): who had opened it just
// before has locked a file that nobody else finds, and takes the next one.
func takeLock(path, server string, self holder) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, stateDirError(path, err)
	}
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err == nil && removed(file) {
		file.Close()
		return takeLock(path, server, self)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		defer file.Close()
		return nil, busy(file, server)
	}
	if err == nil {
		err = writeHolder(file, &self)
	}
	if err != nil {
		file.Close()
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "cannot lock " + path, Hint: "keep state_dir on a local filesystem with room on it", Err: err}
	}
	return file, nil
}

func dropLock(file *os.File, remove bool) {
	writeHolder(file, nil) // only for people; the lock itself goes with the descriptor
	if remove {
		os.Remove(file.Name())
	}
	file.Close()
}

// removed tells that a file has no name any more, or that another one has it.
func removed(file *os.File) bool {
	ours, err := file.Stat()
	if err != nil {
		return false // whoever writes to it says so
	}
	named, err := os.Stat(file.Name())
	return err != nil || !os.SameFile(ours, named)
}

func writeHolder(file *os.File, h *holder) error {
	if err := file.Truncate(0); err != nil || h == nil {
		return err
	}
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(append(line, '\n'), 0)
	return err
}

func busy(file io.Reader, server string) error {
	e := &respaldo.Error{Kind: respaldo.Busy, What: fmt.Sprintf("another operation on server %q is running", server),
		Hint: "wait for it to end"}
	var h holder
	if err := json.NewDecoder(file).Decode(&h); err == nil && h.PID != 0 {
		e.What = fmt.Sprintf("another operation on server %q is running: %s, process %d, since %s",
			server, h.Operation, h.PID, h.Started.Local().Format("2006-01-02 15:04:05 MST"))
		e.Hint = fmt.Sprintf("wait for it to end, or interrupt it with `kill -INT %d`", h.PID)
	}
	return e
}
