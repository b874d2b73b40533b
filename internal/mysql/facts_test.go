package mysql

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

func engine(f *Facts, name string) EngineUse {
	for _, e := range f.Engines {
		if e.Engine == name {
			return e
		}
	}
	return EngineUse{}
}

// reportPassword is one of a server's settings that it shows to everybody.
const reportPassword = "tell-the-source"

func testFacts(t *testing.T, b *box) {
	b.exec(t, "CREATE TABLE d.my (id INT) ENGINE=MyISAM", "CREATE TABLE d.mem (id INT) ENGINE=MEMORY")
	f := mustFacts(t, b.server(t))
	flavor := respaldo.MariaDB
	if strings.HasPrefix(b.name, "mysql") {
		flavor = respaldo.MySQL
	}
	if !strings.HasPrefix(b.name, string(flavor)) || f.Version.Flavor != flavor || !strings.Contains(strings.ToLower(strings.ReplaceAll(f.Version.String(), " ", "-")), b.name) {
		t.Errorf("version %s of %s", f.Version, b.name)
	}
	if want := map[respaldo.Flavor]string{respaldo.MySQL: "MySQL", respaldo.MariaDB: "MariaDB"}[flavor]; f.Vendor != want {
		t.Errorf("vendor %q", f.Vendor)
	}
	if f.Cluster != "" || f.Replica || len(f.Upstream) > 0 {
		t.Errorf("a server on its own: cluster %q, upstream %v", f.Cluster, f.Upstream)
	}
	if len(f.Variables) < 300 || f.Variables["innodb_page_size"] != "16384" || f.Variables["sync_binlog"] != "1" {
		t.Errorf("%d variables, page size %q", len(f.Variables), f.Variables["innodb_page_size"])
	}
	if f.Variables["report_password"] != hidden || strings.Contains(fmt.Sprint(f.Variables), reportPassword) {
		t.Errorf("a password among the variables: %q", f.Variables["report_password"])
	}
	if e := engine(f, "InnoDB"); e.Tables < 2 || !e.Transactional || !slices.Contains(e.Examples, "d.t") && e.Tables < 4 {
		t.Errorf("InnoDB: %+v", e)
	}
	if e := engine(f, "MyISAM"); e.Tables != 1 || e.Transactional || !slices.Equal(e.Examples, []string{"d.my"}) {
		t.Errorf("MyISAM: %+v", e)
	}
	if !f.SeesAllTables || !f.FilesSeen {
		t.Errorf("root sees all: tables %t, files %t", f.SeesAllTables, f.FilesSeen)
	}
	if len(f.Lost) != 1 || !strings.Contains(f.Lost[0], "d.mem") {
		t.Errorf("lost: %v", f.Lost)
	}
	if f.Encrypted || !f.BinlogOn || f.BinlogEncrypted {
		t.Errorf("encrypted %t, binlog on %t, binlog encrypted %t", f.Encrypted, f.BinlogOn, f.BinlogEncrypted)
	}
	if len(f.Long) > 0 {
		t.Errorf("nothing runs for long: %v", f.Long)
	}
}

