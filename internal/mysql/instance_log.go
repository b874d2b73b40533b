package mysql

import (
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo/internal/run"
)

const (
	lastWordsLines = 5
	logLineLimit   = 400     // characters of one line in an error message
	logBytes       = 4 << 20 // of the log's end are read; MySQL 5.6 dumps damaged pages into it
)

var (
	// InnoDB before MySQL 5.7 writes "InnoDB: Error:" without a level.
	errorLine      = regexp.MustCompile(`\[ERROR\]|InnoDB: (Error|Fatal|Operating system error|Assertion)|Assertion failure|got signal|got exception`)
	corruptionLine = regexp.MustCompile(`(?i)corrupt|checksum mismatch|checksum error|tablespace is missing`)
	// logPrefix are the time, thread and level that make a line too long to read.
	logPrefix = regexp.MustCompile(`^[-0-9: TZ.]{15,32}(0x)?[0-9a-f]* *`)
)

// lastWords are the last errors of the server's log, for a person; its last lines if it
// called nothing an error, and what it said before there was a log otherwise.
func (i *Instance) lastWords() string {
	lines := i.logLines()
	var words []string
	for _, line := range lines {
		if line = shorten(line); errorLine.MatchString(line) && !slices.Contains(words, line) {
			words = append(words, line)
		}
	}
	if len(words) == 0 {
		words = lines
	}
	if exit := (*run.ExitError)(nil); len(words) == 0 && errors.As(i.exitErr, &exit) {
		words = strings.Split(strings.TrimSpace(exit.Stderr), "\n")
	}
	words = words[max(0, len(words)-lastWordsLines):]
	for n, w := range words {
		words[n] = shorten(w)
	}
	if text := strings.Join(words, "; "); text != "" {
		return text
	}
	return "it said nothing"
}

// corruption are the errors about damaged pages and missing files that a running server
// wrote to its log; not every one is met by a check of its table.
func (i *Instance) corruption() []string {
	var found []string
	seen := map[string]bool{}
	for _, line := range i.logLines() {
		if line = shorten(line); errorLine.MatchString(line) && corruptionLine.MatchString(line) && !seen[line] {
			seen[line] = true
			found = append(found, "in the server's log: "+line)
		}
	}
	return found
}

func shorten(line string) string {
	line = logPrefix.ReplaceAllString(line, "")
	return line[:min(len(line), logLineLimit)]
}

// logLines are the lines at the end of the log that are not empty.
func (i *Instance) logLines() []string {
	f, err := os.Open(i.LogPath())
	if err != nil {
		return nil // it never came to have one
	}
	defer f.Close()
	f.Seek(-logBytes, io.SeekEnd) // fails for a shorter log, which is read from its start
	text, _ := io.ReadAll(f)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
