package guest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// A server as a distribution's package sets it up, for guests that systemd runs in.

// What Debian's package of MariaDB calls them.
const (
	Unit       = "mariadb.service"
	UnitServer = "mariadb-10.11"
	unitData   = "/var/lib/mysql"
	unitSocket = "/run/mysqld/mysqld.sock"
)

// unitFile is what matters of Debian's: it waits for the server to say that it is up, and
// runs it in a mount namespace of its own.
const unitFile = `[Unit]
Description=MariaDB database server
After=network.target
[Install]
WantedBy=multi-user.target
[Service]
Type=notify
User=mysql
Group=mysql
ProtectSystem=full
ProtectHome=true
PermissionsStartOnly=true
ExecStartPre=/usr/bin/install -m 755 -o mysql -g root -d /var/run/mysqld
ExecStart=/usr/sbin/mariadbd $MYSQLD_OPTS
KillSignal=SIGTERM
SendSIGKILL=no
Restart=on-abnormal
RestartSec=5s
UMask=007
TimeoutStartSec=900
TimeoutStopSec=900
`

// InstallPrograms puts a server's programs where a package would.
func InstallPrograms(t T, server string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(servers.Binary(server, "mysqld")))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join("/usr/bin", e.Name())
		if strings.HasSuffix(path, "d") { // mysqld, mariadbd
			path = filepath.Join("/usr/sbin", e.Name())
		}
		script := "#!/bin/sh\nexec " + servers.Binary(server, e.Name()) + ` "$@"` + "\n"
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// InstallUnit sets MariaDB up as Debian's package does, with its binlogs on, and starts it by
// systemctl. Nothing goes away at the end of the test: the guest does.
func InstallUnit(t T) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := servers.Init(ctx, UnitServer, unitData); err != nil {
		t.Fatal(err)
	}
	Chown(t, unitData)
	InstallPrograms(t, UnitServer)
	options := "[mysqld]\npid-file = /run/mysqld/mysqld.pid\nbind-address = 127.0.0.1\nlog_bin = mysql-bin\nserver-id = 1\n" +
		"innodb-buffer-pool-size = 64M\nloose-innodb-buffer-pool-size-max = 256M\nperformance-schema = OFF\n"
	for _, option := range servers.Options(UnitServer) {
		options += strings.TrimPrefix(option, "--") + "\n"
	}
	for path, text := range map[string]string{
		"/etc/mysql/mariadb.cnf":                  "[client-server]\nsocket = " + unitSocket + "\n!includedir /etc/mysql/conf.d/\n!includedir /etc/mysql/mariadb.conf.d/\n",
		"/etc/mysql/mariadb.conf.d/50-server.cnf": options,
		"/etc/mysql/conf.d/mysql.cnf":             "[mysql]\n",
		"/lib/systemd/system/" + Unit:             unitFile,
		"/root/.my.cnf":                           "[client]\nuser = root\nsocket = " + unitSocket + "\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("mariadb.cnf", "/etc/mysql/my.cnf"); err != nil {
		t.Fatal(err)
	}
	Run(t, "systemctl", "enable", "--now", "--quiet", Unit)
	return OpenUnit(t)
}

// OpenUnit connects to the server that InstallUnit has set up, in this boot or in an earlier
// one. It is systemd's to stop and to start: DB alone is closed at the end of the test, and
// works again after a restart.
func OpenUnit(t T) *Server {
	t.Helper()
	s := &Server{OptionFile: "/root/.my.cnf", DataDir: unitData, Name: UnitServer, DB: servers.OpenSocket(unitSocket)}
	t.Cleanup(func() { s.DB.Close() })
	if err := s.DB.Ping(); err != nil {
		t.Fatal(err)
	}
	return s
}
