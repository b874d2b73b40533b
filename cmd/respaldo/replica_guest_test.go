//go:build guest

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// replicated is a stand whose server is a replica, and where it has its data from.
type replicated struct {
	*stand
	source *guest.Server
	port   int
	gtid   bool
	mode   []string    // the options of either for it
	load   *guest.Load // of the source
}

func newReplicated(t *testing.T, kind, server string, gtid bool, args ...string) *replicated {
	t.Helper()
	r := &replicated{port: 3399, gtid: gtid}
	if strings.HasPrefix(server, "mysql") && !gtid {
		r.mode = []string{"--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"}
	}
	r.stand = newStand(t, kind, server, standOptions{args: append(append(args, "--server-id=2"), r.mode...)})
	r.source = guest.StartServer(t, guest.ServerSpec{Name: server, DataDir: filepath.Join(r.volume.Path, "source"), Port: r.port, Args: append(slices.Clone(r.mode), "--server-id=10")})
	r.source.Exec(t, "CREATE USER 'repl'@'127.0.0.1' IDENTIFIED BY 'secret'", "GRANT REPLICATION SLAVE ON *.* TO 'repl'@'127.0.0.1'")
	r.server.Exec(t, "ALTER TABLE shop.notes ENGINE=InnoDB")
	r.follows(r.server, r.where())
	return r
}

func (r *replicated) startLoad() {
	r.load = guest.StartLoadEvery(r.whole, r.source, writers, pace)
	r.load.Moves(r.t, testLimit)
}

// where is the source's end, as CHANGE MASTER takes it.
func (r *replicated) where() string {
	r.t.Helper()
	if r.gtid {
		return ""
	}
	status := one(r.t, r.source, map[bool]string{true: "SHOW BINARY LOG STATUS", false: "SHOW MASTER STATUS"}[r.source.Name == "mysql-9.7"])
	return fmt.Sprintf("%s:%s", status["File"], status["Position"])
}

// follows makes a server a replica of the source, from a position, or by its GTIDs.
func (r *replicated) follows(s *guest.Server, position string) {
	r.t.Helper()
	file, at, _ := strings.Cut(position, ":")
	switch {
	case s.Name == "mysql-9.7":
		where := "SOURCE_AUTO_POSITION=1"
		if !r.gtid {
			where = fmt.Sprintf("SOURCE_AUTO_POSITION=0, SOURCE_LOG_FILE='%s', SOURCE_LOG_POS=%s", file, at)
		}
		s.Exec(r.t, "STOP REPLICA", "RESET REPLICA ALL", fmt.Sprintf("CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=%d, SOURCE_USER='repl', SOURCE_PASSWORD='secret', GET_SOURCE_PUBLIC_KEY=1, SOURCE_CONNECT_RETRY=1, %s", r.port, where), "START REPLICA")
		return
	case strings.HasPrefix(s.Name, "mysql"):
		position = "MASTER_AUTO_POSITION=1"
	default:
		position = "MASTER_USE_GTID=slave_pos"
	}
	if !r.gtid {
		position = fmt.Sprintf("MASTER_LOG_FILE='%s', MASTER_LOG_POS=%s", file, at)
		if strings.HasPrefix(s.Name, "mariadb") {
			position += ", MASTER_USE_GTID=no"
		}
	}
	if s.Name == "mariadb-11.8" {
		position += ", MASTER_SSL=0"
	}
	s.Exec(r.t, "STOP SLAVE", "RESET SLAVE ALL", fmt.Sprintf("CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='repl', MASTER_PASSWORD='secret', MASTER_CONNECT_RETRY=1, %s", r.port, position), "START SLAVE")
}

// one is the one row of a SHOW statement.
func one(t *testing.T, s *guest.Server, query string) map[string]string {
	t.Helper()
	rows, err := s.DB.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil || !rows.Next() {
		t.Fatalf("%s: no row, %v", query, err)
	}
	values := make([][]byte, len(columns))
	into := make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	if err := rows.Scan(into...); err != nil {
		t.Fatal(err)
	}
	row := map[string]string{}
	for i, c := range columns {
		row[c] = string(values[i])
	}
	return row
}

