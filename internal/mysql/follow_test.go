package mysql

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// A server that was told whom to follow is waited for until it has applied what its source
// had, by GTIDs of both kinds.
func TestFollowing(t *testing.T) {
	for _, name := range []string{"mysql-5.6", "mariadb-11.8"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			b := startBox(t, name, func(_ *box, spec *servers.Spec) { spec.Port = port })
			replica := startBox(t, name, func(_ *box, spec *servers.Spec) { spec.Args = append(spec.Args, "--server-id=2") })
			b.exec(t, "CREATE USER 'repl'@'127.0.0.1' IDENTIFIED BY 'secret'", "GRANT REPLICATION SLAVE ON *.* TO 'repl'@'127.0.0.1'")
			s := b.server(t)
			facts := mustFacts(t, s)
			m := respaldo.Manifest{Version: facts.Version, Variables: facts.Variables, ServerUUID: facts.Variables["server_uuid"]}
			var err error
			if m.Quiesced.Coordinates, err = s.Coordinates(t.Context()); err != nil {
				t.Fatal(err)
			}
			source := Source{Host: "127.0.0.1", Port: port, User: "repl", Password: "secret"}
			if err := source.Check(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			other := m
			if other.ServerUUID = "of another"; respaldo.KindOf(source.Check(t.Context(), other)) != respaldo.Refused {
				t.Error("it takes any server for the origin")
			}
			statements, err := followStatements(t.Context(), replica.server(t).DB(), source, m)
			if err != nil {
				t.Fatal(err)
			}
			replica.exec(t, statements...)
			replica.exec(t, map[bool]string{true: "START REPLICA", false: "START SLAVE"}[facts.Version.AtLeast(respaldo.MySQL, 8, 0, 22)])
			b.exec(t, "CREATE DATABASE later", "CREATE TABLE later.t (i INT PRIMARY KEY)", "INSERT INTO later.t VALUES (1)")
			until, err := s.Coordinates(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := AwaitFollowing(ctx, replica.socket(), Account{User: "root"}, facts.Version, until); err != nil {
				t.Fatal(err)
			}
			var rows int
			if err := replica.root.QueryRow("SELECT COUNT(*) FROM later.t").Scan(&rows); err != nil || rows != 1 {
				t.Errorf("it has not applied everything: %d rows, %v", rows, err)
			}
		})
	}
}

// A replica's relay logs lie in its data directory, wherever the origin, a replica itself,
// had its own; and an image that is not at its coordinates does not become one.
func TestFollowLeavesTheOriginsRelayLogs(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mysql-5.6", "mariadb-10.11", "mysql-9.7"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			r := scatter(t, name, []string{"--log-bin=DIR/binlogs/bin", "--relay-log=DIR/undo/relay", "--relay-log-index=DIR/undo/relay.index", "--loose-innodb-directories=DIR/tables"}, (*origin).crash)
			m := &r.Manifest
			for _, v := range []string{"log_slave_updates", "log_replica_updates"} {
				if m.Variables[v] != "" {
					m.Variables[v] = "ON"
				}
			}
			r.Options = ForReplica()
			i, err := StartInstance(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			at := m.Quiesced.Coordinates
			i.request.Manifest.Quiesced.Coordinates.Position = 4
			source := Source{Host: "db1.invalid", Port: 3306, User: "repl", Password: "secret"}
			if err := i.Follow(t.Context(), source); respaldo.KindOf(err) != respaldo.NotProved || !strings.Contains(err.Error(), "not exact") {
				t.Errorf("from before what it holds: %v", err)
			}
			i.request.Manifest.Quiesced.Coordinates = at
			if err := i.Follow(t.Context(), source); err != nil {
				t.Error(err)
			}
			if err := i.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if i, err = StartInstance(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			rows, err := queryRows(t.Context(), i.DB(), replicaStatusStatement(m.Version))
			if err != nil || len(rows) != 1 {
				t.Fatalf("%d sources, %v", len(rows), err)
			}
			if s := rows[0]; s.first("source_host", "master_host") != source.Host || !strings.HasPrefix(s["relay_log_file"], RelayLog) {
				t.Errorf("it follows %q, with relay log %q", s.first("source_host", "master_host"), s["relay_log_file"])
			}
			stopInstance(t, i)
		})
	}
}
