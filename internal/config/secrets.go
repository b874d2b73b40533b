package config

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo"
)

// Password finds the repository's password: in the environment (RESPALDO_PASSWORD, or the
// file named by RESPALDO_PASSWORD_FILE), else in the configured file. A line end at the
// end of a file does not belong to it. A password file that others can read is refused,
// not only warned about: whoever reads it reads every backup.
func (r Repository) Password() (string, error) {
	if password := os.Getenv("RESPALDO_PASSWORD"); password != "" {
		return password, nil
	}
	path := r.PasswordFile
	if named := os.Getenv("RESPALDO_PASSWORD_FILE"); named != "" {
		path = named
	}
	if path == "" {
		return "", usage("no repository password is given", "put it into a file (chmod 600) and name that as password_file in [repository], with --password-file, or set RESPALDO_PASSWORD")
	}
	text, err := ReadSecret(path)
	if err != nil {
		return "", err
	}
	if text == "" {
		return "", usage("the password file "+path+" is empty", "write the repository's password into it; `openssl rand -base64 30` makes a good one")
	}
	return text, nil
}

// ReadSecret reads a file that holds a secret, without the line end at its end. A file
// that everybody can read, or that anybody but its owner can change, is refused.
func ReadSecret(path string) (string, error) {
	text, err := readChecked(path, 0o026)
	if os.IsNotExist(err) {
		return "", &respaldo.Error{Kind: respaldo.Usage, What: "there is no file " + path, Hint: "write the secret into it, then chmod 600 " + path}
	}
	return strings.TrimRight(string(text), "\r\n"), err
}

// readTrusted reads the configuration. It holds no secrets and may be read by all, but it
// names programs that run as root: nobody else may write to it.
func readTrusted(path string) ([]byte, error) { return readChecked(path, 0o022) }

// readChecked reads a regular file that belongs to root or to us and has none of the
// forbidden mode bits. It looks at the opened file, not at the name.
func readChecked(path string, forbidden os.FileMode) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		if os.IsNotExist(err) {
			return nil, err
		}
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: "cannot read " + path, Err: err}
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() { // a pipe (<(pass show …)) is nobody else's
		if mode := info.Mode().Perm(); mode&forbidden != 0 {
			verb, fix := "read", "600"
			if mode&0o022 != 0 {
				verb, fix = "write to", "go-w"
			}
			return nil, usage(fmt.Sprintf("others may %s %s (mode %04o)", verb, path, mode), "chmod "+fix+" "+path)
		}
		if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != 0 && owner != os.Geteuid() {
			return nil, usage(fmt.Sprintf("%s belongs to user %d", path, owner), fmt.Sprintf("chown %d %s", os.Geteuid(), path))
		}
	}
	return io.ReadAll(file)
}
