package mysql

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// Options say which server, as far as the command line and our configuration do.
// Everything else, the password above all, comes from MySQL's own option files and
// the environment (MYSQL_PWD, MYSQL_HOST, MYSQL_TCP_PORT, MYSQL_UNIX_PORT).
type Options struct {
	// DefaultsFile replaces all option files; one that does not exist, or that
	// everybody may write to, is an error.
	DefaultsFile string
	Socket       string
	Host         string
	Port         int // given without a host or socket, it means TCP to 127.0.0.1
	User         string
}

// clientGroups are the groups that the mysql and mariadb clients read, and ours.
// Which flavor the server is we learn only after connecting.
var clientGroups = []string{"client", "client-server", "client-mariadb", "respaldo"}

// Where distributions put the socket; the first that accepts a connection is taken.
var defaultSockets = []string{
	"/run/mysqld/mysqld.sock",
	"/var/run/mysqld/mysqld.sock",
	"/var/lib/mysql/mysql.sock",
	"/run/mysql/mysql.sock",
	"/var/run/mysql/mysql.sock",
	"/tmp/mysql.sock",
}

// target is where and as whom to connect, all sources merged.
type target struct {
	network   string   // "unix" or "tcp"
	addresses []string // tried in turn
	user      string
	password  string
	tls       *tls.Config
	fallback  bool // to plain text, where TLS is only preferred
	cleartext bool
	read      []string // option files
	warnings  []string
}

// String never shows a password.
func (t target) String() string {
	return fmt.Sprintf("%s as user %q", strings.Join(t.addresses, " or "), t.user)
}

// clientOptionFiles is the order of MySQL's and MariaDB's clients; the two agree
// except for build-time folders.
func clientOptionFiles() []string {
	files := []string{"/etc/my.cnf", "/etc/mysql/my.cnf"}
	if home := homeDir(); home != "" {
		files = append(files, filepath.Join(home, ".my.cnf"))
	}
	return files
}

