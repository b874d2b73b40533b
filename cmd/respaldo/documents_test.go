package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	fence      = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```$")
	inlineCode = regexp.MustCompile("`([^`\n]+)`")
	quoted     = regexp.MustCompile(`"[^"]*"`)
	commandAt  = regexp.MustCompile(`(?m)(?:^ *|^ *\$ |^ *ExecStart=/usr/(?:local/)?bin/|&& |sudo )respaldo( .*)?$`)
)

// Every command that a document tells people to type is one, with its flags; in a block of
// code also with its arguments.
func TestDocumentedCommands(t *testing.T) {
	documents, _ := filepath.Glob("../../docs/*.md")
	spanish, _ := filepath.Glob("../../docs/es/*.md")
	documents = append(documents, spanish...)
	units, _ := filepath.Glob("../../packaging/systemd/*.service")
	documents = slices.Concat(documents, units, []string{"../../README.md"})
	tried := 0
	for _, document := range documents {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		try := func(line string, whole bool) {
			tried++
			if err := parses(line, whole); err != nil {
				t.Errorf("%s: respaldo%s: %v", filepath.Base(document), line, err)
			}
		}
		if filepath.Ext(document) == ".service" { // all of it is code
			text = slices.Concat([]byte("```\n"), text, []byte("```"))
		}
		for _, block := range fence.FindAllStringSubmatch(string(text), -1) {
			for _, m := range commandAt.FindAllStringSubmatch(block[1], -1) {
				line, _, _ := strings.Cut(m[1], "  #")
				line, _, _ = strings.Cut(line, " && ")
				try(line, true)
			}
		}
		for _, m := range inlineCode.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
			if line, ok := strings.CutPrefix(m[1], "respaldo "); ok {
				for _, one := range alternatives(line) {
					try(" "+one, false)
				}
			}
		}
	}
	if tried < 20 {
		t.Errorf("found %d commands only", tried)
	}
}

// alternatives spells "snapshot create|list" out.
func alternatives(line string) []string {
	words := strings.Fields(line)
	for i, word := range words {
		if !strings.Contains(word, "|") {
			continue
		}
		var lines []string
		for _, one := range strings.Split(word, "|") {
			lines = append(lines, strings.Join(append(append(append([]string{}, words[:i]...), one), words[i+1:]...), " "))
		}
		return lines
	}
	return []string{line}
}

// parses tells why a command line would not do; whole ones need their arguments, too.
func parses(line string, whole bool) error {
	a := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	defer a.close()
	root := newRootCmd(a)
	root.InitDefaultHelpCmd()
	cmd, rest, err := root.Find(strings.Fields(quoted.ReplaceAllString(line, "QUOTED")))
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if args := cmd.Flags().Args(); whole || len(args) > 0 && !cmd.HasSubCommands() {
		return cmd.ValidateArgs(args)
	}
	return nil
}
