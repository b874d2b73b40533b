package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// origin is a running server and two copies of its data directory: one made after a clean
// shutdown, one after a kill under write load. It runs on, recovered from that kill, so
// that its rows and coordinates are what an instance over the second copy must have.
type origin struct {
	name    string
	dir     string
	data    string
	outside string // where a MyISAM table has its files
	args    []string
	server  *servers.Running
	db      *sql.DB
	clean   moment
	crashed moment
	earlier respaldo.Coordinates // some transactions before clean
	once    sync.Once
	failed  error
}

// moment is a copy of the data directory and what it must turn out to be.
type moment struct {
	copy     string // of the data directory
	outside  string // of the folder beside it
	manifest respaldo.Manifest
	rows     string
}

// origins are started once for all tests of the package, and a few of them used at a time.
var (
	origins = func() map[string]*origin {
		m := map[string]*origin{}
		for _, name := range servers.Names {
			m[name] = &origin{name: name}
		}
		return m
	}()
	turns = make(chan struct{}, 4)
)

func stopOrigins() {
	for _, o := range origins {
		if o.db != nil {
			o.db.Close()
		}
		if o.server != nil {
			o.server.Kill()
		}
		if o.dir != "" {
			os.RemoveAll(o.dir)
		}
	}
}

// theOrigin gives a test its turn and the origin.
func theOrigin(t *testing.T, name string) *origin {
	t.Helper()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
	o := origins[name]
	o.once.Do(func() { o.failed = o.make(context.Background()) })
	if o.failed != nil {
		t.Fatal(o.failed)
	}
	return o
}

// begin makes an origin's directories and starts its server, which is empty.
func (o *origin) begin(ctx context.Context) (err error) {
	if err := servers.Ensure(ctx, o.name); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "rsp"); err != nil {
		return err
	}
	o.data, o.outside = filepath.Join(o.dir, "data"), filepath.Join(o.dir, "outside")
	if err := os.Mkdir(o.outside, 0o755); err != nil {
		return err
	}
	if err := servers.Init(ctx, o.name, o.data); err != nil {
		return err
	}
	if o.name == "mysql-9.7" {
		o.args = append(o.args, "--performance-schema=OFF")
	}
	return o.start(ctx)
}

func (o *origin) make(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := o.begin(ctx); err != nil {
		return err
	}
	if err := o.fill(ctx); err != nil {
		return err
	}
	if o.clean, err = o.seen(ctx); err != nil {
		return err
	}
	o.db.Close()
	if err := o.server.Stop(); err != nil {
		return err
	}
	if err := o.copy(&o.clean, "clean"); err != nil {
		return err
	}
	if err := o.start(ctx); err != nil {
		return err
	}
	if err := o.crashUnderLoad(); err != nil {
		return err
	}
	var crashed moment
	if err := o.copy(&crashed, "crashed"); err != nil {
		return err
	}
	if err := o.start(ctx); err != nil {
		return err
	}
	o.crashed, err = o.seen(ctx)
	o.crashed.copy, o.crashed.outside = crashed.copy, crashed.outside
	o.crashed.manifest.Quiesced.Coordinates.File = "" // of the restarted server, not of the crash
	return err
}

func (o *origin) start(ctx context.Context) (err error) {
	o.server, err = servers.Start(ctx, servers.Spec{Name: o.name, DataDir: o.data, Log: filepath.Join(o.dir, "log"), Args: o.args})
	if err != nil {
		return err
	}
	cfg, err := driver.ParseDSN(o.server.DSN())
	if err != nil {
		return err
	}
	cfg.Logger = &driver.NopLogger{} // connections that break in a crash are no news
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return err
	}
	o.db = sql.OpenDB(connector)
	return nil
}

