// Demo runs inside a guest and shows what respaldo does. First act: a MariaDB on a logical
// volume is backed up while clients write, damaged, and restored. Second act, with the
// argument steps: what people do with snapshots, from a server on the root to a rollback and
// with a second machine. Everything on the screen is the output of the real commands; every
// claim is checked, and one that does not hold makes it fail.
package main

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo/lab/guest"
)

const (
	server     = "mariadb-10.11"
	writers    = 3
	pace       = 100 * time.Millisecond // of each writer's transactions: the lab has one processor
	patience   = 30 * time.Second       // for what should come about at once
	dataDir    = "/srv/db/mysql"
	restoreDir = "/srv/db/restored"
	repository = "/srv/backup/repository"
	password   = "/etc/respaldo/password"
)

func main() {
	guest.Main(func(t guest.T) {
		d := &demo{T: t, terminal: newTerminal()}
		if len(os.Args) > 1 && os.Args[1] == "steps" {
			d.tenSteps()
			return
		}
		d.setUp()
		d.backUp()
		d.damage()
		d.restore()
		d.conclude()
	})
}

// demo is the story under way.
type demo struct {
	guest.T
	*terminal
	origin *guest.Server
	load   *guest.Load
	before guest.State

	sums         map[string]string // of the tables that nobody writes to, when the backup was made
	damaged      map[string]string
	acked, begun guest.Progress // the writers' transactions, just before and just after the backup
	measured     [][2]string
	failed       bool
}

// Errorf also remembers that the demonstration did not hold.
func (d *demo) Errorf(format string, args ...any) {
	d.failed = true
	d.T.Errorf("%s", d.paint(red, "FAILED: "+fmt.Sprintf(format, args...)))
}

// say tells the story between the commands, as comments of a shell.
func (d *demo) say(format string, args ...any) {
	for _, line := range wrap(fmt.Sprintf(format, args...), min(d.columns, 96)-len("# ")) {
		fmt.Fprintln(d.out, d.paint(dim, "# "+line))
	}
}

// do runs a command, which must succeed.
func (d *demo) do(argv ...string) string {
	text, err := d.run(argv...)
	if err != nil {
		d.Fatal(d.paint(red, "FAILED: "+err.Error()))
	}
	return text
}

// measure notes a field of what a command has printed for the table at the end.
func (d *demo) measure(name, field, text string) {
	found := regexp.MustCompile(`(?m)^` + field + ` +(.+)$`).FindStringSubmatch(text)
	if found == nil {
		d.Errorf("the output has no %q", field)
		return
	}
	d.measured = append(d.measured, [2]string{name, found[1]})
}

// setUp makes what a person has before respaldo comes: a server with data on a volume, and
// clients that write.
func (d *demo) setUp() {
	guest.NewVolume(d, guest.VolumeSpec{Kind: "thick-ext4", Bytes: 2 << 30, Path: "/srv/db"})
	guest.NewFolder(d, 1, "/srv/backup")
	d.origin = guest.StartServer(d, guest.ServerSpec{Name: server, DataDir: dataDir, Port: 3306})
	fill(d, d.origin)
	// As on any machine: the client and respaldo find the server by ~/.my.cnf.
	options, err := os.ReadFile(d.origin.OptionFile)
	if err == nil {
		err = os.WriteFile("/root/.my.cnf", options, 0o600)
	}
	if err == nil {
		err = os.Setenv("PATH", os.Getenv("PATH")+":/cache/servers/"+server+"/bin")
	}
	if err != nil {
		d.Fatal(err)
	}
	d.load = guest.StartLoadEvery(d, d.origin, writers, pace)
	d.load.Moves(d, patience)
	d.before = guest.Look(d)

	var version string
	if err := d.origin.DB.QueryRow("SELECT VERSION()").Scan(&version); err != nil {
		d.Fatal(err)
	}
	d.say("A machine with one server, %s. Its data lies on a logical volume, and %d clients write to it all the time, until the end.", version, writers)
	d.do("lvs")
	d.do("mysql", "--table", "-e", "SELECT table_name, engine, table_rows FROM information_schema.tables WHERE table_schema = 'shop' ORDER BY 1")
}

// fill makes tables of 20 MB or so, with contents that do not compress to nothing.
func fill(t guest.T, s *guest.Server) {
	s.Exec(t,
		"CREATE DATABASE shop",
		"CREATE TABLE shop.customers (id INT PRIMARY KEY, email VARCHAR(100), balance DECIMAL(10,2)) ENGINE=InnoDB",
		"CREATE TABLE shop.orders (id INT PRIMARY KEY, customer INT, note VARCHAR(200), KEY (customer)) ENGINE=InnoDB",
		"CREATE TABLE shop.countries (code CHAR(3) PRIMARY KEY, name VARCHAR(100)) ENGINE=MyISAM",
		"INSERT INTO shop.customers SELECT seq, CONCAT(MD5(seq), '@example.com'), seq % 1000 FROM shop.seq_1_to_10000",
		"INSERT INTO shop.countries SELECT seq, MD5(seq) FROM shop.seq_100_to_350",
	)
	for part := range 6 { // one large transaction would leave a system tablespace full of undo
		s.Exec(t, fmt.Sprintf("INSERT INTO shop.orders SELECT seq, seq %% 10000, CONCAT(SHA2(seq, 256), SHA2(-seq, 256)) FROM shop.seq_%d_to_%d", part*10_000+1, (part+1)*10_000))
	}
	s.Exec(t, "ANALYZE TABLE shop.customers, shop.orders, shop.countries")
}

