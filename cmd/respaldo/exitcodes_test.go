package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

func TestDocumentedExitCodes(t *testing.T) {
	var table strings.Builder
	table.WriteString("| Code | Kind | Meaning |\n|---|---|---|\n")
	for _, e := range exitCodes {
		name := "–"
		if e.name != "" {
			name = "`" + e.name + "`"
		}
		fmt.Fprintf(&table, "| %d | %s | %s |\n", e.kind, name, e.meaning)
	}
	docs, err := os.ReadFile("../../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(docs), table.String()) {
		t.Errorf("docs/exit-codes.md does not have this table:\n%s", table.String())
	}
	help := respaldoRuns(t, "help", "exit-codes")
	for _, e := range exitCodes {
		if !strings.Contains(help.stdout, e.meaning) {
			t.Errorf("respaldo help exit-codes does not say %q", e.meaning)
		}
	}
}

// Every kind that the root package declares has a code that is documented.
func TestEveryKindHasItsCode(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, e := range exitCodes {
		documented[strconv.Itoa(int(e.kind))] = true
	}
	kinds := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Kind" {
			kinds++
			if value := spec.Values[0].(*ast.BasicLit).Value; !documented[value] {
				t.Errorf("%s (%s) is not in the table", spec.Names[0], value)
			}
		}
		return true
	})
	if kinds < 12 {
		t.Errorf("found %d kinds only", kinds)
	}
}

func TestErrorsBecomeExitCodes(t *testing.T) {
	for _, e := range exitCodes {
		if e.kind == 0 || e.kind > 128 {
			continue
		}
		r := respaldoRuns(t, "fail", fmt.Sprint(int(e.kind)))
		if r.code != int(e.kind) || r.stdout != "" || r.stderr != "respaldo: it failed on ***: the cause\nhint: try again\n" {
			t.Errorf("%s: %+v", e.name, r)
		}
	}
}

func TestErrorsAsJSON(t *testing.T) {
	for _, args := range [][]string{{"fail", "9", "--json"}, {"--json", "fail", "9"}} {
		r := respaldoRuns(t, args...)
		var doc map[string]map[string]any
		if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
			t.Fatalf("%q: %v", r.stdout, err)
		}
		e := doc["error"]
		if r.code != 9 || len(doc) != 1 || len(e) != 4 || e["kind"] != "busy" || e["code"] != 9.0 ||
			e["message"] != "it failed on ***: the cause" || fmt.Sprint(e["hints"]) != "[try again]" {
			t.Errorf("%q: %s", args, r.stdout)
		}
		if !strings.HasPrefix(r.stderr, "respaldo: it failed") {
			t.Errorf("stderr: %q", r.stderr)
		}
	}
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
		hint string
	}{
		{[]string{"which", "--sever", "x"}, "unknown flag: --sever", "see respaldo which --help"},
		{[]string{"--nonsense"}, "unknown flag: --nonsense", "see respaldo --help"},
		{[]string{"nonsense"}, `unknown command "nonsense"`, "see respaldo --help"},
		{[]string{"versoin"}, `unknown command "versoin"`, "did you mean respaldo version?"},
		{[]string{"version", "--server"}, "flag needs an argument: --server", "see respaldo version --help"},
		{[]string{"version", "x"}, `respaldo version: "x" is one argument too many`, "see respaldo version --help"},
		{[]string{"parent"}, "respaldo parent needs a subcommand", "it has child"},
		{[]string{"parent", "chidl"}, `respaldo parent has no subcommand "chidl"`, "it has child"},
		{[]string{"parent", "child"}, "respaldo parent child: NAME is missing", "see respaldo parent child --help"},
		{[]string{"version", "--log-format", "xml"}, "--log-format is text or json, not xml", ""},
		{[]string{"version", "--quiet", "--verbose"}, "if any flags in the group [quiet verbose] are set none of the others can be", ""},
		{[]string{"completion", "csh"}, `there is no completion for the shell "csh"`, "bash, zsh and fish"},
		{[]string{"backup", "--ttl", "24h"}, "--ttl is for a snapshot that stays", "--keep-snapshot"},
		{[]string{"backup", "--keep-snapshot", "--ttl", "0"}, "--ttl must be more than zero", "24h"},
		{[]string{"snapshot", "create", "--ttl", "-1h"}, "--ttl must be more than zero", "24h"},
		{[]string{"which", "--config", "/does/not/exist"}, "there is no configuration file /does/not/exist", "write one"},
	} {
		r := respaldoRuns(t, c.args...)
		if r.code != 2 || !strings.HasPrefix(r.stderr, "respaldo: "+c.says) || !strings.Contains(r.stderr, "hint: ") && c.hint != "" || !strings.Contains(r.stderr, c.hint) || r.stdout != "" {
			t.Errorf("%q: %+v", c.args, r)
		}
		r = respaldoRuns(t, append(c.args, "--json")...)
		var doc errorDocument
		// A flag that wants a value takes --json for it: then nobody asked for JSON.
		if err := json.Unmarshal([]byte(r.stdout), &doc); (err != nil || doc.Error.Kind != "usage" || doc.Error.Code != 2) && c.args[len(c.args)-1] != "--server" {
			t.Errorf("%q --json: %+v", c.args, r)
		}
	}
}

func TestMistakesInTheConfiguration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "respaldo.toml")
	if err := os.WriteFile(path, []byte("format = 1\n[server.main]\nmax_lok = \"1s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := respaldoRuns(t, "which", "--config", path)
	want := "respaldo: " + path + ":3: unknown key \"max_lok\" in [server.main]\nhint: did you mean \"max_lock\"?\n"
	if r.code != int(respaldo.Usage) || r.stderr != want {
		t.Errorf("%+v", r)
	}
}

func TestWhichServerAndRepository(t *testing.T) {
	path := filepath.Join(t.TempDir(), "respaldo.toml")
	text := "format = 1\n[repository]\nurl = \"file:///common\"\n[server.one]\n[server.two]\n[server.two.repository]\nurl = \"file:///own\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-s", "one"}, 0, "one in file:///common\n"},
		{[]string{"--server", "two"}, 0, "two in file:///own\n"},
		{[]string{"--server", "two", "-r", "file:///flag"}, 0, "two in file:///flag\n"},
		{[]string{}, 2, ""},
		{[]string{"--server", "three"}, 10, ""},
	} {
		if r := respaldoRuns(t, append([]string{"which", "--config", path}, c.args...)...); r.code != c.code || r.stdout != c.says {
			t.Errorf("%q: %+v", c.args, r)
		}
	}
	cmd := program("which", "--config", path, "-s", "one")
	cmd.Env = append(cmd.Env, "RESPALDO_REPOSITORY=file:///environment")
	if out, err := cmd.Output(); err != nil || string(out) != "one in file:///environment\n" {
		t.Errorf("RESPALDO_REPOSITORY: %q, %v", out, err)
	}
	complete := respaldoRuns(t, "__complete", "--config", path, "which", "--server", "")
	if !strings.HasPrefix(complete.stdout, "one\ntwo\n") {
		t.Errorf("completion of --server: %+v", complete)
	}
}
