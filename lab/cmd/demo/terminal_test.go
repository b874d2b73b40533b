package main

import (
	"slices"
	"testing"
)

func TestScreen(t *testing.T) {
	const bar = "  saving [==>  ] 1 MiB"
	for name, c := range map[string]struct {
		drawn string
		want  []string
	}{
		"lines":                {"one\ntwo\n", []string{"one", "two"}},
		"no line end":          {"one\ntwo", []string{"one", "two"}},
		"an empty line":        {"one\n\ntwo\n", []string{"one", "", "two"}},
		"indented":             {"  LV\n  data\n", []string{"  LV", "  data"}},
		"colours":              {"\x1b[32m✓\x1b[0m done\n", []string{"\x1b[32m✓\x1b[0m done"}},
		"carriage return":      {"10%\r20%\r\n", []string{"20%"}},
		"a bar":                {"one\n" + bar + "\n\x1b[1A\x1b[J" + bar + "\n\x1b[1A\x1b[Jtwo\n", []string{"one", "two"}},
		"a colour after a bar": {bar + "\n\x1b[1A\x1b[J\x1b[32m✓\x1b[0m saved\n", []string{"\x1b[32m✓\x1b[0m saved"}},
		"a colour upon a line": {"10%\r\x1b[32m20%\n", []string{"\x1b[32m20%"}},
		"a line above a bar":   {bar + "\n\x1b[1A\x1b[Jabove\n" + bar + "\n\x1b[1A\x1b[J", []string{"above"}},
		"a cursor that hides":  {"\x1b[?25lone\x1b[?25h\n", []string{"one"}},
		"a clear without line": {"\x1b[Jone\n", []string{"one"}},
	} {
		var got []string
		s := screen{show: func(line string) { got = append(got, line) }}
		for _, b := range []byte(c.drawn) { // in the smallest pieces
			s.Write([]byte{b})
		}
		s.end()
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestQuote(t *testing.T) {
	for word, want := range map[string]string{
		"--to": "--to", "/srv/db": "/srv/db", "": `""`,
		"DROP TABLE shop.orders": `"DROP TABLE shop.orders"`,
		"say \"`$HOME`\"":        "\"say \\\"\\`\\$HOME\\`\\\"\"",
	} {
		if got := quote(word); got != want {
			t.Errorf("%q is typed as %s, want %s", word, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	for columns, want := range map[int][]string{7: {"one two", "three"}, 6: {"one", "two", "three"}, 2: {"one", "two", "three"}, 80: {"one two three"}} {
		if got := wrap(" one two  three", columns); !slices.Equal(got, want) {
			t.Errorf("%d columns: %q, want %q", columns, got, want)
		}
	}
}
