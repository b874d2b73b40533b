// Package target is the directory into which files are brought back, from a repository or
// from another node: the mark that it carries meanwhile, how it is made, whom the files
// belong to, and what is said when it cannot be written.
package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/respaldo-backup/respaldo"
)

// IncompleteMarker is in a directory while files are being brought back into it, and stays
// there when that is cut short: no server may be started on it.
const IncompleteMarker = ".respaldo-incomplete"

// LostFound belongs to the file system: a directory with nothing else in it is empty.
const LostFound = "lost+found"

// Incomplete tells that a directory carries the marker.
func Incomplete(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, IncompleteMarker))
	return err == nil
}

// Make makes a directory for us alone, and those around it that are missing. It returns
// those that it made, parents first.
func Make(dir string) (made []string, err error) {
	if _, err := os.Stat(dir); err == nil {
		return nil, nil
	}
	var missing []string
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
			break // there, or Mkdir says what is wrong
		}
		missing = append(missing, at)
	}
	for _, at := range slices.Backward(missing) {
		mode := os.FileMode(0o755)
		if at == dir {
			mode = 0o700
		}
		err := os.Mkdir(at, mode)
		if errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return made, err
		}
		made = append(made, at)
	}
	return made, nil
}

// Unmake takes back what Make has made, as far as it is still empty.
func Unmake(made []string) {
	for _, at := range slices.Backward(made) {
		os.Remove(at)
	}
}

// NotEmpty is the error for a directory that holds something and was not to be replaced.
func NotEmpty(dir, what string) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is not empty (%s)", dir, what),
		Hint: "name another directory, or replace all of its content with --force"}
}

// Explain is for failures to write the target; an error of ours is explained already.
func Explain(dir string, err error) error {
	var ours *respaldo.Error
	if err == nil || errors.As(err, &ours) || errors.Is(err, context.Canceled) {
		return err
	}
	hint := "the directory is marked as incomplete; once this is solved, run the same command again"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "free or add space and run the same command again, or restore elsewhere; the directory is marked as incomplete"
	case errors.Is(err, fs.ErrPermission):
		hint = "run respaldo as root, or as a user that may write there"
	case errors.Is(err, syscall.EROFS):
		hint = "the file system is mounted read-only: name another directory"
	}
	return &respaldo.Error{Kind: respaldo.Failed, What: "cannot restore into " + dir, Hint: hint, Err: err}
}

// Owners say whom files belong to on this machine: by name where it knows the name, else by
// number.
type Owners struct {
	MayGive bool // only root may give files away
	users   map[uint32]int
	groups  map[uint32]int
}

// NewOwners takes the names of users and groups where the files come from, by number.
func NewOwners(userNames, groupNames map[string]string) *Owners {
	o := &Owners{MayGive: os.Geteuid() == 0, users: map[uint32]int{}, groups: map[uint32]int{}}
	for id, name := range userNames {
		if u, err := user.Lookup(name); err == nil {
			add(o.users, id, u.Uid)
		}
	}
	for id, name := range groupNames {
		if g, err := user.LookupGroup(name); err == nil {
			add(o.groups, id, g.Gid)
		}
	}
	return o
}

func add(m map[uint32]int, there, here string) {
	from, err1 := strconv.ParseUint(there, 10, 32)
	to, err2 := strconv.Atoi(here)
	if err1 == nil && err2 == nil {
		m[uint32(from)] = to
	}
}

// Of returns the owner here of what has these numbers there.
func (o *Owners) Of(user, group uint32) (uid, gid int) {
	uid, gid = int(user), int(group)
	if id, ok := o.users[user]; ok {
		uid = id
	}
	if id, ok := o.groups[group]; ok {
		gid = id
	}
	return uid, gid
}
