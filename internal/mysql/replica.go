package mysql

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo"
)

// Source is what a replica follows, and as whom.
type Source struct {
	Host     string
	Port     int
	User     string
	Password string
	TLS      bool // filled by Check: the source offers it
}

// LoginFor is the account that Connect would use: what the command line and the option files
// say.
func LoginFor(o Options) (Account, error) {
	t, err := resolveTarget(o)
	return Account{User: t.user, Password: t.password}, err
}

// ReplicationLogin reads the account of a group of MySQL's option files; no user means none.
func ReplicationLogin(o Options, group string) (Account, error) {
	files := clientOptionFiles()
	if o.DefaultsFile != "" {
		files = []string{o.DefaultsFile}
	}
	parsed, err := readOptionFiles(files, []string{group})
	if err != nil {
		return Account{}, &respaldo.Error{Kind: respaldo.Usage, What: "cannot understand the MySQL option files", Hint: "correct the line", Err: err}
	}
	var a Account
	for _, option := range parsed.options {
		switch option.name {
		case "user":
			a.User = option.value
		case "password":
			a.Password = option.value
		}
	}
	return a, nil
}

// openAt connects to a server that is none of ours.
func openAt(network, address string, a Account) (*sql.DB, error) {
	cfg := driver.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd = network, address, a.User, a.Password
	cfg.Timeout = dialTimeout
	cfg.Logger = &driver.NopLogger{}
	cfg.InterpolateParams = true
	cfg.Params = map[string]string{"sql_mode": "''"}
	if network == "tcp" {
		// As a replica with MASTER_SSL would, without knowing who signed the certificate.
		// Nobody is trusted by it, so the versions that 5.6 and 5.7 speak will do.
		cfg.TLS, cfg.AllowFallbackToPlaintext = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}, true
	}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// Check logs in as the replica will, and sees that it is the image's origin that answers.
func (s *Source) Check(ctx context.Context, m respaldo.Manifest) error {
	address := net.JoinHostPort(s.Host, strconv.Itoa(s.Port))
	db, err := openAt("tcp", address, Account{User: s.User, Password: s.Password})
	if err != nil {
		return err
	}
	defer db.Close()
	cipher, err := queryRows(ctx, db, "SHOW STATUS LIKE 'Ssl_cipher'")
	if err != nil {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("cannot log in to the origin at %s as %s", address, s.User), Err: err,
			Hint: "see that the origin listens there (bind_address, firewall) and that the account exists; --replica-host and --replica-port say where the origin is reached from there"}
	}
	s.TLS = len(cipher) > 0 && cipher[0]["value"] != ""
	rows, err := queryRows(ctx, db, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uuid', 'server_uid', 'server_id', 'hostname', 'version', 'version_comment')")
	if err != nil {
		return err
	}
	vars := map[string]string{}
	for _, row := range rows {
		vars[row["variable_name"]] = row["value"]
	}
	if differs := notOrigin(vars, m); differs != "" {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the server at %s is not the one that the image is of: %s", address, differs),
			Hint: "--replica-host and --replica-port say where the origin is reached from there"}
	}
	rows, err = queryRows(ctx, db, "SHOW GRANTS")
	if err != nil {
		return err
	}
	var grants []string
	for _, row := range rows {
		for _, value := range row {
			grants = append(grants, value)
		}
	}
	if !mayReplicate(grants) {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the account " + s.User + " may not replicate from " + address, Hint: "GRANT REPLICATION SLAVE ON *.* TO it, at the origin"}
	}
	return nil
}

// notOrigin says in what a server differs from an image's origin; "" is nothing. The UUID
// tells servers apart, the server_id those that were copied with their UUID. An old MariaDB
// has no UUID; there the machine's name must do.
func notOrigin(vars map[string]string, m respaldo.Manifest) string {
	if uuid := firstOf(vars["server_uuid"], vars["server_uid"]); m.ServerUUID != "" && uuid != m.ServerUUID {
		return fmt.Sprintf("it has the UUID %q, and the image %q", uuid, m.ServerUUID)
	}
	names := []string{"server_id"}
	if m.ServerUUID == "" {
		names = append(names, "hostname")
	}
	for _, name := range names {
		if want := m.Variables[name]; want != "" && vars[name] != want {
			return fmt.Sprintf("it has %s=%s, and the image %s", name, vars[name], want)
		}
	}
	have, err := respaldo.ParseVersion(vars["version"], vars["version_comment"])
	if err != nil {
		return err.Error()
	}
	if have.Flavor != m.Version.Flavor || have.Major != m.Version.Major || have.Minor != m.Version.Minor {
		return fmt.Sprintf("it is %s, and the image is of %s", have, m.Version)
	}
	return ""
}

// mayReplicate looks for the privilege in what SHOW GRANTS says: a role, whose privileges
// are not listed, may have it.
func mayReplicate(grants []string) bool {
	for _, grant := range grants {
		if !strings.Contains(grant, " ON ") {
			return true
		}
		for _, one := range globalPrivileges(grant) {
			if one == "REPLICATION SLAVE" || one == "ALL PRIVILEGES" {
				return true
			}
		}
	}
	return false
}

// Followable refuses an image whose origin cannot be followed, whatever its address: nothing
// else need be tried then.
func Followable(m respaldo.Manifest) error {
	at := m.Quiesced.Coordinates
	if at.File == "" {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the origin keeps no binlog, so nothing can follow it", Hint: "set log_bin there"}
	}
	if own := firstOf(m.Variables["log_replica_updates"], m.Variables["log_slave_updates"]); len(at.Upstream) > 0 && own == "OFF" {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the origin is a replica that does not write what it applies to its binlog, so who follows it would lack that",
			Hint: "set log_replica_updates (log_slave_updates) there and restart it, or clone its own source"}
	}
	return nil
}

