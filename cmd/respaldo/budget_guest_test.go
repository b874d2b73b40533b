//go:build guest

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// A lock that is not to be had is tried again, and what the writers waited for is measured
// and shown.
func TestLockIsTriedAgain(t *testing.T) {
	s := newStand(t, "btrfs", "mariadb-10.11", standOptions{})
	load := guest.StartLoadEvery(t, s.server, writers, pace)
	load.Moves(t, testLimit)

	// What no look can foresee: LOCK TABLES while something else runs.
	holder, err := s.server.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	sleeper, err := s.server.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sleeper.Close()
	var id int
	if err := sleeper.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.ExecContext(t.Context(), "LOCK TABLES shop.notes WRITE"); err != nil {
		t.Fatal(err)
	}
	slept := make(chan struct{})
	go func() {
		defer close(slept)
		sleeper.ExecContext(t.Context(), "SELECT SLEEP(1000) FROM shop.customers LIMIT 1")
	}()
	defer func() {
		s.server.DB.Exec(fmt.Sprintf("KILL %d", id))
		<-slept
	}()
	guest.Eventually(t, testLimit, func() error {
		var n int
		err := s.server.DB.QueryRow("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = ? AND STATE = 'User sleep'", id).Scan(&n)
		if err == nil && n == 0 {
			err = fmt.Errorf("connection %d does not run yet", id)
		}
		return err
	})

	cmd := s.command("backup", "--max-lock", "3s", "--patience", "3m", "--prove", "none", "--json")
	var stdout, said bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Fprintln(&said, lines.Text())
		if strings.Contains(lines.Text(), "trying again in") {
			if _, err := holder.ExecContext(t.Context(), "UNLOCK TABLES"); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), said.String())
	}
	var made backup.Made
	if err := json.Unmarshal(stdout.Bytes(), &made); err != nil {
		t.Fatal(err)
	}
	q := made.Backup.Manifest.Quiesced
	t.Logf("%+v", q)
	if q.Tries < 2 || !strings.Contains(said.String(), "try 1: the lock was not granted within 3s") {
		t.Errorf("%d tries:\n%s", q.Tries, said.String())
	}
	if q.StalledSeconds <= 0 || q.UsualSeconds <= 0 || !strings.Contains(q.Stall, "the binlog's growth") {
		t.Errorf("what the writers waited for was not measured: %+v", q)
	}
	held := backup.FormatSeconds(q.StalledSeconds)
	if o := s.ok("list"); !strings.Contains(o.stdout, held) {
		t.Errorf("list does not show %s:\n%s", held, o.stdout)
	}
	if o := s.ok("show", made.Backup.ID); !strings.Contains(o.stdout, "held "+held+", where ") || !strings.Contains(o.stdout, fmt.Sprintf("at try %d", q.Tries)) {
		t.Errorf("show:\n%s", o.stdout)
	}
	if err := load.Stop(); err != nil {
		t.Error(err)
	}
	s.before.NothingLeft(t)
}
