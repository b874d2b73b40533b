package guest

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo/lab/servers"
)

// MySQLUID is the user mysql in the guest, UID and GID.
const MySQLUID = 102

// ServerSpec says what server to start; Name and DataDir are needed.
type ServerSpec struct {
	Name    string // one of servers.Names
	DataDir string // made afresh if it is empty or absent, used as it is otherwise
	Port    int    // 0: socket only
	Args    []string
	// PerformanceSchema leaves it as the server's default has it; MySQL takes twice as
	// long to start with it.
	PerformanceSchema bool
}

// Server is a server that runs as the user mysql.
type Server struct {
	*servers.Running
	DB         *sql.DB
	OptionFile string // [client] with the socket and root
	DataDir    string
	Name       string
	closed     bool
}

// StartServer starts a server and connects to it. It is killed at the end of the test
// unless it has been stopped.
func StartServer(t T, spec ServerSpec) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if entries, _ := os.ReadDir(spec.DataDir); len(entries) == 0 {
		if err := servers.Init(ctx, spec.Name, spec.DataDir); err != nil {
			t.Fatal(err)
		}
	}
	Chown(t, spec.DataDir)
	var args []string
	if !spec.PerformanceSchema {
		args = append(args, "--performance-schema=OFF")
	}
	base := "/run/mysqld/" + strings.ReplaceAll(strings.Trim(spec.DataDir, "/"), "/", "-")
	r, err := servers.Start(ctx, servers.Spec{Name: spec.Name, DataDir: spec.DataDir, Socket: base + ".sock", Port: spec.Port, User: "mysql",
		Log: base + ".err", Args: leading(spec.Args, args)})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Running: r, OptionFile: base + ".cnf", DataDir: spec.DataDir, Name: spec.Name}
	t.Cleanup(func() {
		if !s.closed {
			s.Kill()
		}
	})
	client := fmt.Sprintf("[client]\nsocket=%s\nuser=root\n", r.Spec().Socket)
	if spec.Port != 0 {
		client += "port=" + strconv.Itoa(spec.Port) + "\n"
	}
	if err := os.WriteFile(s.OptionFile, []byte(client), 0o600); err != nil {
		t.Fatal(err)
	}
	s.DB = r.Open()
	return s
}

// leading puts a --defaults-file that the caller gave in front of our own arguments.
func leading(given, ours []string) []string {
	if len(given) > 0 && strings.HasPrefix(given[0], "--defaults-") {
		return append(append(given[:1:1], ours...), given[1:]...)
	}
	return append(ours, given...)
}

// Stop closes DB and shuts the server down in order.
func (s *Server) Stop() error {
	s.close()
	return s.Running.Stop()
}

// Kill closes DB and ends the server as a crash would.
func (s *Server) Kill() error {
	s.close()
	return s.Running.Kill()
}

func (s *Server) close() {
	s.closed = true
	if s.DB != nil {
		s.DB.Close()
	}
}

// Exec runs statements one after another; the test ends when one fails.
func (s *Server) Exec(t T, statements ...string) {
	t.Helper()
	for _, q := range statements {
		if _, err := s.DB.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// Chown gives a folder and everything in it to the user mysql.
func Chown(t T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, MySQLUID, MySQLUID)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Checksums are the checksums of all user tables, by "database.table".
func Checksums(t T, db *sql.DB) map[string]string {
	t.Helper()
	rows, err := db.Query(`SELECT table_schema, table_name FROM information_schema.tables WHERE table_type='BASE TABLE'
		AND table_schema NOT IN ('mysql','sys','information_schema','performance_schema') ORDER BY 1, 2`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var schema, table string
		if err := rows.Scan(&schema, &table); err != nil {
			t.Fatal(err)
		}
		names = append(names, "`"+schema+"`.`"+table+"`")
	}
	sums := map[string]string{}
	for _, name := range names {
		var table string
		var sum sql.NullString
		if err := db.QueryRow("CHECKSUM TABLE "+name).Scan(&table, &sum); err != nil {
			t.Fatal(err)
		}
		if !sum.Valid {
			t.Errorf("no checksum of %s: the table cannot be read", name)
		}
		sums[table] = sum.String
	}
	return sums
}
