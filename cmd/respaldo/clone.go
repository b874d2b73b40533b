package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/config"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	runner "github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/transfer"
)

// replicaGroup is the group of MySQL's option files that holds the replication account.
const replicaGroup = "respaldo-replica"

func newCloneCmd(a *app) *cobra.Command {
	var request backup.CloneRequest
	var places, sshOptions []string
	var bandwidth config.Size
	var replica, sudo bool
	var source mysql.Source
	var passwordFile, mysqld string
	cmd := &cobra.Command{
		Use:     "clone IMAGE ssh://[user@]host[:port]/DIR",
		GroupID: groupRestore,
		Short:   "Send an image to another node, and start a server or a replica there",
		Long: `Sends an image over your own OpenSSH (its configuration, keys and known hosts) straight
into DIR on another node: over several connections, compressed, every block checked. IMAGE
is "now", a kept snapshot, or a backup: an ID, the beginning of one, or "latest".

The other node needs sshd and, to start a server, the server's packages. This very program
is carried to the cache folder of the user there, unless it is there already.

DIR must be empty; --force replaces what is in it. Until all is there and on disk, DIR
holds a file .respaldo-incomplete; the same command again sends what is missing.
--refresh brings an earlier clone up to date and sends only what differs; a server that was
started on it is stopped first.

--start starts a server on the clone that lives on by itself, by an option file DIR.cnf.
--replica also makes it a replica of the origin, read-only, from exactly where the image
stands, and waits until it follows. The replication account is that of --replica-user, or
of the group [` + replicaGroup + `] in the MySQL option files.`,
		Example: `  respaldo clone now ssh://db2/var/lib/mysql
  respaldo clone latest ssh://root@db2.example.com/srv/mysql --start --port 3307
  respaldo clone now ssh://root@db2/srv/mysql --replica --replica-host 10.0.0.1
  respaldo clone now ssh://root@db2/srv/mysql --replica --refresh --bandwidth 50MiB`,
		Args: exactArgs("IMAGE", "ssh://[user@]host[:port]/DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if request.Node, request.To, err = transfer.ParseNode(args[1]); err != nil {
				return err
			}
			if request.Parallel < 1 || request.Parallel > 64 {
				return usageError("--parallel is a number from 1 to 64", "")
			}
			if net.ParseIP(request.Server.Bind) == nil {
				return usageError("--bind: "+request.Server.Bind+" is no IP address", "0.0.0.0 lets other machines in")
			}
			site, err := a.site()
			if err != nil {
				return err
			}
			request.Image, request.Of, request.Self, request.Places = args[0], a.flags.server, "/proc/self/exe", map[string]string{}
			request.Node.Options, request.Node.Sudo, request.Node.Run = sshOptions, sudo, site.Run
			request.Bandwidth, request.Server.Mysqld = int64(bandwidth), strings.Fields(mysqld)
			for _, p := range places {
				name, dir, ok := strings.Cut(p, "=")
				if !ok || name == "" || !strings.HasPrefix(dir, "/") {
					return usageError("--place "+p+" is not NAME=/DIR", "respaldo show lists the names of a backup")
				}
				request.Places[name] = dir
			}
			if replica {
				if err := a.replicationAccount(&source, site.MySQL, passwordFile); err != nil {
					return err
				}
				request.Replica = &source
			}
			done, err := site.Clone(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.show(done, func(p *page) { showCloned(p, done) })
		},
	}
	f := cmd.Flags()
	f.BoolVar(&request.Force, "force", false, "replace what the directories hold")
	f.BoolVar(&request.Refresh, "refresh", false, "bring an earlier clone of this server up to date")
	f.StringArrayVar(&places, "place", nil, "`NAME=/DIR` for a place outside the data directory; may be repeated")
	f.BoolVar(&request.Start, "start", false, "start a server on the clone, which lives on by itself")
	f.BoolVar(&replica, "replica", false, "make that server a replica of the origin, and wait until it follows")
	f.StringVar(&source.User, "replica-user", "", "replication `ACCOUNT` at the origin; without it, that of the group ["+replicaGroup+"] in the option files")
	f.StringVar(&passwordFile, "replica-password-file", "", "`FILE` with that account's password")
	f.StringVar(&source.Host, "replica-host", "", "`HOST` where the replica reaches the origin; without it, the origin's report_host, or the address that ssh came from")
	f.IntVar(&source.Port, "replica-port", 0, "`PORT` where the replica reaches the origin; without it, the origin's own")
	f.IntVar(&request.Server.Port, "port", 3306, "TCP `PORT` of the started server")
	f.StringVar(&request.Server.Bind, "bind", "127.0.0.1", "IP `ADDRESS` that it listens on; 0.0.0.0 lets other machines in")
	f.StringVar(&request.Server.Socket, "socket", "", "`PATH` of its socket; without it, mysqld.sock in DIR")
	f.StringVar(&mysqld, "mysqld", "", "server `PROGRAM` there; without it, the origin's path, or where distributions put it")
	f.StringArrayVar(&request.Server.Options, "set", nil, "`NAME=VALUE` for its option file; may be repeated")
	f.IntVar(&request.Parallel, "parallel", 4, "`NUMBER` of connections")
	f.Var(&bandwidth, "bandwidth", "most that goes over all connections in a second (50MiB)")
	f.StringArrayVarP(&sshOptions, "ssh-option", "o", nil, "`OPTION` for ssh, as its own -o; may be repeated")
	f.BoolVar(&sudo, "sudo", false, "be root on the other node by sudo, which must not ask for a password")
	f.StringVar(&request.Program, "remote-program", "", "`PATH` of respaldo there, of this version, in place of the one that is carried")
	return cmd
}

