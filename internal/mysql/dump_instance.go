package mysql

import (
	"crypto/rand"
	"encoding/hex"

	"github.com/respaldo-backup/respaldo"
)

// ForDump makes the request one for an instance that a dump program can read everything
// from, and from which it reads what is there, not what a repair would make of it.
//
// MariaDB shows no events while accounts are not looked at: the dump would lack them
// without a word. So there the instance looks at accounts, and we have one of our own, in
// the server's memory only: its row is gone before anybody can read it.
func (r InstanceRequest) ForDump() InstanceRequest {
	r.Options = append(r.Options, "--myisam-recover-options=OFF")
	v := r.Manifest.Version
	if v.Flavor != respaldo.MariaDB {
		return r
	}
	name := make([]byte, 8)
	rand.Read(name) // never fails (crypto/rand)
	r.Account = &Account{User: "respaldo_" + hex.EncodeToString(name)}
	// Off, not disabled: they are shown and do not run.
	r.Options = append(r.Options, "--aria-recover-options=OFF", "--event-scheduler=OFF")
	r.Init = append(r.Init, "SET SESSION sql_log_bin=0;")
	if v.AtLeast(respaldo.MariaDB, 10, 4, 0) {
		r.Init = append(r.Init,
			"INSERT INTO mysql.global_priv VALUES ('localhost','"+r.Account.User+`','{"access":18446744073709551615,"plugin":"mysql_native_password","authentication_string":""}');`,
			"FLUSH PRIVILEGES;",
			"DELETE FROM mysql.global_priv WHERE User='"+r.Account.User+"';")
		return r
	}
	r.Init = append(r.Init,
		"GRANT ALL PRIVILEGES ON *.* TO '"+r.Account.User+"'@'localhost' IDENTIFIED BY '' WITH GRANT OPTION;",
		"DELETE FROM mysql.user WHERE User='"+r.Account.User+"';")
	return r
}
