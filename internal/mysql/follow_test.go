package mysql

import (
	"context"
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
