package mysql

import (
	"context"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	driver "github.com/go-sql-driver/mysql"
	respaldo "github.com/respaldo-backup/respaldo"
)

// The server's error numbers that we tell apart.
const (
	errDBAccessDenied    = 1044
	errAccessDenied      = 1045
	errTooManyConns      = 1040
	errShutdown          = 1053
	errParse             = 1064
	errNoSuchThread      = 1094
	errKillDenied        = 1095
	errHostBlocked       = 1129
	errHostNotPrivileged = 1130
	errTableAccessDenied = 1142
	errNoSuchTable       = 1146
	errUnknownVariable   = 1193
	errLockWaitTimeout   = 1205
	errTooManyUserConns  = 1226
	errPrivilegeNeeded   = 1227
	errQueryInterrupted  = 1317
	errXAFailed          = 1401 // MySQL 8's word for "may not XA RECOVER"
	errAccessNoPassword  = 1698
	errPasswordExpired   = 1820
	errLoginExpired      = 1862
	errKilled            = 1927 // MariaDB: "Connection was killed"
	errNoSuchQuery       = 1957 // MariaDB: of KILL QUERY ID
)

func errorNumber(err error) uint16 {
	var e *driver.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

func isDialError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// isConnectionLost tells that the server, or somebody's KILL, ended the connection.
func isConnectionLost(err error) bool {
	switch errorNumber(err) {
	case errShutdown, errKilled:
		return true
	case 0:
		var netErr net.Error
		return errors.Is(err, driver.ErrInvalidConn) || errors.Is(err, sqldriver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
			errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.As(err, &netErr)
	}
	return false
}

// explainConnect says why we were not let in. failed has one error per address tried.
func (s *Server) explainConnect(failed []error) error {
	err := failed[0]
	for _, f := range failed { // a socket that exists tells more than those that do not
		if !errors.Is(f, fs.ErrNotExist) {
			err = f
		}
	}
	e := &respaldo.Error{Kind: respaldo.Unreachable, Err: err}
	where := s.address
	if len(failed) > 1 && errors.Is(err, fs.ErrNotExist) {
		where = strings.Join(s.target.addresses, ", ")
	}
	files := "none was found"
	if len(s.target.read) > 0 {
		files = "read: " + strings.Join(s.target.read, ", ")
	}
	if login := filepath.Join(homeDir(), ".mylogin.cnf"); exists(login) {
		files += "; " + login + " is for MySQL's own clients only and was not read"
	}
	password := fmt.Sprintf("put user and password under [respaldo] or [client] into ~/.my.cnf or the file that --defaults-file names (%s)", files)
	switch n := errorNumber(err); {
	case n == errAccessDenied || n == errAccessNoPassword:
		e.What = fmt.Sprintf("the server at %s does not let user %q in", where, s.target.user)
		e.Hint = password
		if s.target.user == "root" {
			e.Hint += "; where root logs in by unix_socket, run as root and connect over the socket"
		}
	case n == errHostBlocked || n == errHostNotPrivileged:
		e.What = fmt.Sprintf("the server at %s accepts no connection from this host", where)
		e.Hint = "connect over the server's socket (--socket), or allow the account from this host; after too many errors, FLUSH HOSTS"
	case n == errTooManyConns || n == errTooManyUserConns:
		e.What = fmt.Sprintf("the server at %s has no free connection", where)
		e.Hint = "respaldo needs three: raise max_connections (or the account's limit), or wait"
	case n == errPasswordExpired || n == errLoginExpired:
		e.What = fmt.Sprintf("the password of user %q has expired", s.target.user)
		e.Hint = "set a new one: ALTER USER … IDENTIFIED BY …"
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrNotExist):
		e.What = "no server socket at " + where
		e.Hint = "is the server running? if it is, name its socket: --socket, or socket= under [client] of an option file (" + files + ")"
	case errors.Is(err, fs.ErrPermission):
		e.What = "no permission to use the socket " + where
		e.Hint = "run as root, or as a user who may enter the socket's folder"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.What = "no server answers at " + where
		e.Hint = "is the server running? (systemctl status mysql, or mariadb)"
	case errors.Is(err, driver.ErrNoTLS):
		e.What = fmt.Sprintf("the server at %s offers no TLS, but the option files demand it", where)
		e.Hint = "ssl-mode=PREFERRED, or enable TLS on the server"
	case strings.Contains(err.Error(), "tls:"), strings.Contains(err.Error(), "x509:"):
		e.What = "cannot speak TLS with the server at " + where
		e.Hint = "look at ssl-mode, ssl-ca and tls-version in the option files (" + files + ")"
	default:
		e.What = "cannot connect to the server at " + where
		e.Hint = "is the server running and reachable from here? option files " + files
	}
	return e
}

var neededPrivilege = regexp.MustCompile(`at least one of\) the (.+?) privilege`)

// explain turns an error of a statement into one for a person: doing is what we were
// about ("reading the binlog coordinates").
func (s *Server) explain(err error, doing string) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var already *respaldo.Error
	if errors.As(err, &already) {
		return err
	}
	switch n := errorNumber(err); {
	case n == errPrivilegeNeeded || n == errTableAccessDenied || n == errDBAccessDenied || n == errAccessDenied:
		missing := "a privilege"
		var e *driver.MySQLError
		errors.As(err, &e)
		if m := neededPrivilege.FindStringSubmatch(e.Message); m != nil {
			missing = "the privilege " + m[1]
		}
		return &respaldo.Error{Kind: respaldo.Unreachable, What: fmt.Sprintf("%s: account %q lacks %s", doing, s.target.user, missing),
			Hint: s.asUs(strings.Join(Grants(s.version), "; ")), Err: err}
	case n == errLockWaitTimeout:
		return &respaldo.Error{Kind: respaldo.LockTimeout, What: doing + ": the lock was not granted in time", Hint: "try again when the server is less busy, or give --max-lock more time", Err: err}
	case isConnectionLost(err):
		return &respaldo.Error{Kind: respaldo.Unreachable, What: doing + ": the connection to the server was lost",
			Hint: "was the server stopped or restarted, or our connection killed? look at its error log, then run again", Err: err}
	}
	return &respaldo.Error{Kind: respaldo.Failed, What: doing, Err: err}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
