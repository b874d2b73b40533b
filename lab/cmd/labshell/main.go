// Labshell runs inside a guest: it starts a MariaDB on a logical volume, configures
// respaldo for it, and gives the person at the terminal a shell.
package main

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

const welcome = `
MariaDB 10.11 runs on the logical volume %s, mounted on %s.
respaldo is on the PATH and configured in /etc/respaldo/respaldo.toml; the repository is to
be made in /srv/backup/repository. Try:

  respaldo check
  respaldo init
  respaldo backup
  respaldo list

mysql -e "…" speaks to the server. exit ends the lab, and everything in it is gone.

`

func main() {
	guest.Main(func(t guest.T) {
		fmt.Println("The lab is up; starting a server…")
		v := guest.NewVolume(t, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 1 << 30, Path: "/srv/db"})
		guest.NewFolder(t, 1, "/srv/backup")
		s := guest.StartServer(t, guest.ServerSpec{Name: "mariadb-10.11", DataDir: "/srv/db/mysql", Port: 3306})
		s.Exec(t, "CREATE DATABASE shop", "CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, item VARCHAR(100))",
			"INSERT INTO shop.orders (item) VALUES ('bread'), ('salt')")
		guest.Configure(t, "/etc/respaldo", s, "/srv/backup/repository", `max_lock = "5s" # the lab is slow`)
		client, err := os.ReadFile(s.OptionFile)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/root/.my.cnf", client, 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Printf(welcome, v.LV, v.Path)
		shell := exec.Command("/bin/bash", "-i")
		shell.Stdin, shell.Stdout, shell.Stderr = os.Stdin, os.Stdout, os.Stderr
		shell.Dir = "/root"
		shell.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/cache/servers/mariadb-10.11/bin")
		shell.Run() // its exit code is that of the person's last command
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	})
}