// testPrivileges has accounts with exactly the documented privileges, and with none.
func testPrivileges(t *testing.T, b *box) {
	b.exec(t, "CREATE USER "+grantee+" IDENTIFIED BY 'pw'", "CREATE USER 'nobody'@'localhost' IDENTIFIED BY 'pw'")
	_, err := b.serverAs(t, "nobody", "pw").Facts(context.Background())
	mustBe(t, err, respaldo.Unreachable, `account "nobody" lacks the privilege`, "GRANT ", "TO 'nobody'@'localhost'")

	var mode string // that statements of ours must not depend on
	if err := b.root.QueryRow("SELECT @@GLOBAL.sql_mode").Scan(&mode); err != nil {
		t.Fatal(err)
	}
	b.exec(t, "SET GLOBAL sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES,PIPES_AS_CONCAT'")
	defer b.exec(t, "SET GLOBAL sql_mode = '"+mode+"'")

	b.exec(t, Grants(b.server(t).Version())...)
	s := b.serverAs(t, "respaldo", "pw")
	f := mustFacts(t, s)
	if f.SeesAllTables {
		t.Error("the least account is said to see all tables")
	}
	if e := engine(f, "MyISAM"); e.Tables != 1 || !slices.Equal(e.Examples, []string{"d.my"}) {
		t.Errorf("MyISAM by its files: %+v", e)
	}
	lightest, _, err := ChooseLock(f, respaldo.LockAuto)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []respaldo.LockMode{lightest, respaldo.LockGlobal} {
		q, err := s.Quiesce(context.Background(), QuiesceRequest{Mode: mode, Budget: 20 * time.Second, Facts: f}, func(ctx context.Context, at respaldo.Coordinates) error {
			if now, err := b.server(t).Coordinates(ctx); err != nil || now.String() != at.String() {
				t.Errorf("stands at %s, we were told %s, %v", now, at, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(explained(err))
		}
		if q.Mode != mode || q.HeldSeconds <= 0 || q.At.IsZero() || q.Coordinates.File == "" {
			t.Errorf("quiesced: %+v", q)
		}
	}
	testQuiesceBlindly(t, b, s, f)

	b.exec(t, SelectGrant())
	if f := mustFacts(t, b.serverAs(t, "respaldo", "pw")); !f.SeesAllTables || engine(f, "InnoDB").Tables < 2 {
		t.Errorf("with %s it does not see all tables: %+v", SelectGrant(), f.Engines)
	}
}

// testGroupReplication makes the server a group of one: it is named and refused while it is.
func testGroupReplication(t *testing.T, b *box) {
	b.exec(t, "INSTALL PLUGIN group_replication SONAME 'group_replication.so'",
		"SET GLOBAL group_replication_group_name = 'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa'")
	s := b.server(t)
	if f := mustFacts(t, s); f.Cluster != "" || len(f.Refusals()) > 0 {
		t.Errorf("configured only: cluster %q, refused %v", f.Cluster, f.Refusals())
	}
	b.exec(t, fmt.Sprintf("SET GLOBAL group_replication_local_address = '127.0.0.1:%d'", freePort(t)),
		"SET GLOBAL group_replication_bootstrap_group = ON", "START GROUP_REPLICATION")
	f := mustFacts(t, s)
	if f.Cluster != "Group Replication" || f.Replica {
		t.Errorf("cluster %q, upstream %v", f.Cluster, f.Upstream)
	}
	refused := f.Refusals()
	if len(refused) != 1 {
		t.Fatalf("refused: %v", refused)
	}
	mustBe(t, refused[0], respaldo.Refused, "Group Replication", "replica")
	b.exec(t, "STOP GROUP_REPLICATION")
}

// testUnflushedCommits: with the setting at 0 the last second is missing from any image
// (TestImageWithoutTheLastCommitsIsNotProved makes one).
func testUnflushedCommits(t *testing.T, b *box) {
	s := b.server(t)
	for value, refusals := range map[string]int{"0": 1, "2": 0, "1": 0} {
		b.exec(t, "SET GLOBAL innodb_flush_log_at_trx_commit = "+value)
		refused := mustFacts(t, s).Refusals()
		if len(refused) != refusals {
			t.Errorf("with %s refused: %v", value, refused)
		}
		for _, err := range refused {
			mustBe(t, err, respaldo.Refused, "innodb_flush_log_at_trx_commit", "SET GLOBAL")
		}
	}
	b.exec(t, "SET GLOBAL innodb_flush_log_at_trx_commit = 1")
}

func TestChooseLock(t *testing.T) {
	version := func(flavor respaldo.Flavor, major, minor, patch int) *Facts {
		return &Facts{Version: respaldo.Version{Flavor: flavor, Major: major, Minor: minor, Patch: patch}}
	}
	maria, old, mysql := version(respaldo.MariaDB, 10, 11, 6), version(respaldo.MariaDB, 10, 3, 39), version(respaldo.MySQL, 8, 4, 0)
	rocks := version(respaldo.MariaDB, 11, 8, 2)
	rocks.Engines = []EngineUse{{Engine: "InnoDB", Tables: 9}, {Engine: "ROCKSDB", Tables: 1, Examples: []string{"d.r"}}}
	// safe has everything that an image without a lock needs, but for what change breaks.
	safe := func(f Facts, change func(f *Facts)) *Facts {
		f.SeesAllTables, f.FilesSeen, f.BinlogOn, f.Coverage = true, true, true, &Coverage{Volume: "vg/data"}
		f.Variables = map[string]string{"sync_binlog": "1", "innodb_flush_log_at_trx_commit": "1", "innodb_doublewrite": "ON", "innodb_flush_method": "O_DIRECT"}
		if change != nil {
			change(&f)
		}
		return &f
	}
	binlogs := respaldo.Place{Role: respaldo.BinlogRole, Path: "/var/log/mysql"}
	for _, c := range []struct {
		facts  *Facts
		asked  respaldo.LockMode
		want   respaldo.LockMode
		reason string // in the reason, or where the lock is refused in the error
	}{
		{maria, respaldo.LockAuto, respaldo.LockBackup, "BACKUP STAGE"},
		{maria, "", respaldo.LockBackup, "BACKUP STAGE"},
		{maria, respaldo.LockGlobal, respaldo.LockGlobal, "asked for"},
		{maria, respaldo.LockNone, "", "--lock=none is not safe here"},
		{maria, "table", "", "unknown lock"},
		{old, respaldo.LockAuto, respaldo.LockGlobal, "before 10.4"},
		{old, respaldo.LockBackup, "", "--lock=backup is not safe here"},
		{mysql, respaldo.LockAuto, respaldo.LockGlobal, "FLUSH TABLES WITH READ LOCK"},
		{mysql, respaldo.LockBackup, "", "--lock=backup is not safe here"},
		{rocks, respaldo.LockAuto, respaldo.LockGlobal, "ROCKSDB (d.r)"},
		{rocks, respaldo.LockBackup, "", "ROCKSDB"},

		{safe(*maria, nil), respaldo.LockAuto, respaldo.LockNone, "BLOCK_DDL"},
		{safe(*old, nil), respaldo.LockAuto, respaldo.LockNone, "watched"},
		{safe(*mysql, nil), respaldo.LockNone, respaldo.LockNone, "watched"},
		{safe(*mysql, func(f *Facts) { f.backupAdmin = true }), respaldo.LockNone, respaldo.LockNone, "LOCK INSTANCE FOR BACKUP"},
		{safe(*mysql, nil), respaldo.LockGlobal, respaldo.LockGlobal, "asked for; none would do"},
		{safe(*maria, nil), respaldo.LockBackup, respaldo.LockBackup, "asked for; none would do"},
		{safe(*mysql, nil), respaldo.LockBackup, "", "--lock=backup is not safe here"},
		{safe(*rocks, nil), respaldo.LockNone, "", "ROCKSDB (d.r)"},
		{safe(*maria, func(f *Facts) { f.Coverage = nil }), respaldo.LockAuto, respaldo.LockBackup, "not known whether one snapshot"},
		{safe(*maria, func(f *Facts) { f.Coverage.Outside = []respaldo.Place{binlogs} }), respaldo.LockNone, "", "vg/data does not hold /var/log/mysql (binlog)"},
		{safe(*maria, func(f *Facts) { f.BinlogEncrypted = true }), respaldo.LockAuto, respaldo.LockBackup, "the binlog is encrypted"},
		{safe(*maria, func(f *Facts) { f.Variables["binlog_storage_engine"] = "innodb" }), respaldo.LockNone, "", "the binlog is kept in innodb"},
		{safe(*maria, func(f *Facts) { f.BinlogOn = false; f.Variables["sync_binlog"] = "0" }), respaldo.LockAuto, respaldo.LockNone, ""},
		{safe(*maria, func(f *Facts) { f.Variables["innodb_flush_log_at_trx_commit"] = "3" }), respaldo.LockNone, respaldo.LockNone, ""},
		{safe(*mysql, func(f *Facts) { f.Variables["innodb_flush_log_at_trx_commit"] = "3" }), respaldo.LockNone, "", "innodb_flush_log_at_trx_commit is 3"},
		{safe(*mysql, func(f *Facts) { f.Variables["innodb_flush_method"] = "nosync" }), respaldo.LockNone, "", "innodb_flush_method is nosync"},
		{safe(*mysql, func(f *Facts) { f.Variables["innodb_doublewrite"] = "DETECT_AND_RECOVER" }), respaldo.LockNone, respaldo.LockNone, ""},
		{safe(*old, func(f *Facts) { f.Variables["innodb_doublewrite"] = "1" }), respaldo.LockNone, respaldo.LockNone, ""},
		{safe(*mysql, func(f *Facts) { f.Replica = true; f.Variables["relay_log_info_repository"] = "FILE" }), respaldo.LockAuto, respaldo.LockGlobal, "relay_log_info_repository"},
	} {
		mode, reason, err := ChooseLock(c.facts, c.asked)
		if mode != c.want {
			t.Errorf("%s, asked for %q: %q (%v), want %q", c.facts.Version, c.asked, mode, err, c.want)
		}
		if err != nil {
			reason = explained(err)
		}
		if !strings.Contains(reason, c.reason) {
			t.Errorf("%s, asked for %q: %q lacks %q", c.facts.Version, c.asked, reason, c.reason)
		}
	}
	for _, c := range []struct {
		facts     *Facts
		mode, use respaldo.LockMode
	}{
		{safe(*maria, nil), respaldo.LockNone, respaldo.LockBackup}, {safe(*mysql, nil), respaldo.LockNone, respaldo.LockGlobal}, {safe(*rocks, nil), respaldo.LockNone, respaldo.LockGlobal},
		{maria, respaldo.LockBackup, respaldo.LockGlobal}, {maria, respaldo.LockGlobal, ""},
	} {
		if use, reason, ok := Stricter(c.facts, c.mode); use != c.use || ok != (c.use != "") || ok && reason == "" {
			t.Errorf("%s, stricter than %s: %s (%s), %t", c.facts.Version, c.mode, use, reason, ok)
		}
	}
}

// What a secret is goes nowhere: not into the manifest, and not onto the command line of an
// instance, even from a manifest that has it. Where the files need it, the server is refused.
func TestSecretsAreRefusedAndNotTold(t *testing.T) {
	const secret = "topsecret123"
	mysql, maria := respaldo.Version{Flavor: respaldo.MySQL, Major: 8, Minor: 0, Patch: 20}, respaldo.Version{Flavor: respaldo.MariaDB, Major: 11, Minor: 8}
	for _, c := range []struct {
		name    string
		version respaldo.Version
		shown   map[string]string
		refusal []string // words of it; none when the server is fine
		option  string   // that the instance gets all the same
		keys    int      // key files
	}{
		{"key in clear text", maria, map[string]string{"file_key_management_filename": "/etc/mysql/keys.enc", fileKey: secret},
			[]string{fileKey, "FILE:"}, "filename=/etc/mysql/keys.enc", 1},
		{"key in a file", maria, map[string]string{"file_key_management_filename": "/etc/mysql/keys.enc", fileKey: "FILE:/etc/mysql/key"},
			nil, "filekey=FILE:/etc/mysql/key", 2},
		{"keyring_encrypted_file", mysql, map[string]string{"keyring_encrypted_file_data": "/var/lib/keyring", "keyring_encrypted_file_password": secret},
			[]string{"keyring_encrypted_file", "component_keyring_encrypted_file"}, "", 1},
		{"keyring_encrypted_file that hides its password", mysql, map[string]string{"keyring_encrypted_file_data": "/var/lib/keyring", "keyring_encrypted_file_password": ""},
			[]string{"keyring_encrypted_file", "component_keyring_encrypted_file"}, "", 1},
		{"others", mysql, map[string]string{"Report_Password": secret, "keyring_hashicorp_secret_id": secret, "authentication_ldap_simple_bind_root_pwd": secret, "keyring_file_password": secret, "keyring_file_data": "/var/lib/keyring"},
			nil, "--loose-keyring-file-data=/var/lib/keyring", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var shown []row
			for name, value := range c.shown {
				shown = append(shown, row{"variable_name": name, "value": value})
			}
			f := &Facts{Version: c.version, Variables: readVariables(shown)}
			f.keyring()
			refused := f.Refusals()
			if len(refused) != min(1, len(c.refusal)) || len(f.Layout.Of(respaldo.KeyringRole)) != c.keys {
				t.Fatalf("refused: %v, places %+v", refused, f.Layout.Places)
			}
			told := fmt.Sprint(f.Variables)
			for _, err := range refused {
				mustBe(t, err, respaldo.Refused, c.refusal...)
				told += explained(err)
			}
			for _, variables := range []map[string]string{f.Variables, c.shown} {
				o := optionList{variables: variables}
				o.carryKeys()
				options := strings.Join(o.list, " ")
				if !strings.Contains(options, c.option) || c.option == "" && options != "" {
					t.Errorf("options %q, want %q", options, c.option)
				}
				told += options
			}
			if strings.Contains(told, secret) || strings.Contains(told, "="+hidden) {
				t.Errorf("told: %s", told)
			}
		})
	}
	const harmless = "validate_password_length"
	if v := readVariables([]row{{"variable_name": harmless, "value": "8"}}); v[harmless] != "8" {
		t.Errorf("hidden without need: %v", v)
	}
}

// Where InnoDB's list of encrypted tablespaces takes SUPER, it is asked for only if there
// can be something in it.
func TestSuperIsNotAskedForWithoutKeys(t *testing.T) {
	for version, super := range map[string]bool{
		"10.2.44-MariaDB": true, "10.3.39-MariaDB": true, "10.4.13-MariaDB": true, "10.4.14-MariaDB": false,
		"10.5.4-MariaDB": true, "10.5.5-MariaDB": false, "11.8.2-MariaDB": false, "8.4.0": false,
	} {
		v, err := respaldo.ParseVersion(version, "")
		if err != nil {
			t.Fatal(err)
		}
		if asksForSuper(v) != super {
			t.Errorf("%s: %t", version, !super)
		}
	}
	f := &Facts{Version: respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 3}, Variables: map[string]string{"innodb_encrypt_tables": "OFF"}}
	if n, err := (&Server{}).encryptedTablespaces(t.Context(), f); n != 0 || err != nil { // there is no server to ask
		t.Errorf("%d, %v", n, err)
	}
	f.Variables["file_key_management_filename"] = "/k"
	if !f.hasKeys() {
		t.Error("a key plugin is not seen")
	}
}

func TestParallelReplicaOutOfOrderIsWarnedOf(t *testing.T) {
	for _, c := range []struct {
		flavor    respaldo.Flavor
		variables string
		warned    bool
	}{
		{respaldo.MySQL, "replica_parallel_workers=4 replica_preserve_commit_order=OFF gtid_mode=OFF", true},
		{respaldo.MySQL, "slave_parallel_workers=2 gtid_mode=OFF", true},
		{respaldo.MySQL, "replica_parallel_workers=1 replica_preserve_commit_order=OFF gtid_mode=OFF", false},
		{respaldo.MySQL, "replica_parallel_workers=4 replica_preserve_commit_order=ON gtid_mode=OFF", true},
		{respaldo.MySQL, "replica_parallel_workers=4 replica_preserve_commit_order=OFF gtid_mode=ON", false},
		{respaldo.MariaDB, "slave_parallel_workers=4 slave_parallel_mode=optimistic", false},
	} {
		f := &Facts{Version: respaldo.Version{Flavor: c.flavor}, Variables: map[string]string{}, Replica: true}
		for setting := range strings.FieldsSeq(c.variables) {
			name, value, _ := strings.Cut(setting, "=")
			f.Variables[name] = value
		}
		f.remark()
		if warned := strings.Contains(strings.Join(f.Warnings, "\n"), "low-water mark"); warned != c.warned {
			t.Errorf("%s %s: warned %t", c.flavor, c.variables, warned)
		}
	}
}
