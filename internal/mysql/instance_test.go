package mysql

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// origins are started once for all tests of the package, two at a time.
var (
	origins = func() map[string]*origin {
		m := map[string]*origin{}
		for _, name := range servers.Names {
			m[name] = &origin{name: name}
		}
		return m
	}()
	twoAtATime = make(chan struct{}, 2)
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
	twoAtATime <- struct{}{}
	t.Cleanup(func() { <-twoAtATime })
	o := origins[name]
	o.once.Do(func() { o.failed = o.make(context.Background()) })
	if o.failed != nil {
		t.Fatal(o.failed)
	}
	return o
}

func (o *origin) make(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
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
	if err := o.start(ctx); err != nil {
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

// request is for a fresh writable copy of the moment.
func (m moment) request(t *testing.T) InstanceRequest {
	t.Helper()
	dir, err := os.MkdirTemp("", "ins")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, outside := filepath.Join(dir, "data"), filepath.Join(dir, "outside")
	if err := errors.Join(copyTree(m.copy, data), copyTree(m.outside, outside)); err != nil {
		t.Fatal(err)
	}
	r := InstanceRequest{
		Manifest: m.manifest,
		Dirs:     map[string]string{m.manifest.Layout.DataDir: data, m.manifest.Layout.Places[1].Path: outside},
		Scratch:  filepath.Join(dir, "s"),
		Run:      t.Name(),
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(r.Scratch, InstanceLog))
			t.Logf("log of the instance:\n%s", log)
		}
		nothingLeft(t, r)
	})
	return r
}

// nothingLeft: no process of the instance, no mount, no folder of ours in the image.
func nothingLeft(t *testing.T, r InstanceRequest) {
	t.Helper()
	found, err := FindInstances(r.Manifest.Server)
	if err != nil {
		t.Error(err)
	}
	for _, p := range found {
		if p.Run == r.Run {
			t.Errorf("process %d is left", p.PID)
			p.Kill()
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	if strings.Contains(string(mounts), filepath.Dir(r.Scratch)) {
		t.Error("a mount is left")
	}
	if _, err := os.Lstat(filepath.Join(r.Dirs[r.Manifest.Layout.DataDir], scratchName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left in the image", scratchName)
	}
}

func startInstance(t *testing.T, r InstanceRequest) *Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	i, err := StartInstance(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopInstance(t, i) })
	return i
}

func stopInstance(t *testing.T, i *Instance) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := i.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// unharmed makes sure that the origin serves, has its rows, and writes where it wrote.
func (o *origin) unharmed(t *testing.T) {
	t.Helper()
	rows, err := rowsOf(t.Context(), o.db)
	if err != nil {
		t.Fatalf("the origin does not answer: %v", err)
	}
	if rows != o.crashed.rows {
		t.Errorf("the origin's rows changed from\n%sto\n%s", o.crashed.rows, rows)
	}
	at, err := readCoordinates(t.Context(), o.db, o.crashed.manifest.Version, false)
	if err != nil {
		t.Fatal(err)
	}
	if at.GTIDSet != o.crashed.manifest.Quiesced.Coordinates.GTIDSet {
		t.Errorf("the origin's GTID set became %s", at.GTIDSet)
	}
	select {
	case <-o.server.Exited():
		t.Fatal("the origin is gone")
	default:
	}
}

// Every version's image, made in order or by a crash, starts beside the running origin and
// is what the origin was.
func TestImageIsProvedBesideItsOrigin(t *testing.T) {
	for _, name := range servers.Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			t.Run("clean", func(t *testing.T) {
				r := o.clean.request(t)
				proof, err := Prove(t.Context(), r, respaldo.ProveFull)
				if err != nil {
					t.Fatal(err)
				}
				if !proof.OK || len(proof.Problems) > 0 || proof.RecoverySeconds <= 0 {
					t.Errorf("proof %+v", proof)
				}
				if proof.Tables != proof.TablesTotal || proof.Tables < 20 {
					t.Errorf("%d of %d tables were checked", proof.Tables, proof.TablesTotal)
				}
				want := o.clean.manifest.Quiesced.Coordinates
				if got := proof.Coordinates; got.File != want.File || got.GTIDSet != want.GTIDSet || got.Position < want.Position {
					t.Errorf("coordinates %s %s, want %s %s", got, got.GTIDSet, want, want.GTIDSet)
				}
				o.unharmed(t)
			})
			t.Run("crashed", func(t *testing.T) {
				r := o.crashed.request(t)
				o.makeIndexAbsolute(t, r)
				mine := filesOf(t, o.outside)
				binlogs := o.binlogs(t, o.data)
				i := startInstance(t, r)
				o.isWhatTheOriginWas(t, i)
				o.staysByItself(t, i)
				if _, err := i.DB().Exec("INSERT INTO shop.afar VALUES (3)"); err != nil {
					t.Error(err)
				}
				stopInstance(t, i)
				o.unharmed(t)
				if now := filesOf(t, o.outside); now != mine {
					t.Errorf("the origin's files beside its data directory changed from\n%sto\n%s", mine, now)
				}
				if now := o.binlogs(t, o.data); !slices.Equal(now, binlogs) {
					t.Errorf("the origin's binlogs were %v, are %v", binlogs, now)
				}
				for _, name := range o.binlogs(t, o.crashed.copy) {
					if !slices.Contains(o.binlogs(t, r.Dirs[o.data]), name) {
						t.Errorf("the instance purged %s", name)
					}
				}
			})
		})
	}
}