// RelayLog is what a replica's relay logs are called, in its data directory. The origin's
// name for them may lead to where another server of that machine has its own.
const RelayLog = "respaldo-relay"

// ForReplica are the options of an instance that is told whom to Follow.
func ForReplica() []string {
	return []string{"--innodb-fast-shutdown=1", "--relay-log=" + RelayLog, "--relay-log-index=" + RelayLog + ".index"}
}

// Follow makes the instance's image a replica from exactly where the image stands. What the
// image was a replica of is forgotten. An image that is not where its coordinates are is
// NotProved, and left as it is. The instance has the options ForReplica.
func (i *Instance) Follow(ctx context.Context, s Source) error {
	m := i.request.Manifest
	if err := Followable(m); err != nil {
		return err
	}
	if inexact, err := i.Inexact(ctx); err != nil {
		return err
	} else if inexact != "" {
		return &respaldo.Error{Kind: respaldo.NotProved, What: "the copy cannot follow the origin from the image's coordinates", Err: errors.New(inexact),
			Hint: "make the replica from another image"}
	}
	conn, err := i.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "SET SESSION sql_mode=''"); err != nil { // for quoteText
		return err
	}
	statements, err := followStatements(ctx, conn, s, m)
	if err != nil {
		return err
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			what, _, _ := strings.Cut(statement, " TO ")
			err = s.redacted(err)
			return &respaldo.Error{Kind: respaldo.NotProved, What: "cannot make the copy a replica (" + what + ")", Hint: "its log is " + i.LogPath(), Err: err}
		}
	}
	if m.Version.Flavor == respaldo.MySQL && gtidOn(m) {
		var holds int
		err := conn.QueryRowContext(ctx, "SELECT GTID_SUBSET("+quoteText(m.Quiesced.Coordinates.GTIDSet)+", @@GLOBAL.gtid_executed)").Scan(&holds)
		if err == nil && holds == 0 {
			err = &respaldo.Error{Kind: respaldo.NotProved, What: "the copy does not hold the transactions that its coordinates name: " + m.Quiesced.Coordinates.GTIDSet,
				Hint: "do not use it as a replica: take another image, and see the origin's error log"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// redacted takes the password out of an error: a server repeats what it does not understand,
// as it was written.
func (s Source) redacted(err error) error {
	if s.Password == "" {
		return err
	}
	quoted := quoteText(s.Password)
	return errors.New(strings.NewReplacer(quoted[1:len(quoted)-1], hidden, s.Password, hidden).Replace(err.Error()))
}

func gtidOn(m respaldo.Manifest) bool { return m.Variables["gtid_mode"] == "ON" }

func followStatements(ctx context.Context, q queryer, s Source, m respaldo.Manifest) (statements []string, err error) {
	at, v := m.Quiesced.Coordinates, m.Version
	source, replica := "MASTER", "SLAVE"
	if v.AtLeast(respaldo.MySQL, 8, 0, 23) {
		source, replica = "SOURCE", "REPLICA"
	}
	options := []string{source + "_HOST=" + quoteText(s.Host), fmt.Sprintf("%s_PORT=%d", source, s.Port),
		source + "_USER=" + quoteText(s.User), source + "_PASSWORD=" + quoteText(s.Password)}
	if s.TLS {
		options = append(options, source+"_SSL=1")
	} else if v.Flavor == respaldo.MySQL && v.AtLeast(respaldo.MySQL, 8, 0, 4) {
		// Else an account of the default kind cannot send its password.
		options = append(options, map[bool]string{true: "GET_SOURCE_PUBLIC_KEY=1", false: "GET_MASTER_PUBLIC_KEY=1"}[source == "SOURCE"])
	}
	position := fmt.Sprintf("%[1]s_LOG_FILE=%[2]s, %[1]s_LOG_POS=%[3]d", source, quoteText(at.File), at.Position)
	if v.Flavor == respaldo.MariaDB {
		channels, err := queryRows(ctx, q, replicaStatusStatement(v))
		if err != nil {
			return nil, err
		}
		for _, c := range channels {
			statements = append(statements, "RESET SLAVE "+quoteText(c["connection_name"])+" ALL")
		}
		options = append(options, "MASTER_SSL_VERIFY_SERVER_CERT=0")
		if !s.TLS {
			options = append(options, "MASTER_SSL=0")
		}
		if at.GTIDSet != "" {
			// The origin's own binlogs came along, and contradict any position that is set.
			statements = append(statements, "RESET MASTER", "SET GLOBAL gtid_slave_pos="+quoteText(at.GTIDSet))
			position = "MASTER_USE_GTID=slave_pos"
		}
		return append(statements, "CHANGE MASTER TO "+strings.Join(append(options, position), ", ")), nil
	}
	if gtidOn(m) {
		position = source + "_AUTO_POSITION=1"
	}
	change := "CHANGE MASTER TO "
	if source == "SOURCE" {
		change = "CHANGE REPLICATION SOURCE TO "
	}
	return []string{"RESET " + replica + " ALL", change + strings.Join(append(options, position), ", ")}, nil
}

// quoteText quotes for a session without a sql_mode: one of them makes backslashes letters.
func quoteText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\x00", `\0`, "\n", `\n`).Replace(s) + "'"
}
