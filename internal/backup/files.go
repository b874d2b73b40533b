package backup

import (
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo/internal/disk"
)

// writeDurably replaces a file of our own state, which nobody else reads.
func writeDurably(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return disk.Replace(path, content, 0o600)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