// isWhatTheOriginWas compares with the origin, which recovered from the same crash.
func (o *origin) isWhatTheOriginWas(t *testing.T, i *Instance) {
	t.Helper()
	rows, err := rowsOf(t.Context(), i.DB())
	if err != nil {
		t.Fatal(err)
	}
	if rows != o.crashed.rows {
		t.Errorf("the origin recovered to\n%sthe instance to\n%s", o.crashed.rows, rows)
	}
	got, err := i.Coordinates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := o.crashed.manifest.Quiesced.Coordinates.GTIDSet; got.GTIDSet != want {
		t.Errorf("the origin recovered to %s, the instance to %s", want, got.GTIDSet)
	}
	copied := o.binlogs(t, o.crashed.copy)
	if last := copied[len(copied)-1]; got.File != last {
		t.Errorf("the coordinates %s are not in the origin's last binlog %s", got, last)
	}
	_, _, problems, err := i.Check(t.Context(), respaldo.ProveFull)
	if err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
}

// staysByItself looks at the settings of the running instance.
func (o *origin) staysByItself(t *testing.T, i *Instance) {
	t.Helper()
	variables := map[string]string{}
	rows, err := queryRows(t.Context(), i.DB(), "SHOW GLOBAL VARIABLES")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range rows {
		variables[v["variable_name"]] = v["value"]
	}
	origin := o.crashed.manifest.Variables
	for name, value := range map[string]string{
		"skip_networking": "ON", "event_scheduler": "DISABLED", "local_infile": "OFF", "log_bin": "ON",
		"expire_logs_days": "0", "binlog_expire_logs_seconds": "0", "wsrep_on": "OFF", "max_connections": "16",
		"lower_case_table_names": origin["lower_case_table_names"], "innodb_page_size": origin["innodb_page_size"],
		"sql_mode": origin["sql_mode"], "gtid_mode": origin["gtid_mode"],
	} {
		if got, ok := variables[name]; ok && strings.TrimSuffix(got, ".000000") != value {
			t.Errorf("%s is %q, not %q", name, got, value)
		}
	}
	for _, name := range []string{"server_id", "server_uuid", "socket", "pid_file"} {
		if _, ok := variables[name]; ok && variables[name] == origin[name] {
			t.Errorf("%s is the origin's %q", name, origin[name])
		}
	}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", i.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(environment, []byte(testSecret)) {
		t.Error("the instance got our environment")
	}
}

// makeIndexAbsolute makes the copied binlog index name the origin's own files.
func (o *origin) makeIndexAbsolute(t *testing.T, r InstanceRequest) {
	t.Helper()
	index := filepath.Join(r.Dirs[o.data], "binlog.index")
	content, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index, bytes.ReplaceAll(content, []byte("./"), []byte(o.data+"/")), 0o640); err != nil {
		t.Fatal(err)
	}
}

// binlogs of a data directory.
func (o *origin) binlogs(t *testing.T, dir string) []string {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	names, err := binlogsIn(root, "binlog")
	if err != nil || len(names) == 0 {
		t.Fatalf("binlogs %v, %v", names, err)
	}
	return names
}

// filesOf is a folder's files with a sum of their content.
func filesOf(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s %x\n", e.Name(), sha256.Sum256(content))
	}
	return all.String()
}
