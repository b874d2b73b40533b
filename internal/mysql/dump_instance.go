package mysql

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
)

// StartForDump starts an instance, as StartInstance does, that a dump program can read
// everything from: what is there, and not what a repair would make of it. Scratch must exist.
//
// MariaDB shows no events while accounts are not looked at: a dump would lack them without
// a word. So there the instance looks at accounts, and we have one of our own, in the
// server's memory only: its row is gone before anybody can read it.
func StartForDump(ctx context.Context, request InstanceRequest) (*Instance, error) {
	// What is dumped is thrown away: no reason to write it out before leaving.
	options := []string{"--myisam-recover-options=OFF", "--innodb-fast-shutdown=2"}
	v := request.Manifest.Version
	if v.Flavor == respaldo.MariaDB {
		account := newAccount()
		account.Password = "" // nobody but its user gets into Scratch, where the socket is
		// The server reads it as another user; nobody but that one gets into Scratch.
		if err := os.WriteFile(filepath.Join(request.Scratch, initFile), []byte(account.transient(v)), 0o644); err != nil {
			return nil, err
		}
		request.Account = &account
		options = append(options, "--aria-recover-options=OFF",
			"--event-scheduler=OFF", // not disabled: events are shown, and do not run
			"--init-file="+filepath.Join(filepath.Clean(request.Manifest.Layout.DataDir), scratchName, initFile))
	}
	request.Options = append(options, request.Options...)
	return StartInstance(ctx, request)
}

// Inexact says why what the instance holds is not what the image's coordinates say: a server
// that follows from there would miss transactions, or apply some twice. "" is as it should be.
func (i *Instance) Inexact(ctx context.Context) (string, error) {
	at, err := i.Coordinates(ctx)
	if err != nil {
		return "", err
	}
	problems, err := i.compare(ctx, at)
	return strings.Join(problems, "; "), err
}

// transient makes the account, one statement on each line, and takes it out of the tables:
// MariaDB goes by its memory, until it is told to read them again.
func (a Account) transient(v respaldo.Version) string {
	table := "mysql.global_priv"
	make := []string{fmt.Sprintf(`INSERT INTO mysql.global_priv VALUES ('localhost','%s','{"access":18446744073709551615,"plugin":"mysql_native_password","authentication_string":""}');`, a.User),
		"FLUSH PRIVILEGES;"}
	if !v.AtLeast(respaldo.MariaDB, 10, 4, 0) {
		table = "mysql.user"
		make = []string{fmt.Sprintf("GRANT ALL PRIVILEGES ON *.* TO '%s'@'localhost' WITH GRANT OPTION;", a.User)}
	}
	statements := append([]string{"SET sql_log_bin=0;"}, make...)
	return strings.Join(append(statements, fmt.Sprintf("DELETE FROM %s WHERE User='%s';", table, a.User), ""), "\n")
}
