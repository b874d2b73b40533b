package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// pristine initialises dir/data, once, with a small redo log: it is copied for every test.
func pristine(ctx context.Context, name, dir string) error {
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	args := append(files(name, filepath.Join(dir, "root")), "--datadir="+data, "--innodb-buffer-pool-size=64M")
	args = append(args, redo(name)...)
	if os.Geteuid() == 0 {
		args = append(args, "--user=root")
	}
	var script io.Reader
	if name == "mysql-9.7" {
		args = append(args, "--initialize-insecure", "--mysqlx=OFF", "--secure-file-priv=")
	} else {
		sql, err := bootstrapSQL(name, share(name, filepath.Join(dir, "root")))
		if err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(data, "mysql"), 0o755); err != nil {
			return err
		}
		script = sql
		args = append(args, "--bootstrap", "--log-warnings=0", "--max-allowed-packet=8M", "--net-buffer-length=16K")
		if strings.HasPrefix(name, "mariadb") {
			args = append(args, "--enforce-storage-engine=", "--loose-innodb-buffer-pool-size-max=256M")
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "bin", "mysqld"), args...)
	cmd.Stdin = script
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("initialise a data directory: %w\n%s", err, lastLines(out.Bytes(), 15))
	}
	// Every copy makes its own, or all servers would have one identity.
	if err := os.Remove(filepath.Join(data, "auto.cnf")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// bootstrapSQL is what the vendors' install scripts feed to the server, without the
// anonymous accounts that shadow a test's own.
func bootstrapSQL(name, share string) (io.Reader, error) {
	sql := bytes.NewBufferString("CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\n")
	parts := []string{"*_system_tables.sql", "*_performance_tables.sql", "*_system_tables_data.sql", "maria_add_gis_sp_bootstrap.sql", "m*_sys_schema.sql"}
	for _, part := range parts {
		found, _ := filepath.Glob(filepath.Join(share, part))
		for _, f := range found {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			sql.Write(data)
		}
	}
	if name == "mysql-5.6" {
		sql.WriteString("DELETE FROM mysql.user WHERE User='';\nDELETE FROM mysql.db WHERE User='';\n")
	}
	return sql, nil
}

// Init fills an empty or absent data directory: a fresh server whose root account has no
// password. It takes as long as copying a few megabytes. Files belong to the caller; the
// directory is private to it.
func Init(ctx context.Context, name, datadir string) error {
	source := filepath.Join(home(name), "data")
	if err := os.MkdirAll(datadir, 0o700); err != nil {
		return err
	}
	return filepath.WalkDir(source, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(source, path)
		if err != nil || rel == "." {
			return err
		}
		target := filepath.Join(datadir, rel)
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.Mkdir(target, 0o750)
		case info.Mode().IsRegular():
			return copySparse(path, target, info)
		}
		return nil // a socket or lock link left by the server
	})
}

// copySparse copies a file and leaves holes where it is zero: redo logs and tablespaces
// mostly are.
func copySparse(from, to string, info fs.FileInfo) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer dst.Close()
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := io.ReadFull(src, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if err := dst.Truncate(at); err != nil {
				return err
			}
			return dst.Close()
		}
		if err != nil {
			return err
		}
	}
}

// share is where a server's error messages, character sets and scripts lie below its root.
func share(name, root string) string {
	switch name {
	case "mysql-5.6":
		return filepath.Join(root, "package/server/share")
	case "mariadb-11.8":
		return filepath.Join(root, "usr/share/mariadb")
	}
	return filepath.Join(root, "usr/share/mysql")
}

// files are the options that tell a relocated server where its own files are.
func files(name, root string) []string {
	base := filepath.Join(root, "usr")
	if name == "mysql-5.6" {
		base = filepath.Join(root, "package/server")
	}
	s := share(name, root)
	options := []string{"--no-defaults", "--basedir=" + base, "--lc-messages-dir=" + s, "--character-sets-dir=" + filepath.Join(s, "charsets")}
	for _, plugins := range []string{"usr/lib/mysql/plugin", "usr/lib/x86_64-linux-gnu/mariadb19/plugin"} {
		if _, err := os.Stat(filepath.Join(root, plugins)); err == nil {
			return append(options, "--plugin-dir="+filepath.Join(root, plugins))
		}
	}
	return options
}

// Options are what a server needs, in its option file or on its command line, to find its own
// files and to run on a data directory that Init has filled.
func Options(name string) []string {
	return append(files(name, filepath.Join(home(name), "root"))[1:], redo(name)...)
}

// redo keeps the redo log as small as the pristine data directory has it; a server
// started with another size would first rebuild it.
func redo(name string) []string {
	switch name {
	case "mysql-9.7":
		return []string{"--innodb-redo-log-capacity=16M"}
	case "mysql-5.6":
		return []string{"--innodb-log-file-size=8M"}
	}
	return []string{"--innodb-log-file-size=16M"}
}

func lastLines(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

const stopTimeout = 2 * time.Minute
