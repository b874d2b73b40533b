package run

import (
	"errors"
	"io/fs"
	"os/exec"
)

// NotInstalled reports whether a command failed because its program is not there.
func NotInstalled(err error) bool {
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
}
