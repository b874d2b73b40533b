package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// page is where a command writes for people. Width is the terminal's, 0 if it is none.
type page struct {
	io.Writer
	width int
}

func (p *page) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

func (p *page) table(t *table) { t.write(p, p.width) }

// formatTime is in local time and says so.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

func formatPercent(fraction float64) string { return fmt.Sprintf("%.1f%%", fraction*100) }

// errorDocument is how an error looks with --json.
type errorDocument struct {
	Error struct {
		Kind    string   `json:"kind"`
		Code    int      `json:"code"`
		Message string   `json:"message"`
		Hints   []string `json:"hints"`
	} `json:"error"`
}

// reportError says on stderr what failed and what to do next. With --json the same goes to
// stdout as the one document that a program may expect there.
func (a *app) reportError(err error, code int) {
	if a.report != nil {
		a.report.end()
	}
	message, hints := a.secrets.redact(err.Error()), respaldo.HintsOf(err)
	var text strings.Builder
	// Joined errors come one a line.
	fmt.Fprintf(&text, "respaldo: %s\n", strings.ReplaceAll(strings.TrimSpace(message), "\n", "\n          "))
	for _, hint := range hints {
		fmt.Fprintf(&text, "hint: %s\n", a.secrets.redact(hint))
	}
	a.console.printf("%s", text.String())
	if !a.flags.json || a.shown {
		return
	}
	var doc errorDocument
	doc.Error.Kind, doc.Error.Code, doc.Error.Message = kindName(code), code, message
	doc.Error.Hints = []string{} // never null
	for _, hint := range hints {
		doc.Error.Hints = append(doc.Error.Hints, a.secrets.redact(hint))
	}
	var out bytes.Buffer
	encodeJSON(&out, doc)
	a.stdout.Write(out.Bytes()) // if nobody listens, stderr has it too
}
