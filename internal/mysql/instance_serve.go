package mysql

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ServeOptions are what people see of an instance that is served.
type ServeOptions struct {
	Bind     string // an IP address of this machine
	Port     int
	Writable bool // else nobody writes: super_read_only where the server knows it, or read_only
}

// initFile is read by the server before it accepts anybody.
const initFile = "init.sql"

// Serve starts an instance that people and programs use, as StartInstance does: with a port,
// and with the accounts that the image holds, each with its own password. It also returns an
// account that may do everything, made for this instance and known to nobody else: it exists
// in this image only, and is not in its binlog.
func Serve(ctx context.Context, request InstanceRequest, o ServeOptions) (*Instance, Account, error) {
	account := newAccount()
	path := filepath.Join(request.Scratch, initFile)
	// The server reads it as another user; nobody but that one gets into Scratch.
	if err := os.WriteFile(path, []byte(account.statements()), 0o644); err != nil {
		return nil, account, err
	}
	request.Account, request.Networking = &account, true
	names := "--skip-name-resolve=1"
	if request.Manifest.Variables["skip_name_resolve"] == "OFF" {
		names = "--skip-name-resolve=0" // accounts are of hosts, as at the origin
	}
	request.Options = append([]string{names,
		"--init-file=" + filepath.Join(filepath.Clean(request.Manifest.Layout.DataDir), scratchName, initFile),
		"--skip-networking=0", "--bind-address=" + o.Bind, fmt.Sprintf("--port=%d", o.Port),
		"--max-connections=64",
		// With accounts come the plugins that the image has installed.
		"--loose-group-replication-start-on-boot=OFF",
		// Without it, accounts of MySQL's default kind could not log in over TCP where the
		// image has no certificates.
		"--loose-caching-sha2-password-auto-generate-rsa-keys=ON", "--loose-sha256-password-auto-generate-rsa-keys=ON",
		// What is served is thrown away: no reason to write it out before leaving.
		"--innodb-fast-shutdown=2",
	}, request.Options...)
	i, err := StartInstance(ctx, request)
	if err != nil {
		return nil, account, err
	}
	if err = os.Remove(path); err == nil && !o.Writable {
		err = i.forbidWrites(ctx)
	}
	if err != nil {
		now, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancel()
		i.end(now)
		return nil, account, err
	}
	return i, account, nil
}

// forbidWrites comes when the server is up: the account could not be made otherwise.
func (i *Instance) forbidWrites(ctx context.Context) error {
	variable := "read_only"
	if _, ok := i.request.Manifest.Variables["super_read_only"]; ok {
		variable = "super_read_only"
	}
	if _, err := i.db.ExecContext(ctx, "SET GLOBAL "+variable+" = ON"); err != nil {
		return fmt.Errorf("making the instance read-only: %w", err)
	}
	return nil
}

// newAccount has a name that MySQL 5.6 takes (16 characters) and a password that any policy
// does, though none but the image's own would ask.
func newAccount() Account {
	salt := make([]byte, 3)
	rand.Read(salt) // never fails (crypto/rand)
	return Account{User: "respaldo-" + hex.EncodeToString(salt), Password: rand.Text() + "-" + strings.ToLower(rand.Text()) + "+7"}
}

// statements make the account; one on each line, as 5.6 reads them.
func (a Account) statements() string {
	name := fmt.Sprintf("'%s'@'localhost'", a.User)
	return strings.Join([]string{
		"SET sql_log_bin=0;",
		"CREATE USER " + name + " IDENTIFIED BY '" + a.Password + "';",
		"GRANT ALL PRIVILEGES ON *.* TO " + name + " WITH GRANT OPTION;",
		"",
	}, "\n")
}

// OptionFile is what a client program logs in with, for a file that only root may read.
func (a Account) OptionFile(socket string) string {
	return fmt.Sprintf("[client]\nsocket=%s\nuser=%s\npassword=%s\n", socket, a.User, a.Password)
}
