package mysql

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// request is for a fresh writable copy of the moment.
func (m moment) request(t *testing.T) InstanceRequest {
	t.Helper()
	dir := shortDir(t)
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
	t.Cleanup(func() { // however it ended
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		i.end(ctx)
	})
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
	t.Parallel()
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
	seen, err := i.Check(t.Context(), respaldo.ProveFull)
	if err != nil || len(seen.Problems)+len(seen.NotChecked) > 0 {
		t.Errorf("check: %+v, %v", seen, err)
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
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", i.PID())); err != nil || its == ours {
		t.Errorf("the instance is in the network %s, we are in %s, %v", its, ours, err)
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