func homeDir() string {
	if home := os.Getenv("HOME"); home != "" {
		return home
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}

func loginName() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

// clientSettings is what the option files say about connecting.
type clientSettings struct {
	host, socket, user, password, protocol string
	port                                   int
	tls                                    tlsSettings
	cleartext                              bool
}

func resolveTarget(o Options) (target, error) {
	files := clientOptionFiles()
	if o.DefaultsFile != "" {
		info, err := os.Stat(o.DefaultsFile)
		if err == nil && info.IsDir() {
			err = errors.New("is a directory")
		}
		if err != nil {
			return target{}, &respaldo.Error{Kind: respaldo.Usage, What: "cannot read option file " + o.DefaultsFile, Hint: "give --defaults-file the path of an existing file", Err: err}
		}
		files = []string{o.DefaultsFile}
	}
	parsed, err := readOptionFiles(files, clientGroups)
	if err != nil {
		return target{}, &respaldo.Error{Kind: respaldo.Usage, What: "cannot understand the MySQL option files", Hint: "correct the line", Err: err}
	}
	if o.DefaultsFile != "" && len(parsed.read) == 0 {
		return target{}, &respaldo.Error{Kind: respaldo.Usage, What: "cannot use option file " + o.DefaultsFile,
			Hint: "it must be readable by us and writable by its owner only: chmod 600 " + o.DefaultsFile, Err: errors.New(strings.Join(append(parsed.warnings, "not read"), "; "))}
	}
	c := clientSettings{
		host:     os.Getenv("MYSQL_HOST"),
		socket:   os.Getenv("MYSQL_UNIX_PORT"),
		password: os.Getenv("MYSQL_PWD"),
	}
	if port := os.Getenv("MYSQL_TCP_PORT"); port != "" {
		if c.port, err = parsePort(port); err != nil {
			return target{}, &respaldo.Error{Kind: respaldo.Usage, What: "environment variable MYSQL_TCP_PORT", Err: err}
		}
	}
	for _, opt := range parsed.options {
		if err := c.apply(opt); err != nil {
			return target{}, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%s line %d", opt.file, opt.line), Hint: "correct the line", Err: err}
		}
	}
	t, err := c.target(o)
	t.read, t.warnings = parsed.read, parsed.warnings
	return t, err
}

// apply takes over one option. Those of [client] that we do not know concern other
// programs; in [respaldo] they are mistakes, unless they are loose.
func (c *clientSettings) apply(opt option) (err error) {
	switch opt.name {
	case "user":
		c.user = opt.value
	case "password":
		if !opt.bare { // bare it asks for a prompt, which a backup at night cannot answer
			c.password = opt.value
		}
	case "host":
		c.host = opt.value
	case "port":
		c.port, err = parsePort(opt.value)
	case "socket":
		c.socket = opt.value
	case "protocol":
		c.protocol = strings.ToLower(opt.value)
		if c.protocol != "tcp" && c.protocol != "socket" {
			err = fmt.Errorf("protocol %q: only tcp and socket exist here", opt.value)
		}
	case "enable-cleartext-plugin":
		c.cleartext = opt.isTrue()
	case "disable-enable-cleartext-plugin", "skip-enable-cleartext-plugin":
		c.cleartext = false
	default:
		var known bool
		if known, err = c.tls.apply(opt); known {
			return err
		}
		if opt.group == "respaldo" && !opt.loose {
			err = fmt.Errorf("unknown option %q in [respaldo]", opt.name)
		}
	}
	return err
}

// isTrue reads a boolean option: bare or 1, ON, TRUE.
func (o option) isTrue() bool {
	switch strings.ToLower(o.value) {
	case "1", "on", "true", "yes":
		return true
	}
	return o.bare
}

func parsePort(s string) (int, error) {
	port, err := strconv.Atoi(s)
	if err != nil || port < 0 || port > 65535 {
		return 0, fmt.Errorf("%q is no port number", s)
	}
	return port, nil
}

func (c clientSettings) target(o Options) (target, error) {
	t := target{user: firstOf(o.User, c.user, loginName()), password: c.password, cleartext: c.cleartext}
	host, socket, port, protocol := c.host, c.socket, c.port, c.protocol
	switch { // what is on the command line decides between socket and TCP, too
	case o.Host != "":
		host, protocol = o.Host, ""
		if o.Socket != "" {
			socket = o.Socket
		}
	case o.Socket != "":
		host, socket, protocol = "", o.Socket, "socket"
	case o.Port != 0:
		protocol = "tcp"
	}
	if o.Port != 0 {
		port = o.Port
		if o.Socket == "" {
			protocol = "tcp"
		}
	}
	if protocol == "" {
		protocol = "tcp"
		if host == "" || host == "localhost" { // the special meaning that every MySQL client gives it
			protocol = "socket"
		}
	}
	var err error
	if protocol == "tcp" {
		if host == "" || host == "localhost" {
			host = "127.0.0.1" // as MySQL's clients do: the server may listen on IPv4 only
		}
		if port == 0 {
			port = 3306
		}
		t.network, t.addresses = "tcp", []string{net.JoinHostPort(host, strconv.Itoa(port))}
		t.tls, t.fallback, err = c.tls.config(host, false)
	} else {
		t.network, t.addresses = "unix", defaultSockets
		if socket != "" {
			t.addresses = []string{socket}
		}
		t.tls, t.fallback, err = c.tls.config("localhost", true)
	}
	if err != nil {
		err = &respaldo.Error{Kind: respaldo.Usage, What: "TLS options for the connection to the server", Hint: "correct the ssl-* options in the option files", Err: err}
	}
	return t, err
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// tlsSettings are the ssl-* options of both flavors' clients.
type tlsSettings struct {
	mode                  string // MySQL's ssl-mode, upper case; empty: not said
	ssl                   string // MariaDB's ssl: "", "on", "off"
	verify                bool   // MariaDB's ssl-verify-server-cert
	ca, capath, cert, key string
	versions              string
}

func (s *tlsSettings) apply(opt option) (known bool, err error) {
	switch opt.name {
	case "ssl-mode":
		s.mode = strings.ToUpper(opt.value)
		switch s.mode {
		case "DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY":
		default:
			err = fmt.Errorf("ssl-mode %q is none of DISABLED, PREFERRED, REQUIRED, VERIFY_CA, VERIFY_IDENTITY", opt.value)
		}
	case "ssl", "enable-ssl":
		s.ssl = "off"
		if opt.isTrue() {
			s.ssl = "on"
		}
	case "skip-ssl", "disable-ssl":
		s.ssl = "off"
	case "ssl-verify-server-cert":
		s.verify = opt.isTrue()
	case "skip-ssl-verify-server-cert", "disable-ssl-verify-server-cert":
		s.verify = false
	case "ssl-ca":
		s.ca = opt.value
	case "ssl-capath":
		s.capath = opt.value
	case "ssl-cert":
		s.cert = opt.value
	case "ssl-key":
		s.key = opt.value
	case "tls-version":
		s.versions = opt.value
	case "ssl-cipher", "tls-ciphersuites", "ssl-crl", "ssl-crlpath":
		err = fmt.Errorf("option %s is not supported", opt.name)
		if opt.group != "respaldo" || opt.loose { // meant for other clients
			err = nil
		}
	default:
		return false, nil
	}
	return true, err
}

var tlsVersions = map[string]uint16{"TLSv1": tls.VersionTLS10, "TLSv1.0": tls.VersionTLS10, "TLSv1.1": tls.VersionTLS11, "TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}

// config is nil where the connection is to be plain. Over TCP the default is to
// prefer TLS without insisting, over a socket to do without, as MySQL's clients do.
func (s tlsSettings) config(host string, socket bool) (c *tls.Config, fallback bool, err error) {
	mode := s.mode
	if mode == "" {
		switch {
		case socket, s.ssl == "off":
			mode = "DISABLED"
		case s.verify:
			mode = "VERIFY_IDENTITY"
		case s.ca != "" || s.capath != "":
			mode = "VERIFY_CA" // what MySQL's clients conclude from a CA without a mode
		case s.ssl == "on" || s.cert != "":
			mode = "REQUIRED"
		default:
			mode = "PREFERRED"
		}
	}
	if mode == "DISABLED" || socket && mode == "PREFERRED" {
		return nil, false, nil
	}
	c = &tls.Config{ServerName: host, InsecureSkipVerify: true}
	if s.cert != "" || s.key != "" {
		pair, err := tls.LoadX509KeyPair(firstOf(s.cert, s.key), firstOf(s.key, s.cert))
		if err != nil {
			return nil, false, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if mode == "VERIFY_CA" || mode == "VERIFY_IDENTITY" {
		pool, err := s.roots()
		if err != nil {
			return nil, false, err
		}
		if mode == "VERIFY_IDENTITY" {
			c.RootCAs, c.InsecureSkipVerify = pool, false
		} else {
			c.VerifyConnection = verifyChain(pool)
		}
	}
	if s.versions != "" {
		for _, name := range strings.Split(s.versions, ",") {
			v, ok := tlsVersions[strings.TrimSpace(name)]
			if !ok {
				return nil, false, fmt.Errorf("unknown tls-version %q", name)
			}
			if c.MinVersion == 0 || v < c.MinVersion {
				c.MinVersion = v
			}
			c.MaxVersion = max(c.MaxVersion, v)
		}
	}
	return c, mode == "PREFERRED", nil
}

// roots is nil, the system's, when no CA is named.
func (s tlsSettings) roots() (*x509.CertPool, error) {
	files := []string{}
	if s.ca != "" {
		files = append(files, s.ca)
	}
	if s.capath != "" {
		found, err := filepath.Glob(filepath.Join(s.capath, "*"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	any := false
	for _, f := range files {
		pem, err := os.ReadFile(f)
		if err != nil && f == s.ca {
			return nil, err
		}
		any = pool.AppendCertsFromPEM(pem) || any
	}
	if !any {
		return nil, fmt.Errorf("no certificate in %s", strings.Join(files, ", "))
	}
	return pool, nil
}

// verifyChain checks the chain but not the host name: VERIFY_CA.
func verifyChain(pool *x509.CertPool) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		between := x509.NewCertPool()
		for _, cert := range state.PeerCertificates[1:] {
			between.AddCert(cert)
		}
		_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between})
		return err
	}
}
