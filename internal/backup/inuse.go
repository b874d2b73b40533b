package backup

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/respaldo-backup/respaldo"
)

// refuseInUse refuses a directory in which some program has a file open, whatever was
// forced: overwriting a running server's files would destroy both its data and the restore.
// It refuses one inside a running server's data directory too: the server would take it
// for a database.
func refuseInUse(dir string) error {
	if err := refuseOpen(dir); err != nil {
		return err
	}
	for at := filepath.Dir(resolved(dir)); at != filepath.Dir(at); at = filepath.Dir(at) {
		if !isDataDir(at) {
			continue
		}
		if err := refuseOpen(at); err != nil {
			return err
		}
	}
	return nil
}

// isDataDir tells by the file that each server with InnoDB has in its data directory.
func isDataDir(dir string) bool {
	for _, name := range []string{"ibdata1", "mysql.ibd"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// refuseOpen compares files by device and inode, so that a server in a container, or one
// that knows the directory by another name, is found too.
func refuseOpen(dir string) error {
	files, err := filesBelow(dir)
	if err != nil || len(files) == 0 {
		return err
	}
	return openBy(files, dir+" is in use", "stop that server first, or restore into another directory")
}

// openBy refuses files of which a process has one open, and names both.
func openBy(files map[inode]string, what, hint string) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if path := firstOpen("/proc/"+p.Name()+"/fd", files); path != "" {
			command, _ := os.ReadFile("/proc/" + p.Name() + "/comm")
			return &respaldo.Error{Kind: respaldo.Refused,
				What: fmt.Sprintf("%s: process %d (%s) has %s open", what, pid, strings.TrimSpace(string(command)), path),
				Hint: hint}
		}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// filesBelow maps the regular files below dir, none where it does not exist.
func filesBelow(dir string) (map[inode]string, error) {
	files := map[inode]string{}
	dir, err := filepath.EvalSymlinks(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone since
		}
		stat := info.Sys().(*syscall.Stat_t)
		files[inode{stat.Dev, stat.Ino}] = path
		return nil
	})
	return files, err
}

// firstOpen returns one of the files that a process has open. Links that are no paths
// (sockets, pipes) are not followed.
func firstOpen(fds string, files map[inode]string) string {
	entries, _ := os.ReadDir(fds)
	for _, e := range entries {
		link := filepath.Join(fds, e.Name())
		if target, err := os.Readlink(link); err != nil || !strings.HasPrefix(target, "/") {
			continue
		}
		info, err := os.Stat(link)
		if err != nil {
			continue
		}
		stat := info.Sys().(*syscall.Stat_t)
		if path, ok := files[inode{stat.Dev, stat.Ino}]; ok {
			return path
		}
	}
	return ""
}
