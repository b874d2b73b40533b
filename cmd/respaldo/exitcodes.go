package main

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
)

// exitCodes are what the kinds of errors mean to a script. docs/exit-codes.md holds the
// same table; a test compares them. Codes and names never change their meaning.
var exitCodes = []struct {
	kind    respaldo.Kind
	name    string // in --json
	meaning string
}{
	{0, "", "done"},
	{respaldo.Failed, "failed", "failed for a reason without a code of its own"},
	{respaldo.Usage, "usage", "the command line or the configuration is wrong; nothing was done"},
	{respaldo.Refused, "refused", "looked, and did not begin, because it could not have worked or would have harmed; nothing was touched"},
	{respaldo.Unreachable, "unreachable", "the server cannot be reached or does not let us in"},
	{respaldo.LockTimeout, "lock_timeout", "the lock was not to be had, or not kept, within the budget, or something crossed every snapshot without one; the server goes on, no backup was made"},
	{respaldo.SnapshotLost, "snapshot_lost", "the snapshot could not be taken, overflowed or became invalid; no backup was made"},
	{respaldo.RepoFailed, "repository", "the repository cannot be opened, written or read"},
	{respaldo.NotProved, "not_proved", "the image does not start, or is not what it should be"},
	{respaldo.Busy, "busy", "another operation on this server is running; try again later"},
	{respaldo.NotFound, "not_found", "there is no such backup, snapshot or server"},
	{respaldo.Leftovers, "leftovers", "something of ours could not be removed; respaldo cleanup tries again"},
	{respaldo.Overdue, "overdue", "status: a server has no proved backup that is young enough"},
	{respaldo.Attention, "attention", "status: the backups are young enough, but something needs looking at"},
	{128 + respaldo.Kind(syscall.SIGHUP), "interrupted", "ended by SIGHUP, after cleaning up"},
	{respaldo.Interrupted, "interrupted", "ended by SIGINT (Ctrl-C), after cleaning up"},
	{128 + respaldo.Kind(syscall.SIGTERM), "interrupted", "ended by SIGTERM, after cleaning up"},
}

// exitCode is what the program ends with. An operation that a signal cut short ends as
// interrupted, whatever the layers between made of it; unless something was left behind,
// which a script needs to know more.
func exitCode(err error, sig syscall.Signal) int {
	switch kind := respaldo.KindOf(err); {
	case err == nil:
		return 0
	case kind == respaldo.Leftovers:
		return int(kind)
	case sig != 0:
		return 128 + int(sig)
	default:
		return int(kind)
	}
}

func kindName(code int) string {
	for _, e := range exitCodes {
		if int(e.kind) == code && e.name != "" {
			return e.name
		}
	}
	return "failed"
}

// newExitCodesTopic is `respaldo help exit-codes`.
func newExitCodesTopic() *cobra.Command {
	var text strings.Builder
	text.WriteString("What the exit codes mean. They are stable; with --json the error's kind is the name given here.\n\n")
	t := newTable(right("CODE"), left("KIND"), left("MEANING"))
	for _, e := range exitCodes {
		t.row(fmt.Sprint(int(e.kind)), e.name, e.meaning)
	}
	t.write(&text, 0)
	text.WriteString("\nA second SIGINT, SIGTERM or SIGHUP ends respaldo at once, with the code of that signal and without\n" +
		"cleaning up: the next operation on that server, or respaldo cleanup, does it.")
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: text.String()}
}
