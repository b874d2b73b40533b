package mysql

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// TestOptionFilesAsTheServersReadThem reads a file full of corner cases with us and with
// the servers' own my_print_defaults.
func TestOptionFilesAsTheServersReadThem(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("d/b.cnf", "[respaldo]\nfrom-b=1\n")
	write("d/a.cnf", "[client]\nfrom_a\n[mysqld]\nnot=ours\n")
	write("d/c.ini", "[client]\nwrong=ending\n")
	write("single", "[client]\nfrom-single = yes\n")
	main := write("main.cnf", strings.Join([]string{
		"# comment", "; comment", "", "[mysqld]", "datadir=/nowhere",
		"  [client]  ", "bare", "  spaces  =  around it  ", "empty=", "hash=a#b", `quoted = "a # b" # comment`, `single='it"s'`,
		`escapes="tab\tnewline\\n \s\\ \" \q"`, `unquoted=a\tb\\c\sd`, "half=\"open", "equals=a=b", "trailing=x   \t", `apostrophe="it's"`,
		"!includedir " + filepath.Join(dir, "d"), "!include " + filepath.Join(dir, "single"),
		"after-include=still-client", "loose-thing=1", "under_score-mix=2",
		"[respaldo]", "user=bob", "[other]", "ignored=1",
	}, "\n")+"\n")

	parsed, err := readOptionFiles([]string{main}, []string{"client", "respaldo"})
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, o := range parsed.options {
		text := "--" + o.name
		if o.loose {
			text = "--loose-" + o.name
		}
		if !o.bare {
			text += "=" + o.value
		}
		ours = append(ours, text)
	}
	if err := servers.Ensure(context.Background(), "mysql-9.7", "mariadb-11.8"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mysql-9.7", "mariadb-11.8"} {
		r, err := run.Local{}.Run(context.Background(), run.Cmd{Argv: []string{servers.Binary(name, "my_print_defaults"), "--defaults-file=" + main, "client", "respaldo"}})
		if err != nil {
			t.Fatal(err)
		}
		var theirs []string
		for line := range strings.Lines(string(r.Stdout)) {
			option, value, found := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			if option = optionName(option); found {
				option += "=" + value
			}
			theirs = append(theirs, option)
		}
		if !slices.Equal(ours, theirs) {
			t.Errorf("%s reads\n%q\nwe read\n%q", name, theirs, ours)
		}
	}
	want := []string{main, filepath.Join(dir, "d/a.cnf"), filepath.Join(dir, "d/b.cnf"), filepath.Join(dir, "single")}
	if !slices.Equal(parsed.read, want) {
		t.Errorf("read %q, want %q", parsed.read, want)
	}
}

func TestOptionFilesThatWillNotDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my.cnf")
	connect := func(content string, mode os.FileMode) error {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Connect(context.Background(), Options{DefaultsFile: path}, nil)
		return err
	}
	mustBe(t, connect("[respaldo]\npasword=x\n", 0o600), respaldo.Usage, `unknown option "pasword"`, "line 2")
	mustBe(t, connect("[client]\nport=70000\n", 0o600), respaldo.Usage, "70000", "line 2")
	mustBe(t, connect("[client\nuser=x\n", 0o600), respaldo.Usage, "bracket", "line 1")
	mustBe(t, connect("user=x\n", 0o600), respaldo.Usage, "before the first [group]", "line 1")
	mustBe(t, connect("[client]\nprotocol=pipe\n", 0o600), respaldo.Usage, "protocol")
	mustBe(t, connect("[client]\nssl-mode=MAYBE\n", 0o600), respaldo.Usage, "ssl-mode")
	mustBe(t, connect("[client]\nhost=127.0.0.1\nssl-ca="+path+".pem\n", 0o600), respaldo.Usage, "TLS", path+".pem")
	mustBe(t, connect("[client]\nuser=x\n", 0o666), respaldo.Usage, "everybody may write", "chmod 600")
	_, err := Connect(context.Background(), Options{DefaultsFile: path + ".none"}, nil)
	mustBe(t, err, respaldo.Usage, path+".none")

	// Among others, a file that everybody may write to is passed over.
	parsed, err := readOptionFiles([]string{path, path + ".none"}, clientGroups)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil || len(parsed.options) > 0 || len(parsed.read) > 0 || len(parsed.warnings) != 1 || !strings.Contains(parsed.warnings[0], path) {
		t.Errorf("%+v, %v", parsed, err)
	}
}

// TestTarget is which address comes of which options.
func TestTarget(t *testing.T) {
	for _, v := range []string{"MYSQL_HOST", "MYSQL_TCP_PORT", "MYSQL_UNIX_PORT", "MYSQL_PWD"} {
		t.Setenv(v, "")
	}
	path := filepath.Join(t.TempDir(), "my.cnf")
	for _, c := range []struct {
		file string
		o    Options
		want string
	}{
		{"", Options{}, "unix " + defaultSockets[0]},
		{"socket=/s", Options{}, "unix /s"},
		{"socket=/s\nport=3307", Options{}, "unix /s"},
		{"socket=/s\nport=3307\nhost=localhost", Options{}, "unix /s"},
		{"socket=/s\nport=3307\nhost=db1", Options{}, "tcp db1:3307"},
		{"socket=/s\nhost=::1", Options{}, "tcp [::1]:3306"},
		{"socket=/s\nprotocol=TCP", Options{}, "tcp 127.0.0.1:3306"},
		{"host=db1\nprotocol=socket", Options{}, "unix " + defaultSockets[0]},
		{"host=db1\nport=3307", Options{Socket: "/t"}, "unix /t"},
		{"socket=/s", Options{Port: 3308}, "tcp 127.0.0.1:3308"},
		{"socket=/s\nport=3307", Options{Host: "db2"}, "tcp db2:3307"},
		{"host=db1", Options{Host: "localhost", Socket: "/t"}, "unix /t"},
		{"host=db1", Options{Host: "localhost", Port: 3309}, "tcp 127.0.0.1:3309"},
		{"protocol=socket\nsocket=/s", Options{Host: "127.0.0.1"}, "tcp 127.0.0.1:3306"},
	} {
		if err := os.WriteFile(path, []byte("[client]\n"+c.file+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.o.DefaultsFile = path
		got, err := resolveTarget(c.o)
		if err != nil {
			t.Fatal(err)
		}
		if text := got.network + " " + got.addresses[0]; text != c.want {
			t.Errorf("%q with %+v: %s, want %s", c.file, c.o, text, c.want)
		}
	}
}
