package respaldo

import (
	"context"
	"errors"
)

// Kind is the class of an error; it decides the exit code and nothing else.
type Kind int

// The exit codes, documented in docs/exit-codes.md and stable.
const (
	Failed       Kind = 1  // anything without a code of its own
	Usage        Kind = 2  // the command line or the configuration is wrong
	Refused      Kind = 3  // looked, and did not begin: nothing was touched
	Unreachable  Kind = 4  // the server cannot be reached or does not let us in
	LockTimeout  Kind = 5  // the lock was not to be had, or not kept, within the budget
	SnapshotLost Kind = 6  // the snapshot could not be taken, overflowed or became invalid
	RepoFailed   Kind = 7  // the repository cannot be opened, written or read
	NotProved    Kind = 8  // the image did not start, or is not what it should be
	Busy         Kind = 9  // another operation on this server is running
	NotFound     Kind = 10 // no such backup, snapshot or server
	Leftovers    Kind = 11 // something of ours could not be removed
	Overdue      Kind = 12 // status: no proved backup that is young enough
	Attention    Kind = 13 // status: the backups are young enough, something else is not as it should be
	Interrupted  Kind = 130
)

// Error is an error for a person: what failed, on what, and what to do next.
type Error struct {
	Kind Kind
	What string // "volume group vg has no free space"
	Hint string // "free 2.0 GiB with lvreduce or vgextend, or give --snapshot-size"
	Err  error  // cause; may be nil
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.What + ": " + e.Err.Error()
	}
	return e.What
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost *Error in err's chain; Interrupted for a
// cancelled context, Failed for anything else.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) {
		return Interrupted
	}
	return Failed
}

// HintsOf collects the hints in err's tree, outermost first, each once.
func HintsOf(err error) []string {
	var hints []string
	seen := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if e, ok := err.(*Error); ok && e.Hint != "" && !seen[e.Hint] {
			seen[e.Hint] = true
			hints = append(hints, e.Hint)
		}
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			if next := u.Unwrap(); next != nil {
				walk(next)
			}
		case interface{ Unwrap() []error }:
			for _, next := range u.Unwrap() {
				walk(next)
			}
		}
	}
	if err != nil {
		walk(err)
	}
	return hints
}
