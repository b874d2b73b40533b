package mysql

import (
	"database/sql"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// Every version's image is served to people: by port and socket, with the accounts that it
// holds, and with one of ours that no binlog knows of.
func TestImageIsServed(t *testing.T) {
	t.Parallel()
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r := o.clean.request(t)
			if err := os.MkdirAll(r.Scratch, 0o700); err != nil {
				t.Fatal(err)
			}
			r.SocketDir = filepath.Join(filepath.Dir(r.Scratch), "so")
			if err := os.Mkdir(r.SocketDir, 0o755); err != nil {
				t.Fatal(err)
			}
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			port := free.Addr().(*net.TCPAddr).Port
			free.Close()
			i, account, err := Serve(t.Context(), r, ServeOptions{Bind: "127.0.0.1", Port: port})
			if err != nil {
				t.Fatal(err)
			}
			defer stopInstance(t, i)

			if _, err := os.Stat(filepath.Join(r.Scratch, initFile)); !os.IsNotExist(err) {
				t.Errorf("the password lies about: %v", err)
			}
			login := func(user, password, net, address string) *sql.DB {
				c := driver.NewConfig()
				c.User, c.Passwd, c.Net, c.Addr, c.Logger = user, password, net, address, &driver.NopLogger{}
				connector, err := driver.NewConnector(c)
				if err != nil {
					t.Fatal(err)
				}
				db := sql.OpenDB(connector)
				t.Cleanup(func() { db.Close() })
				return db
			}
			rows, err := rowsOf(t.Context(), login("root", "", "unix", i.Socket()))
			if err != nil || rows != o.clean.rows {
				t.Errorf("an account of the image sees, %v,\n%sand not\n%s", err, rows, o.clean.rows)
			}
			if err := login("root", "wrong", "unix", i.Socket()).Ping(); err == nil {
				t.Error("accounts are not checked")
			}
			dialed, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				t.Errorf("nobody is at the port: %v", err)
			} else {
				dialed.Close()
			}
			var readOnly int
			if err := login(account.User, account.Password, "unix", i.Socket()).QueryRow("SELECT @@GLOBAL.read_only").Scan(&readOnly); err != nil || readOnly != 1 {
				t.Errorf("our account: read_only is %d, %v", readOnly, err)
			}
			at, err := i.Coordinates(t.Context())
			if want := o.clean.manifest.Quiesced.Coordinates.GTIDSet; err != nil || at.GTIDSet != want {
				t.Errorf("our account got into the binlog: %s, not %s, %v", at.GTIDSet, want, err)
			}
		})
	}
}