// applies waits until a server's applier runs.
func (r *replicated) applies(s *guest.Server) {
	r.t.Helper()
	guest.Eventually(r.t, testLimit, func() error {
		status := r.status(s)
		if status["Slave_SQL_Running"] != "Yes" && status["Replica_SQL_Running"] != "Yes" {
			return fmt.Errorf("the applier does not run: %s%s", status["Last_SQL_Error"], status["Last_Error"])
		}
		return nil
	})
}

func (r *replicated) status(s *guest.Server) map[string]string {
	r.t.Helper()
	return one(r.t, s, map[bool]string{true: "SHOW REPLICA STATUS", false: "SHOW SLAVE STATUS"}[s.Name == "mysql-9.7"])
}

// sameAsSource waits until a server has applied what the source has.
func (r *replicated) sameAsSource(s *guest.Server) {
	r.t.Helper()
	want := guest.Checksums(r.t, r.source.DB)
	guest.Eventually(r.t, testLimit, func() error {
		got := guest.Checksums(r.t, s.DB)
		for _, table := range []string{"labload.orders", "labload.items"} {
			if want[table] == "" || got[table] != want[table] {
				status := r.status(s)
				return fmt.Errorf("%s has checksum %q, at the source %q: %s", table, got[table], want[table], firstText(status["Last_SQL_Error"], status["Last_Error"], status["Last_IO_Error"]))
			}
		}
		return nil
	})
}

