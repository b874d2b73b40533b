package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

const (
	disk       = "/dev/ubdb"
	shopTables = "CHECKSUM TABLE shop.customers, shop.orders, shop.countries"
	copyDir    = "/srv/copy"
	startDir   = "/srv/started"
)

// steps is the second act: two machines, on the first of them a server as Debian's package
// sets it up, and what its people do with snapshots, in their order.
type steps struct {
	*demo
	snapshot string                       // its name
	found    map[string]map[string]string // checksums by where, then by table
}

// where the tables were compared, in order.
var columns = []string{"snapshot", "served", "other node", "changed", "rolled back"}

func (d *demo) tenSteps() {
	s := &steps{demo: d, found: map[string]map[string]string{}}
	guest.KnowEachOther(d)
	d.origin = guest.InstallUnit(d)
	guest.Configure(d, "/etc/respaldo", d.origin, "/var/backups/respaldo", `max_lock = "15s" # the lab is slow`)
	d.say("Second act: what people do with snapshots. Two machines, and on this one MariaDB as Debian's package sets it up: a unit of systemd, its data in /var/lib/mysql on the root. /dev/ubdb is a blank disk.")
	d.do("systemctl", "--no-pager", "--lines=0", "status", "mariadb")

	d.say("1. The data directory goes to a logical volume of its own:")
	d.do("respaldo", "prepare", "--device", disk, "--yes")
	d.do("lvs")

	d.say("2. Data is loaded, three tables with some 70,000 rows:")
	fill(d, d.origin)
	s.compare("snapshot", "mysql")

	d.say("3. A snapshot, that stays:")
	s.snapshot = d.value("snapshot", d.do("respaldo", "snapshot", "create"))

	d.say("4. A copy goes to the other machine, straight from the snapshot, over OpenSSH:")
	d.do("respaldo", "clone", s.snapshot, "ssh://"+guest.ThereName+copyDir)
	d.do("ssh", guest.ThereName, "du -sh "+copyDir)

	d.say("5. A second server runs on the snapshot, beside the first:")
	login := d.value(`  \S+ --defaults-file`, d.do("respaldo", "serve", s.snapshot, "--detach"))
	s.compare("served", "mysql", "--defaults-file="+login)
	d.do("respaldo", "stop")

	d.say("6. A dump from the snapshot; the first server does not notice:")
	d.do("respaldo", "dump", s.snapshot, "--databases", "shop", "--to", "/root/shop.sql.zst")
	d.do("ls", "-l", "/root/shop.sql.zst")

	d.say("7. The other machine gets a copy with a server on it: not even the disk is shared.")
	socket := d.value("socket", d.do("respaldo", "clone", s.snapshot, "ssh://"+guest.ThereName+startDir, "--start"))
	s.compare("other node", "ssh", guest.ThereName, "mysql", "--user=root", "--socket="+socket)

	d.say("8. Rows, tables and databases are changed:")
	d.do("mysql", "-e", "UPDATE shop.customers SET balance = 0; DROP TABLE shop.orders; CREATE DATABASE blog; CREATE TABLE blog.posts (id INT PRIMARY KEY)")
	s.compare("changed", "mysql")

	d.say("9. The volume goes back to the snapshot:")
	d.do("respaldo", "rollback", s.snapshot, "--yes")
	s.compare("rolled back", "mysql")
	d.do("mysql", "-e", "SHOW DATABASES")

	d.say("10. What is left of snapshots goes:")
	s.removeAll()
	d.do("lvs")
	s.verdict()
}

// value is a field of what a command has printed: what follows its name, up to a blank.
func (d *demo) value(field, text string) string {
	found := regexp.MustCompile(`(?m)^` + field + `[ =]+(\S+)`).FindStringSubmatch(text)
	if found == nil {
		d.Fatalf("the output has no %q", field)
	}
	return found[1]
}

var snapshotName = regexp.MustCompile(`(?m)^respaldo-main-\S+`)

var checksum = regexp.MustCompile(`(shop\.\w+)[\s|]+(\d+|NULL)`)

// compare asks a client for the checksums of the shop's tables.
func (s *steps) compare(where string, client ...string) {
	// A client that is reached by ssh gets its words from a shell.
	query := shopTables
	if client[0] == "ssh" {
		query = "'" + query + "'"
	}
	s.found[where] = map[string]string{}
	for _, m := range checksum.FindAllStringSubmatch(s.do(append(client, "--table", "-e", query)...), -1) {
		s.found[where][m[1]] = m[2]
	}
}

func (s *steps) removeAll() {
	for _, name := range snapshotName.FindAllString(s.do("respaldo", "snapshot", "list"), -1) {
		s.do("respaldo", "snapshot", "remove", name)
	}
}

// verdict shows all checksums side by side: only the change may differ from the snapshot.
func (s *steps) verdict() {
	fmt.Fprintf(s.out, "%-16s", "CHECKSUM TABLE")
	for _, where := range columns {
		fmt.Fprintf(s.out, " %12s", where)
	}
	fmt.Fprintln(s.out)
	tables := slices.Sorted(maps.Keys(s.found["snapshot"]))
	if len(tables) != 3 {
		s.Errorf("the shop has the tables %v", tables)
	}
	for _, table := range tables {
		fmt.Fprintf(s.out, "%-16s", table)
		for _, where := range columns {
			sum := s.found[where][table]
			same := sum == s.found["snapshot"][table]
			fmt.Fprintf(s.out, " %12s", map[bool]string{true: sum, false: "gone"}[sum != "NULL" && sum != ""])
			if !same && where != "changed" {
				s.Errorf("%s: %s has %q, at the snapshot %q", where, table, sum, s.found["snapshot"][table])
			}
		}
		fmt.Fprintln(s.out)
	}
	if maps.Equal(s.found["changed"], s.found["snapshot"]) {
		s.Errorf("nothing was changed")
	}
	fmt.Fprintln(s.out)
	if s.failed {
		fmt.Fprintln(s.out, s.paint(red, "Something did not hold: see above."))
		return
	}
	fmt.Fprintln(s.out, s.paint(green, "Equal everywhere but where they had been changed."))
}