func (d *demo) backUp() {
	d.say("Can this server be backed up, and what would that mean for it? Touches nothing:")
	d.do("respaldo", "check")
	d.say("An encrypted repository, and a configuration that names it:")
	d.do("respaldo", "init", "--repository", repository, "--password-file", password)

	d.say("The backup. This lab starts programs many times slower than a real machine does, and the snapshot is made by one: it may need more than the second that is allowed by default.")
	d.sums = atRest(guest.Checksums(d, d.origin.DB))
	d.load.LongestWait()
	d.acked = d.load.Acked()
	text := d.do("respaldo", "backup", "--max-lock", "15s")
	d.begun = d.load.Begun()
	longest := d.load.LongestWait()
	d.measure("writers", "writers", text)
	d.measured = append(d.measured, [2]string{"longest write", fmt.Sprintf("%.3g s for one transaction, while the backup ran", longest.Seconds())})
	d.measure("snapshot", "snapshot", text)
	d.measure("data", "data", text)
	d.measure("proof", "proof", text)
	if err := d.load.Err(); err != nil {
		d.Errorf("a client's write failed during the backup: %v", err)
	}
	d.load.Moves(d, patience)
	if same := atRest(guest.Checksums(d, d.origin.DB)); !maps.Equal(same, d.sums) {
		d.Errorf("the backup has changed the origin: %v was %v", same, d.sums)
	}
}

func (d *demo) damage() {
	d.say("An accident:")
	d.do("mysql", "-e", "UPDATE shop.customers SET email = 'nobody@example.com'; DROP TABLE shop.orders")
	d.damaged = atRest(guest.Checksums(d, d.origin.DB))
	if len(d.damaged) != len(d.sums)-1 || d.damaged["shop.customers"] == d.sums["shop.customers"] {
		d.Errorf("the accident did no damage: %v", d.damaged)
	}
}

func (d *demo) restore() {
	d.do("respaldo", "list")
	text := d.do("respaldo", "restore", "latest", "--to", restoreDir)
	d.measure("restore", "restored", text)

	d.say("A second server is started on the restored files, and its tables are compared:")
	start := time.Now()
	restored := guest.StartServer(d, guest.ServerSpec{Name: server, DataDir: restoreDir})
	d.measured = append(d.measured, [2]string{"restored server", fmt.Sprintf("accepted connections %.3g s after its start", time.Since(start).Seconds())})
	d.compareTables(atRest(guest.Checksums(d, restored.DB)))
	d.compareWriters(restored)

	if err := d.load.Stop(); err != nil {
		d.Errorf("a client's write failed: %v", err)
	}
	if err := restored.Stop(); err != nil {
		d.Errorf("the restored server did not stop: %v", err)
	}
	d.before.NothingLeft(d)
	fmt.Fprintln(d.out)
	d.say("And nothing is left behind, no snapshot, mount or process:")
	d.do("lvs")
}

// compareTables shows the checksums of the tables that only the accident has changed.
func (d *demo) compareTables(restored map[string]string) {
	const row = "%-16s %14s %14s %14s  %s\n"
	fmt.Fprintf(d.out, row, "CHECKSUM TABLE", "AT THE BACKUP", "DAMAGED", "RESTORED", "VERDICT")
	for _, table := range slices.Sorted(maps.Keys(d.sums)) {
		damaged, verdict := d.damaged[table], d.paint(green, "equal")
		if damaged == "" {
			damaged = "dropped"
		}
		if restored[table] != d.sums[table] {
			verdict = d.paint(red, "DIFFERENT")
		}
		fmt.Fprintf(d.out, row, table, d.sums[table], damaged, restored[table], verdict)
	}
	fmt.Fprintln(d.out)
	if !maps.Equal(restored, d.sums) {
		d.Errorf("the restored tables have the checksums %v, at the backup %v", restored, d.sums)
	}
}

// compareWriters shows what became of the clients' transactions: none that was
// acknowledged before the backup began is missing, and none is there by half.
func (d *demo) compareWriters(restored *guest.Server) {
	holds, err := guest.Contents(restored.DB, writers)
	if err != nil {
		d.Errorf("the clients' tables: %v", err)
		return
	}
	const titles, row = "%-16s %14s %14s %14s  %s\n", "%-16s %14d %14d %14d  %s\n"
	fmt.Fprintf(d.out, titles, "TRANSACTIONS", "ACKED BEFORE", "BEGUN AFTER", "RESTORED", "VERDICT")
	for w := range holds {
		verdict := d.paint(green, "all, none by half")
		if holds[w] < d.acked[w] || holds[w] > d.begun[w] {
			verdict = d.paint(red, "WRONG")
		}
		fmt.Fprintf(d.out, row, fmt.Sprintf("client %d", w+1), d.acked[w], d.begun[w], holds[w], verdict)
	}
	holds.Within(d, d.acked, d.begun)
}

// conclude shows what was measured.
func (d *demo) conclude() {
	d.say("Measured, in the lab: a machine of one processor that starts programs slowly")
	for _, m := range d.measured {
		fmt.Fprintf(d.out, "%-16s %s\n", m[0], m[1])
	}
	fmt.Fprintln(d.out)
	if d.failed {
		fmt.Fprintln(d.out, d.paint(red, "Something did not hold: see above."))
		return
	}
	fmt.Fprintln(d.out, d.paint(green, "Everything held: each comparison above was made, not assumed."))
}

// atRest are the tables that the clients do not write to.
func atRest(sums map[string]string) map[string]string {
	maps.DeleteFunc(sums, func(table, _ string) bool { return !strings.HasPrefix(table, "shop.") })
	return sums
}
