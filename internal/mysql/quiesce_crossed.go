package mysql

import "errors"

// ErrCrossed is in the chain of the error of a Quiesce without a lock that something crossed
// which only a lock excludes: what fn made must be discarded. To try again at once is sensible.
var ErrCrossed = errors.New("something crossed the snapshot that was taken without a lock")
