package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// every calls f for each command that a user may type.
func every(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, child := range cmd.Commands() {
		if child.Name() != "help" && !child.IsAdditionalHelpTopicCommand() {
			every(child, f)
		}
	}
}

func testRoot() *cobra.Command {
	a := newApp(io.Discard, io.Discard)
	return newRootCmd(a)
}

func TestEveryCommandIsExplained(t *testing.T) {
	every(testRoot(), func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s lacks Short, Long or Example", cmd.CommandPath())
		}
		for _, line := range strings.Split(cmd.Long+"\n"+cmd.Example, "\n") {
			if len([]rune(line)) > 100 {
				t.Errorf("%s: a line of its help is too long for a terminal: %q", cmd.CommandPath(), line)
			}
		}
		if strings.HasSuffix(cmd.Short, ".") || cmd.Short != "" && strings.ToUpper(cmd.Short[:1]) != cmd.Short[:1] {
			t.Errorf("%s: Short is a title, capital first and without a full stop: %q", cmd.CommandPath(), cmd.Short)
		}
		if cmd.Parent() == cmd.Root() && cmd.GroupID == "" && cmd.Name() != "version" && cmd.Name() != "completion" && !cmd.Hidden {
			t.Errorf("%s belongs to no group of the help", cmd.CommandPath())
		}
	})
}

// An example must be something that one can type: its command and its flags exist.
func TestExamplesAreReal(t *testing.T) {
	root := testRoot()
	every(root, func(cmd *cobra.Command) {
		for _, line := range strings.Split(cmd.Example, "\n") {
			_, words, found := strings.Cut(line, "respaldo ")
			if !found {
				continue
			}
			words, _, _ = strings.Cut(words, "|")
			words, _, _ = strings.Cut(words, ">")
			words, _, _ = strings.Cut(words, ")")
			target, args, err := root.Find(strings.Fields(words))
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			for _, arg := range args {
				name, isFlag := strings.CutPrefix(arg, "--")
				name, _, _ = strings.Cut(name, "=")
				if isFlag && target.Flags().Lookup(name) == nil && target.InheritedFlags().Lookup(name) == nil {
					t.Errorf("%q: %s has no flag --%s", line, target.CommandPath(), name)
				}
			}
		}
	})
}

func TestManualPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if r := respaldoRuns(t, "man", dir); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	every(testRoot(), func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".8"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		for _, section := range []string{".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLE"} {
			if !strings.Contains(string(text), section) {
				t.Errorf("%s has no %s", name, section)
			}
		}
	})
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := respaldoRuns(t, "completion", shell); r.code != 0 || !strings.Contains(r.stdout, "respaldo") || r.stderr != "" {
			t.Errorf("%s: code %d, %d bytes, %q", shell, r.code, len(r.stdout), r.stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	r := respaldoRuns(t, "version", "--json")
	var v versionInfo
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || v.Version == "" || v.Go == "" {
		t.Errorf("%v: %+v", err, r)
	}
	if r := respaldoRuns(t, "--version"); r.stdout != "respaldo "+v.Version+"\n" {
		t.Errorf("--version: %+v", r)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help"}} {
		if r := respaldoRuns(t, args...); r.code != 0 || !strings.Contains(r.stdout, "Examples:") || r.stderr != "" {
			t.Errorf("%q: %+v", args, r)
		}
	}
}