// fill makes tables of every kind that a proof must cope with.
func (o *origin) fill(ctx context.Context) error {
	statements := []string{
		"CREATE DATABASE shop",
		"CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200), KEY (note)) ENGINE=InnoDB",
		"CREATE TABLE shop.second (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200)) ENGINE=InnoDB",
		"CREATE TABLE shop.old (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200), KEY (note)) ENGINE=MyISAM",
		"CREATE TABLE shop.volatile (id INT) ENGINE=MEMORY",
		"CREATE VIEW shop.all_orders AS SELECT * FROM shop.orders",
		"CREATE TABLE shop.`odd ``name` (id INT PRIMARY KEY) ENGINE=InnoDB",
		fmt.Sprintf("CREATE TABLE shop.afar (id INT PRIMARY KEY) ENGINE=MyISAM DATA DIRECTORY='%s' INDEX DIRECTORY='%s'", o.outside, o.outside),
		"INSERT INTO shop.afar VALUES (1), (2)",
		"INSERT INTO shop.volatile VALUES (1)",
		"INSERT INTO shop.old (note) VALUES ('a'), ('b'), ('c')",
		"FLUSH BINARY LOGS",
		"INSERT INTO shop.orders (note) VALUES ('first'), ('second')",
		"INSERT INTO shop.second (note) SELECT note FROM shop.orders",
	}
	if strings.HasPrefix(o.name, "mariadb") {
		statements = append(statements, "CREATE TABLE shop.aria (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(200)) ENGINE=Aria",
			"INSERT INTO shop.aria (note) VALUES ('x'), ('y')")
	}
	if o.name == "mysql-9.7" {
		statements = append(statements, "SET PERSIST event_scheduler=ON", "SET PERSIST binlog_expire_logs_seconds=1", "SET PERSIST max_connections=77")
	}
	if err := o.exec(ctx, statements...); err != nil {
		return err
	}
	before, err := o.seen(ctx)
	if err != nil {
		return err
	}
	o.earlier = before.manifest.Quiesced.Coordinates
	statements = []string{}
	for range 8 {
		statements = append(statements, "INSERT INTO shop.orders (note) SELECT CONCAT(note, id) FROM shop.orders")
	}
	return o.exec(ctx, append(statements, "FLUSH NO_WRITE_TO_BINLOG TABLES")...)
}

func (o *origin) exec(ctx context.Context, statements ...string) error {
	for _, s := range statements {
		if _, err := o.db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%s: %s: %w", o.name, s, err)
		}
	}
	return nil
}

// seen is what a backup would note now.
func (o *origin) seen(ctx context.Context) (m moment, err error) {
	process, err := readProcess(o.server.PID())
	if err != nil {
		return m, err
	}
	m.manifest = respaldo.Manifest{
		Server:    "shop-" + o.name,
		Taken:     time.Now(),
		Layout:    respaldo.Layout{DataDir: o.data, Places: []respaldo.Place{{Role: respaldo.DataRole, Path: o.data, Real: o.data}, {Role: respaldo.TablespaceRole, Path: o.outside, Real: o.outside}}},
		Variables: map[string]string{},
		Binary:    process.Binary,
	}
	variables, err := queryRows(ctx, o.db, "SHOW GLOBAL VARIABLES")
	if err != nil {
		return m, err
	}
	for _, v := range variables {
		m.manifest.Variables[v["variable_name"]] = v["value"]
	}
	m.manifest.BinlogOn = m.manifest.Variables["log_bin"] == "ON"
	if m.manifest.Version, err = respaldo.ParseVersion(m.manifest.Variables["version"], m.manifest.Variables["version_comment"]); err != nil {
		return m, err
	}
	if m.manifest.Quiesced.Coordinates, err = readCoordinates(ctx, o.db, m.manifest.Version, false); err != nil {
		return m, err
	}
	m.rows, err = rowsOf(ctx, o.db)
	return m, err
}

// rowsOf sums up the tables that survive a crash.
func rowsOf(ctx context.Context, db *sql.DB) (string, error) {
	var all strings.Builder
	for _, table := range []string{"shop.orders", "shop.second", "shop.old"} {
		var count, sum int64
		if err := db.QueryRowContext(ctx, "SELECT COUNT(*), COALESCE(SUM(CRC32(CONCAT(id, note))), 0) FROM "+table).Scan(&count, &sum); err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%s %d %d\n", table, count, sum)
	}
	return all.String(), nil
}

// crashUnderLoad kills the server while four connections commit.
func (o *origin) crashUnderLoad() error {
	var acknowledged atomic.Int64
	var writers sync.WaitGroup
	enough := make(chan struct{})
	var failed error
	var once sync.Once
	for n := range 4 {
		writers.Go(func() {
			for {
				table := []string{"shop.orders", "shop.second"}[n%2]
				_, err := o.db.Exec("INSERT INTO "+table+" (note) VALUES (?)", fmt.Sprintf("load %d", n))
				if err != nil {
					once.Do(func() { failed = err; close(enough) })
					return
				}
				if acknowledged.Add(1) == 200 {
					once.Do(func() { close(enough) })
				}
			}
		})
	}
	<-enough
	if failed != nil {
		return failed
	}
	err := o.server.Kill()
	writers.Wait()
	return errors.Join(err, o.db.Close())
}

func (o *origin) copy(m *moment, name string) error {
	m.copy, m.outside = filepath.Join(o.dir, name), filepath.Join(o.dir, name+"-outside")
	return errors.Join(copyTree(o.data, m.copy), copyTree(o.outside, m.outside))
}

func copyTree(from, to string) error {
	out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
