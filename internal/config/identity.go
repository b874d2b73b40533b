package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// ServerID returns our own ID of a server, made when it is first asked for: MariaDB has
// none, and MySQL's comes along with every copied data directory. It is on the disk when
// this returns; two processes that ask at once get the same.
func ServerID(stateDir, name string) (string, error) {
	path := filepath.Join(stateDir, name+".id")
	id, err := readID(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return "", idError(path, err)
	}
	b := make([]byte, 16)
	rand.Read(b) // never fails (crypto/rand)
	id = hex.EncodeToString(b)
	temp, err := os.CreateTemp(stateDir, name+".id.*.tmp") // 0600
	if err != nil {
		return "", idError(path, err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.WriteString(id + "\n")
	if err == nil {
		err = temp.Sync()
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Link(temp.Name(), path) // a rename would replace the ID of whoever was first
	}
	if errors.Is(err, fs.ErrExist) {
		return readID(path)
	}
	if err == nil {
		err = syncDir(stateDir)
	}
	if err != nil {
		return "", idError(path, err)
	}
	return id, nil
}

func readID(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return "", idError(path, err)
	}
	id := strings.TrimSpace(string(text))
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 {
		return "", &respaldo.Error{Kind: respaldo.Refused, What: path + " holds no server ID",
			Hint: "write the server_id that `respaldo show` states for one of its backups into it, or remove it to start a new identity"}
	}
	return id, nil
}

func idError(path string, err error) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: "cannot keep the server's ID in " + path,
		Hint: "run it as root, or give a state_dir that you can write to", Err: err}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
