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
	"github.com/respaldo-backup/respaldo/internal/disk"
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
	temp := filepath.Join(stateDir, name+".id."+id+".tmp")
	defer os.Remove(temp)
	err = disk.Create(temp, []byte(id+"\n"), 0o600)
	if err == nil {
		err = os.Link(temp, path) // a rename would replace the ID of whoever was first
	}
	if errors.Is(err, fs.ErrExist) {
		return readID(path)
	}
	if err == nil {
		err = disk.Sync(stateDir)
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