func firstText(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// A replica is backed up while it applies. Restored, and following its source from where
// the backup says, it becomes what the source is. However an operation dies, the replica
// applies again.
func TestReplica(t *testing.T) {
	for _, c := range []struct {
		kind, server string
		gtid, soak   bool
		args         []string
	}{
		{kind: "thin-ext4", server: "mariadb-10.11"},
		{kind: "thin-ext4", server: "mysql-5.6", soak: true, args: []string{"--relay-log-info-repository=FILE"}},
		{kind: "thin-ext4", server: "mysql-9.7", soak: true, args: []string{"--replica-parallel-workers=4"}},
		{kind: "btrfs", server: "mysql-9.7", gtid: true, soak: true},
		{kind: "thick-ext4", server: "mariadb-11.8", gtid: true, soak: true, args: []string{"--slave-parallel-threads=4"}},
		{kind: "btrfs", server: "mariadb-10.5", soak: true},
	} {
		if c.soak && !soak {
			continue
		}
		t.Run(c.kind+" "+c.server, func(t *testing.T) {
			r := newReplicated(t, c.kind, c.server, c.gtid, c.args...)
			r.startLoad()
			r.before = guest.Look(t)

			r.becomesSource("none")
			if soak {
				r.becomesSource("global")
				r.server.Exec(t, "ALTER TABLE shop.notes ENGINE=MyISAM")
				r.becomesSource("auto")
			}
			r.diesWhilePaused()
			if err := r.load.Stop(); err != nil {
				t.Error(err)
			}
			r.sameAsSource(r.server)
		})
	}
}

// becomesSource makes a backup, restores it, and has it follow the source.
func (r *replicated) becomesSource(lock string) {
	r.t.Helper()
	made := r.backup("--lock", lock)
	r.applies(r.server)
	r.before.NothingLeft(r.t)
	q := made.Backup.Manifest.Quiesced
	if stood := strings.Contains(q.Reason, "stands still"); stood == r.gtid && lock == "none" {
		r.t.Errorf("its applier stood still: %t (%s)", stood, q.Reason)
	}
	at := q.Coordinates.Upstream
	if len(at) != 1 || at[0].Inexact != "" || at[0].File == "" && !r.gtid || !made.Backup.Manifest.Proof.OK {
		r.t.Fatalf("--lock %s: no exact upstream: %+v", lock, made.Backup.Manifest.Quiesced)
	}
	// Two replicas of one server_uuid are one too many.
	stop, start := "STOP SLAVE", "START SLAVE"
	if r.server.Name == "mysql-9.7" {
		stop, start = "STOP REPLICA", "START REPLICA"
	}
	r.server.Exec(r.t, stop)
	restored := r.restored(made.Backup.ID, append(slices.Clone(r.mode), "--server-id=3", "--skip-slave-start")...)
	r.follows(restored, fmt.Sprintf("%s:%d", at[0].File, at[0].Position))
	r.load.Moves(r.t, testLimit)
	if err := r.load.Stop(); err != nil {
		r.t.Error(err)
	}
	r.sameAsSource(restored)
	if err := restored.Kill(); err != nil {
		r.t.Error(err)
	}
	os.RemoveAll(restored.DataDir)
	r.server.Exec(r.t, start)
	r.startLoad()
}

// diesWhilePaused kills the operation while the applier stands still.
func (r *replicated) diesWhilePaused() {
	r.t.Helper()
	points := []string{"locked"}
	if soak {
		points = []string{"applier.intended", "applier.acquired", "locked", "snapshot.taken", "applier.released"}
	}
	for _, point := range points {
		if r.gtid && strings.HasPrefix(point, "applier") { // nothing stands still there
			continue
		}
		if o := r.run([]string{"RESPALDO_FAULT=kill:" + point}, "backup", "--lock", "global"); o.code != -1 {
			r.t.Fatalf("respaldo was not killed: exit code %d\n%s%s", o.code, o.stdout, o.stderr)
		}
		r.applies(r.server) // before any cleanup: the server itself saw to it
		if point == "locked" && !r.gtid {
			r.isStoppedSince()
		}
		var swept backup.Swept
		r.into(&swept, "cleanup")
		r.before.NothingLeft(r.t)
	}
	if r.gtid {
		return
	}
	// And where the server could not: somebody killed its session, too.
	running := r.command("backup", "--lock", "global")
	running.Env = append(running.Env, "RESPALDO_FAULT=hang:applier.acquired")
	if err := running.Start(); err != nil {
		r.t.Fatal(err)
	}
	guest.Eventually(r.t, testLimit, func() error {
		var id uint64
		if err := r.server.DB.QueryRow("SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'DO GET_LOCK%'").Scan(&id); err != nil {
			return fmt.Errorf("the session that is to start the applier: %w", err)
		}
		_, err := r.server.DB.Exec(fmt.Sprintf("KILL %d", id))
		return err
	})
	running.Process.Kill()
	running.Wait()
	if o := r.ok("cleanup"); !strings.Contains(o.stdout, "applier") {
		r.t.Errorf("cleanup does not say that it started the applier:\n%s%s", o.stdout, o.stderr)
	}
	r.applies(r.server)
}

// isStoppedSince has a person stop what the server has started again: that stays so.
func (r *replicated) isStoppedSince() {
	r.t.Helper()
	stop := map[bool]string{true: "STOP REPLICA SQL_THREAD", false: "STOP SLAVE SQL_THREAD"}[r.server.Name == "mysql-9.7"]
	r.server.Exec(r.t, stop)
	if o := r.ok("cleanup"); !strings.Contains(o.stderr, "the replica's applier (unnamed) stands still") {
		r.t.Errorf("cleanup does not say that the applier stands still:\n%s%s", o.stdout, o.stderr)
	}
	if status := r.status(r.server); status["Slave_SQL_Running"] == "Yes" || status["Replica_SQL_Running"] == "Yes" {
		r.t.Error("cleanup started an applier that somebody has stopped")
	}
	r.server.Exec(r.t, strings.Replace(stop, "STOP", "START", 1))
	r.applies(r.server)
}
