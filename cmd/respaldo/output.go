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

// formatSize is for people: three digits, powers of 1024 ("1.46 GiB").
func formatSize(bytes int64) string {
	if bytes > -1024 && bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), 0
	for value >= 999.5 || value <= -999.5 {
		value, unit = value/1024, unit+1
	}
	return threeDigits(value) + " " + string("BKMGTPE"[unit]) + "iB"
}

// formatDuration is for people: "12.3 ms", "1.24 s", "2 min 5 s", "3 h 12 min".
func formatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + formatDuration(-d)
	case d == 0:
		return "0 s"
	case d < 999500*time.Nanosecond:
		return threeDigits(float64(d)/1e3) + " µs"
	case d < 999500*time.Microsecond:
		return threeDigits(float64(d)/1e6) + " ms"
	case d < 59950*time.Millisecond:
		return threeDigits(d.Seconds()) + " s"
	}
	d = d.Round(time.Second)
	if d < time.Hour {
		return fmt.Sprintf("%d min %d s", int(d/time.Minute), int(d%time.Minute/time.Second))
	}
	d = d.Round(time.Minute)
	if d < 48*time.Hour {
		return fmt.Sprintf("%d h %d min", int(d/time.Hour), int(d%time.Hour/time.Minute))
	}
	return fmt.Sprintf("%d d %d h", int(d/(24*time.Hour)), int(d%(24*time.Hour)/time.Hour))
}

func formatSeconds(s float64) string { return formatDuration(time.Duration(s * float64(time.Second))) }

// threeDigits drops what nobody reads: 1.24, 12.3, 123.
func threeDigits(value float64) string {
	digits := 2
	switch abs := max(value, -value); {
	case abs >= 99.95:
		digits = 0
	case abs >= 9.995:
		digits = 1
	}
	return fmt.Sprintf("%.*f", digits, value)
}

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