// replicationAccount finds the account that the replica logs in with at the origin.
func (a *app) replicationAccount(s *mysql.Source, o mysql.Options, passwordFile string) error {
	found, err := mysql.ReplicationLogin(o, replicaGroup)
	if err != nil {
		return err
	}
	s.Password = found.Password
	if s.User == "" {
		s.User = found.User
	}
	if passwordFile != "" {
		text, err := os.ReadFile(passwordFile)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return usageError("--replica-password-file: "+err.Error(), "")
		}
		if err != nil {
			return err
		}
		s.Password = strings.TrimRight(string(text), "\r\n")
	}
	if s.User == "" {
		return usageError("no replication account is given", "give --replica-user and --replica-password-file, or user and password in the group ["+replicaGroup+"] of the MySQL option file")
	}
	a.secrets.add(s.Password)
	return nil
}

func showCloned(p *page, done backup.Cloned) {
	f := newFields()
	f.field("clone", fmt.Sprintf("%s on %s", done.Image, done.Node))
	f.field("as of", fmt.Sprintf("%s at %s", formatTime(done.Taken), done.At))
	f.field("sent", fmt.Sprintf("%d files, %s in %s", done.Files, backup.FormatBytes(done.Bytes), backup.FormatSeconds(done.Seconds)))
	f.field("of that", fmt.Sprintf("%s differed, %s went over the wire", backup.FormatBytes(done.Changed), backup.FormatBytes(done.Carried)))
	for _, name := range slices.Sorted(maps.Keys(done.Targets)) {
		f.field(name, done.Targets[name])
	}
	if r := done.Running; r != nil {
		f.field("server", fmt.Sprintf("process %d, listens on %s", r.PID, net.JoinHostPort(r.Bind, strconv.Itoa(r.Port))))
		f.field("socket", r.Socket)
		f.field("options", r.OptionFile)
		f.field("log", r.Log)
	}
	if done.Following != nil {
		f.field("follows", "has applied "+done.Following.String()+", where the origin stood after its start")
	}
	f.field("program", done.Program)
	p.table(f)
	for _, w := range done.Warnings {
		p.printf("\nnote: %s\n", w)
	}
	if r := done.Running; r != nil {
		p.printf("\nIt lives on by itself, until that machine is shut down. To stop it there:\n\n  kill %d\n\nTo start it again, or as ExecStart in a systemd unit with Type=simple and the User that owns the files:\n\n  %s\n", r.PID, r.Command)
		return
	}
	p.printf("\nA server needs these options to run on it:\n\n[mysqld]\n%s\n", strings.Join(done.Options, "\n"))
}

// newReceiveCmd is what clone starts on the other node.
func newReceiveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "receive",
		Hidden: true,
		Short:  "The other end of respaldo clone",
		Long: `Receives what respaldo clone sends, at standard input and output. It is started by ssh,
and ends with the connection.`,
		Example: `  respaldo clone now ssh://db2/var/lib/mysql`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			site := &backup.Site{Server: "clone", Host: hostName(), Program: buildVersion().Version, StateDir: c.StateDir, RunDir: c.RunDir, LVMConfig: c.LVMConfig,
				Run: runner.Local{Log: a.log}, Log: a.log, Report: a.progress()}
			return site.Receive(cmd.Context(), os.Stdin, a.stdout)
		},
	}
}
