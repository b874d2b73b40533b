package mysql

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// pair is a source, or two, and a replica of theirs, of the same version.
type pair struct {
	sources []*box
	replica *box
	channel []string // one for each source; "" where there is one only
	server  *Server  // the replica, as our program sees it
	// before are each source's coordinates with its table dN.t made, and empty.
	before []respaldo.Coordinates
	uuid   []string
}

// pairSpec says how a pair is made.
type pairSpec struct {
	name    string
	sources int
	gtid    bool     // the replica follows by GTIDs
	source  []string // more options
	replica []string
}

func startPair(t *testing.T, spec pairSpec) *pair {
	t.Helper()
	p := &pair{}
	maria := strings.HasPrefix(spec.name, "mariadb")
	position := spec.name == "mysql-9.7" && !spec.gtid || spec.name == "mysql-5.6" && !spec.gtid
	common := func(n int) []string {
		args := []string{"--server-id=" + strconv.Itoa(n)}
		if maria {
			args = append(args, "--gtid-domain-id="+strconv.Itoa(n))
		}
		if position {
			args = append(args, "--gtid-mode=OFF", "--enforce-gtid-consistency=OFF")
		}
		return args
	}
	ports := make([]int, max(spec.sources, 1))
	boxes := make([]*box, len(ports)+1)
	var group sync.WaitGroup
	for n := range boxes {
		group.Go(func() {
			boxes[n] = startBox(t, spec.name, func(b *box, s *servers.Spec) {
				s.Args = append(s.Args, common(n+1)...)
				if n == len(ports) {
					relay := "relay"
					if spec.gtid { // they are of no use to an image then
						relay = filepath.Join(b.mkdir(t, "relay"), relay)
					}
					s.Args = append(append(s.Args, "--relay-log="+relay), spec.replica...)
					return
				}
				ports[n] = freePort(t)
				s.Port, s.Args = ports[n], append(s.Args, spec.source...)
			})
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	p.sources, p.replica = boxes[:len(ports)], boxes[len(ports)]
	p.server = p.replica.server(t)
	v := p.server.Version()
	for n, source := range p.sources {
		source.exec(t, "CREATE USER 'repl'@'127.0.0.1' IDENTIFIED BY 'secret'", "GRANT REPLICATION SLAVE ON *.* TO 'repl'@'127.0.0.1'")
		s := source.server(t)
		at, err := s.Coordinates(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		name := ""
		if len(p.sources) > 1 {
			name = fmt.Sprintf("from-%d", n+1)
		}
		p.channel = append(p.channel, name)
		p.replica.exec(t, follow(v, name, ports[n], at, spec.gtid)...)
		source.exec(t, fmt.Sprintf("CREATE DATABASE d%d", n+1),
			fmt.Sprintf("CREATE TABLE d%d.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT) ENGINE=InnoDB", n+1))
		if at, err = s.Coordinates(t.Context()); err != nil {
			t.Fatal(err)
		}
		vars, err := queryRows(t.Context(), source.root, "SHOW GLOBAL VARIABLES LIKE 'server_uuid'")
		if err != nil {
			t.Fatal(err)
		}
		p.before, p.uuid = append(p.before, at), append(p.uuid, "")
		for _, v := range vars {
			p.uuid[n] = v["value"]
		}
	}
	for n := range p.sources {
		waitFor(t, "the replica to follow", func() bool {
			_, err := p.replica.root.Exec(fmt.Sprintf("SELECT 1 FROM d%d.t LIMIT 1", n+1))
			return err == nil
		})
	}
	return p
}

// follow are the statements that make a server a replica from the coordinates on.
func follow(v respaldo.Version, channel string, port int, at respaldo.Coordinates, gtid bool) []string {
	if v.AtLeast(respaldo.MySQL, 8, 0, 23) {
		position := fmt.Sprintf("SOURCE_LOG_FILE='%s', SOURCE_LOG_POS=%d", at.File, at.Position)
		if gtid {
			position = "SOURCE_AUTO_POSITION=1"
		}
		return []string{"SET GLOBAL super_read_only=0",
			fmt.Sprintf("CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=%d, SOURCE_USER='repl', SOURCE_PASSWORD='secret', GET_SOURCE_PUBLIC_KEY=1, SOURCE_CONNECT_RETRY=1, %s FOR CHANNEL '%s'", port, position, channel),
			fmt.Sprintf("START REPLICA FOR CHANNEL '%s'", channel)}
	}
	position := fmt.Sprintf("MASTER_LOG_FILE='%s', MASTER_LOG_POS=%d", at.File, at.Position)
	change, start := "CHANGE MASTER TO", "START SLAVE"
	more := ", MASTER_CONNECT_RETRY=1"
	switch {
	case v.Flavor == respaldo.MariaDB:
		change, start = "CHANGE MASTER '"+channel+"' TO", "START SLAVE '"+channel+"'"
		position += ", MASTER_USE_GTID=" + map[bool]string{true: "slave_pos", false: "no"}[gtid]
		if gtid {
			position = "MASTER_USE_GTID=slave_pos"
		}
		if v.AtLeast(respaldo.MariaDB, 11, 3, 0) {
			more += ", MASTER_SSL=0"
		}
	case gtid:
		position = "MASTER_AUTO_POSITION=1"
	}
	return []string{fmt.Sprintf("%s MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='repl', MASTER_PASSWORD='secret'%s, %s", change, port, more, position), start}
}
