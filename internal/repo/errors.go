package repo

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/minio/minio-go/v7"
	"github.com/pkg/sftp"

	"github.com/respaldo-backup/respaldo"
)

// explain makes what went wrong with the repository readable: what failed, where, and
// what to do next. Errors that are readable already, and cancellation, pass unchanged.
func (l location) explain(what string, err error) error {
	var ours *respaldo.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return &respaldo.Error{Kind: respaldo.RepoFailed, What: what + " " + l.name, Hint: l.hint(err), Err: cause(err)}
}

func (l location) hint(err error) string {
	var s3err minio.ErrorResponse
	var status *sftp.StatusError
	text := err.Error()
	switch {
	case errors.Is(err, repo.ErrInvalidPassword):
		return "give the password that the repository was made with; without it nobody can read it"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free some space there, or let go of old backups with respaldo prune"
	case errors.Is(err, syscall.EROFS):
		return "its file system is mounted read-only: look into dmesg for why, or remount it read-write"
	case errors.As(err, &s3err) && s3err.Code == "NoSuchBucket":
		return "make the bucket first; respaldo makes only what is inside"
	case errors.As(err, &s3err) && (s3err.StatusCode == 403 || s3err.StatusCode == 401):
		return "check the S3 credentials, and that they may list, read, write and delete there"
	case errors.Is(err, repo.ErrRepositoryNotInitialized), errors.Is(err, blob.ErrBlobNotFound):
		if l.kind == folder {
			return "make it with respaldo init; if it was there before: is its file system mounted?"
		}
		return "make it with respaldo init; if it was there before, check the path"
	case l.kind == folder && errors.Is(err, fs.ErrNotExist):
		return "make it with respaldo init; if it was there before: is its file system mounted?"
	case errors.Is(err, os.ErrPermission):
		return "run respaldo as the user that owns the repository, or give it the rights"
	case strings.Contains(text, "knownhosts: key is unknown"):
		return "the SSH server is not in the list of known hosts: check its key and add it with ssh-keyscan"
	case strings.Contains(text, "knownhosts: key mismatch"):
		return "the SSH server's key has changed: find out why before anything else"
	case strings.Contains(text, "unable to authenticate"):
		return "add the public half of the SSH key to the server's authorized_keys"
	case strings.Contains(text, "passphrase"):
		return "use an SSH key without a passphrase, which only this user can read"
	case errors.As(err, &status):
		return "the SFTP server says no more than this; a full disk or quota over there looks like it too"
	case isNetwork(err):
		return "check that the server is up and can be reached from here"
	case strings.Contains(text, "can't parse format blob"), strings.Contains(text, "unsupported"), strings.Contains(text, "not supported"):
		return "this is no repository that this version can read: check the place, or use a newer respaldo"
	}
	return "look at the repository's storage; respaldo verify tells what of it can still be read"
}

func isNetwork(err error) bool {
	var e net.Error
	return errors.As(err, &e)
}

// cause is the part of a kopia error that says what happened: it wraps errors five deep,
// and some of the layers print whole structures.
func cause(err error) error {
	if errors.Is(err, repo.ErrInvalidPassword) {
		return errors.New("wrong password")
	}
	if errors.Is(err, repo.ErrRepositoryNotInitialized) || errors.Is(err, blob.ErrBlobNotFound) {
		return errors.New("there is no repository, or a part of it is missing")
	}
	for {
		switch err.(type) {
		case *fs.PathError, *os.LinkError, *os.SyscallError, net.Error, minio.ErrorResponse, *sftp.StatusError:
			return err
		}
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
