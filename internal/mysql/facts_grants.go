package mysql

import (
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// grantee is the account that the documented grants are for.
const grantee = "'respaldo'@'localhost'"

// Grants are the least privileges that an account needs for Facts and Quiesce, as
// statements to type. SelectGrant is needed besides where respaldo is to be certain of
// every table's engine.
func Grants(v respaldo.Version) []string {
	switch {
	case v.AtLeast(respaldo.MySQL, 8, 0, 23):
		return []string{
			"GRANT PROCESS, REPLICATION CLIENT, BACKUP_ADMIN, FLUSH_TABLES ON *.* TO " + grantee,
			"GRANT SELECT ON performance_schema.* TO " + grantee,
		}
	case v.AtLeast(respaldo.MySQL, 8, 0, 0):
		return []string{
			"GRANT PROCESS, REPLICATION CLIENT, BACKUP_ADMIN, RELOAD ON *.* TO " + grantee,
			"GRANT SELECT ON performance_schema.* TO " + grantee,
		}
	case v.AtLeast(respaldo.MariaDB, 10, 5, 2): // split REPLICATION CLIENT
		return []string{"GRANT PROCESS, RELOAD, BINLOG MONITOR, SLAVE MONITOR ON *.* TO " + grantee}
	}
	return []string{"GRANT PROCESS, RELOAD, REPLICATION CLIENT ON *.* TO " + grantee}
}

// SelectGrant lets the account see every table. Without it the engines in use are told
// from the names of files, and images are always taken under a lock.
func SelectGrant() string { return "GRANT SELECT ON *.* TO " + grantee }

// xaGrant lets the account see prepared XA transactions, where that takes a privilege.
const xaGrant = "GRANT XA_RECOVER_ADMIN ON *.* TO " + grantee

// NoLockGrants are what the account needs besides for images without a lock: they are taken
// only where everything that could be in the way can be seen.
func NoLockGrants(v respaldo.Version) []string {
	if v.AtLeast(respaldo.MySQL, 8, 0, 0) {
		return []string{SelectGrant(), xaGrant}
	}
	return []string{SelectGrant()}
}

// asUs makes grants those of the account that we are logged in as.
func (s *Server) asUs(grants string) string {
	return strings.ReplaceAll(grants, grantee, s.account)
}

// asUs is Server.asUs, for what is said of a server that is not asked any more.
func (f *Facts) asUs(grants string) string {
	return strings.ReplaceAll(grants, grantee, firstOf(f.account, grantee))
}

// globalPrivileges are those that a line of SHOW GRANTS gives on everything; none where it
// gives a role.
func globalPrivileges(grant string) []string {
	list, on, _ := strings.Cut(strings.TrimPrefix(grant, "GRANT "), " ON ")
	if !strings.HasPrefix(on, "*.* ") {
		return nil
	}
	return strings.Split(strings.ReplaceAll(list, ", ", ","), ",")
}

// quoteAccount makes CURRENT_USER()'s user@host what GRANT takes. A user's name may have
// an @, a host's may not.
func quoteAccount(account string) string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	at := strings.LastIndexByte(account, '@')
	return quote(account[:max(at, 0)]) + "@" + quote(account[at+1:])
}
