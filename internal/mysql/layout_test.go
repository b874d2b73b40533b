package mysql

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// elsewhere puts the redo log, the binlogs and a database outside the data directory.
func elsewhere(t *testing.T, b *box, spec *servers.Spec) {
	t.Helper()
	binlogs, redo, linked := b.mkdir(t, "binlogs"), b.mkdir(t, "redo"), b.mkdir(t, "disk2", "linked")
	moved, err := filepath.Glob(filepath.Join(b.data, "ib_logfile*"))
	if err != nil {
		t.Fatal(err)
	}
	if b.name == "mysql-9.7" {
		moved = append(moved, filepath.Join(b.data, "#innodb_redo"))
	} else if err := os.Symlink(linked, filepath.Join(b.data, "linked")); err != nil {
		t.Fatal(err)
	}
	for _, path := range moved {
		if err := os.Rename(path, filepath.Join(redo, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
	spec.Args = append(spec.Args, "--log-bin="+filepath.Join(binlogs, "mysql-bin"), "--innodb-log-group-home-dir="+redo,
		"--secure-file-priv="+b.mkdir(t, "files"))
	if b.name == "mysql-9.7" || b.name == "mariadb-11.8" {
		spec.Args = append(spec.Args, "--log-bin-index="+filepath.Join(b.mkdir(t, "third"), "list.index"))
	}
	if b.name == "mysql-9.7" {
		spec.Args = append(spec.Args, "--innodb-directories="+b.mkdir(t, "ext"))
	} else {
		b.mkdir(t, "ext")
	}
}

// placed says that a role has exactly one place outside the data directory, there.
func placed(t *testing.T, f *Facts, role respaldo.Role, path string) {
	t.Helper()
	var outside []string
	for _, p := range f.Layout.Of(role) {
		if !p.Inside {
			outside = append(outside, p.Path)
			if p.Real != realPath(path) {
				t.Errorf("%s: real path %s, want %s", role, p.Real, realPath(path))
			}
		}
	}
	if len(outside) != 1 || outside[0] != path {
		t.Errorf("%s outside the data directory: %q, want %q", role, outside, path)
	}
}

func testLayout(t *testing.T, b *box) {
	ext := b.path("ext")
	b.exec(t, "CREATE TABLE d.far (id INT PRIMARY KEY) ENGINE=InnoDB DATA DIRECTORY='"+ext+"'")
	if _, err := b.conn(t).ExecContext(t.Context(), "CREATE TEMPORARY TABLE d.fleeting (id INT PRIMARY KEY) ENGINE=InnoDB"); err != nil { // a file in tmpdir, up to 5.6
		t.Fatal(err)
	}
	s := b.server(t)
	redo := b.path("redo")
	if b.name == "mysql-9.7" {
		redo = b.path("redo", "#innodb_redo")
	}
	f := mustFacts(t, s)
	if f.Layout.DataDir != b.data || f.Layout.Places[0].Role != respaldo.DataRole || f.Layout.Places[0].Real != realPath(b.data) || f.Layout.Places[0].Inside {
		t.Errorf("data directory: %+v", f.Layout.Places[0])
	}
	placed(t, f, respaldo.RedoRole, redo)
	placed(t, f, respaldo.BinlogRole, b.path("binlogs"))
	placed(t, f, respaldo.SecureFileRole, b.path("files"))
	placed(t, f, respaldo.TablespaceRole, filepath.Join(ext, "d"))
	if !f.BinlogElsewhere || f.BinlogDir != b.path("binlogs") || f.BinlogBase != "mysql-bin" {
		t.Errorf("binlogs: elsewhere %t, in %s, named %s", f.BinlogElsewhere, f.BinlogDir, f.BinlogBase)
	}
	if refused := f.Refusals(); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
	if b.name == "mysql-9.7" {
		return // knows neither linked databases nor MyISAM's DATA DIRECTORY
	}
	placed(t, f, respaldo.DatabaseRole, filepath.Join(b.data, "linked"))
	b.exec(t, "CREATE TABLE d.far_myisam (id INT) ENGINE=MyISAM DATA DIRECTORY='"+ext+"'")
	found := false
	for _, p := range mustFacts(t, s).Layout.Of(respaldo.TablespaceRole) {
		found = found || p.Path == filepath.Join(b.data, "d", "far_myisam.MYD") && p.Real == realPath(filepath.Join(ext, "far_myisam.MYD")) && !p.Inside
	}
	if !found {
		t.Errorf("the data file of a MyISAM table elsewhere is not among %+v", mustFacts(t, s).Layout.Places)
	}
	b.exec(t, "DROP TABLE d.far_myisam")
}

// TestOptionFilesAndKeys has a server that reads option files and encrypts: the files and the
// keys belong to a backup.
func TestOptionFilesAndKeys(t *testing.T) {
	t.Parallel()
	b := startBox(t, "mariadb-10.11", func(b *box, spec *servers.Spec) {
		keys := b.write(t, "keys.txt", "1;"+strings.Repeat("0123456789abcdef", 4)+"\n")
		b.mkdir(t, "conf.d")
		b.write(t, "conf.d/crypt.cnf", "[mariadbd]\nplugin_load_add=file_key_management\nloose-file-key-management-filename="+keys+"\nskip-log-bin\n")
		main := b.write(t, "main.cnf", "!includedir "+b.path("conf.d")+"\n[mysqld]\nskip_name_resolve\n")
		spec.Args = []string{"--defaults-file=" + main, "--skip-log-bin"}
	})
	b.exec(t, "CREATE DATABASE d", "CREATE TABLE d.plain (id INT) ENGINE=InnoDB")
	s := b.server(t)
	f := mustFacts(t, s)
	if f.Encrypted {
		t.Errorf("encrypted without any encrypted table: %v", f.EncryptedWhat)
	}
	if got := strings.Join(f.OptionFiles, " "); got != b.path("main.cnf")+" "+b.path("conf.d/crypt.cnf") {
		t.Errorf("option files: %s", got)
	}
	if f.BinlogOn || len(f.Layout.Of(respaldo.BinlogRole)) > 0 {
		t.Errorf("binlog is said to be on")
	}
	at, err := s.Coordinates(t.Context())
	if err != nil || at.String() != "none" {
		t.Errorf("coordinates without a binlog: %s, %v", at, err)
	}

	b.exec(t, "CREATE TABLE d.secret (id INT) ENGINE=InnoDB ENCRYPTED=YES")
	f = mustFacts(t, s)
	if !f.Encrypted || !strings.Contains(strings.Join(f.EncryptedWhat, ", "), "1 tablespace") {
		t.Errorf("encrypted: %t, %v", f.Encrypted, f.EncryptedWhat)
	}
	placed(t, f, respaldo.KeyringRole, b.path("keys.txt"))
	if refused := f.Refusals(); len(refused) > 0 {
		t.Errorf("refused with the keys at hand: %v", refused)
	}
}

// TestMySQLOnly is what MariaDB has not.
func TestMySQLOnly(t *testing.T) {
	t.Parallel()
	b := startBox(t, "mysql-9.7", nil)
	b.exec(t, "ALTER INSTANCE DISABLE INNODB REDO_LOG")
	refused := mustFacts(t, b.server(t)).Refusals()
	if len(refused) != 1 {
		t.Fatalf("without a redo log refused: %v", refused)
	}
	mustBe(t, refused[0], respaldo.Refused, "redo log", "ALTER INSTANCE ENABLE INNODB REDO_LOG")
	b.exec(t, "ALTER INSTANCE ENABLE INNODB REDO_LOG")
	f := mustFacts(t, b.server(t))
	t.Run("keyring component", func(t *testing.T) {
		t.Parallel()
		testKeyringComponent(t, b, f)
	})
	t.Run("group replication", func(t *testing.T) {
		t.Parallel()
		testGroupReplication(t, b)
	})
}

// testKeyringComponent starts a second server whose manifest, beside its program, names a
// keyring in a file.
func testKeyringComponent(t *testing.T, b *box, f *Facts) {
	ctx := context.Background()
	data, plugins, socket := b.path("encrypted"), b.mkdir(t, "plugins"), b.path("encrypted.sock")
	if err := servers.Init(ctx, b.name, data); err != nil {
		t.Fatal(err)
	}
	argv := slices.Clone(f.Process.Binary.Argv)
	program := &argv[len(argv)-1]
	keyring, err := os.ReadFile(filepath.Join(f.Variables["plugin_dir"], "component_keyring_file.so"))
	if err != nil {
		t.Fatal(err)
	}
	b.write(t, "plugins/component_keyring_file.so", string(keyring))
	b.write(t, "plugins/component_keyring_file.cnf", `{"read_local_config": true}`)
	b.write(t, "encrypted/component_keyring_file.cnf", `{"path": "`+b.path("keyring.data")+`", "read_only": false}`)
	b.mkdir(t, "sbin")
	if err := os.Link(*program, b.path("sbin/mysqld")); err != nil { // another filesystem
		binary, err := os.ReadFile(*program)
		if err != nil {
			t.Fatal(err)
		}
		b.write(t, "sbin/mysqld", string(binary))
		if err := os.Chmod(b.path("sbin/mysqld"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	*program = b.path("sbin/mysqld")
	const manifest = `{"components": "file://component_keyring_file"}`
	b.write(t, "sbin/mysqld.my", manifest)
	argv = append(append(argv, f.Process.Args...), "--datadir="+data, "--socket="+socket, "--pid-file="+socket+".pid", "--plugin-dir="+plugins, "--skip-networking",
		"--log-bin="+filepath.Join(b.mkdir(t, "encrypted-binlogs"), "bin"), "--binlog-encryption=ON")
	startCommand(t, socket, run.Cmd{Argv: argv, Env: f.Process.Binary.Env, SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}})

	s, err := Connect(ctx, Options{DefaultsFile: b.write(t, "encrypted.cnf", "[client]\nuser=root\n"), Socket: socket}, nil)
	if err != nil {
		t.Fatal(explained(err))
	}
	defer s.Close()
	for _, statement := range []string{"CREATE DATABASE d", "CREATE TABLE d.secret (id INT PRIMARY KEY) ENCRYPTION='Y'"} {
		if _, err := s.DB().Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	f = mustFacts(t, s)
	if !f.Encrypted || !f.BinlogEncrypted || strings.Join(f.EncryptedWhat, ", ") != "1 tablespace, binlog" {
		t.Errorf("encrypted %t, binlog encrypted %t, %q", f.Encrypted, f.BinlogEncrypted, f.EncryptedWhat)
	}
	var found []string
	for _, p := range f.Layout.Of(respaldo.KeyringRole) {
		found = append(found, p.Path)
	}
	want := []string{*program + ".my", filepath.Join(plugins, "component_keyring_file.cnf"), filepath.Join(data, "component_keyring_file.cnf"), b.path("keyring.data")}
	if !slices.Equal(found, want) {
		t.Errorf("keyring %q, want %q", found, want)
	}
	if refused := f.Refusals(); len(refused) > 0 {
		t.Errorf("refused with the keys at hand: %v", refused)
	}
	// Without what names the keys, a backup would be worthless.
	if err := os.Remove(*program + ".my"); err != nil {
		t.Fatal(err)
	}
	refused := mustFacts(t, s).Refusals()
	if len(refused) != 1 {
		t.Fatalf("refused: %v", refused)
	}
	mustBe(t, refused[0], respaldo.Refused, "1 tablespace, binlog", "key files were not found")
	b.write(t, "sbin/mysqld.my", manifest)
	testEncryptedBinlogs(t, b, s)
}

// testEncryptedBinlogs kills the server and proves what it leaves with the tail of binlogs
// that nobody but a server can read: their positions and their sizes count differently.
func testEncryptedBinlogs(t *testing.T, b *box, s *Server) {
	ctx := t.Context()
	if _, err := s.DB().ExecContext(ctx, "INSERT INTO d.secret VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	f, tails := mustFacts(t, s), b.mkdir(t, "encrypted-tail")
	mode, _, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil {
		t.Fatal(err)
	}
	var tail *BinlogTail
	q, err := s.Quiesce(ctx, QuiesceRequest{Mode: mode, Budget: patience, Facts: f}, func(_ context.Context, at respaldo.Coordinates) (err error) {
		tail, err = f.OpenBinlogTail(at)
		return err
	})
	if err != nil {
		t.Fatal(explained(err))
	}
	defer tail.Close()
	if _, err := tail.CopyTo(ctx, tails); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(f.Process.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the server", func() bool { return !f.Process.Alive() })
	proof, err := Prove(ctx, InstanceRequest{
		Manifest: respaldo.Manifest{Server: "encrypted", Version: f.Version, Layout: f.Layout, Variables: f.Variables, BinlogOn: f.BinlogOn, Binary: f.Process.Binary, Quiesced: q},
		Dirs:     map[string]string{f.Layout.DataDir: f.Layout.DataDir, f.BinlogDir: tails},
		Scratch:  b.path("s"),
		Run:      t.Name(),
	}, respaldo.ProveQuick)
	if err != nil {
		log, _ := os.ReadFile(b.path("s", InstanceLog))
		t.Fatalf("%s\n%s", explained(err), log)
	}
	if proof.Coordinates.String() != q.Coordinates.String() {
		t.Errorf("coordinates %s, want %s", proof.Coordinates, q.Coordinates)
	}
}
