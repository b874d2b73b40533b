package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

// detachedMark in the environment tells a process that it is the one in the background.
const detachedMark = "RESPALDO_DETACHED"

func inBackground() bool { return os.Getenv(detachedMark) != "" }

// keptServeLogs is how many logs of earlier servers of each name stay.
const keptServeLogs = 5

// detach runs this very command again, in a session of its own and with its messages in a
// file, and returns when that is ready, or has failed. When ctx ends first, it is ended, too.
func (a *app) detach(ctx context.Context, site *backup.Site) (backup.Served, error) {
	var served backup.Served
	log, err := serveLog(filepath.Join(site.StateDir, "served"), site.Server)
	if err != nil {
		return served, err
	}
	defer log.Close()
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return served, err
	}
	defer nothing.Close()
	result, theirs, err := os.Pipe()
	if err != nil {
		return served, err
	}
	defer result.Close()
	self, err := os.Executable()
	if err == nil {
		var child *os.Process
		child, err = os.StartProcess(self, slices.Concat([]string{os.Args[0]}, os.Args[1:], []string{"--json"}), &os.ProcAttr{
			Env: append(os.Environ(), detachedMark+"=1"), Files: []*os.File{nothing, theirs, log},
			Sys: &syscall.SysProcAttr{Setsid: true},
		})
		theirs.Close()
		if err == nil {
			defer child.Release()
			stop := context.AfterFunc(ctx, func() { child.Signal(syscall.SIGTERM) })
			defer stop()
			site.Report.Step("detached", fmt.Sprintf("process %d, its messages go to %s", child.Pid, log.Name()))
		}
	}
	if err != nil {
		return served, fmt.Errorf("starting in the background: %w", err)
	}
	var document struct {
		backup.Served
		errorDocument
	}
	err = json.NewDecoder(result).Decode(&document)
	switch failed := document.Error; {
	case ctx.Err() != nil:
		return served, context.Cause(ctx)
	case err != nil:
		return served, &respaldo.Error{Kind: respaldo.Failed, What: "the process in the background ended without a word", Hint: "see " + log.Name(), Err: err}
	case failed.Code != 0:
		return served, &respaldo.Error{Kind: respaldo.Kind(failed.Code), What: failed.Message,
			Hint: strings.Join(append(failed.Hints, "all that it said is in "+log.Name()), "\n")}
	}
	served = document.Served
	served.Log = log.Name()
	return served, nil
}

// serveLog makes a new log, and drops the oldest of this server's.
func serveLog(dir, server string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "cannot make " + dir, Hint: "run respaldo as root, or give another state_dir", Err: err}
	}
	logs, _ := filepath.Glob(filepath.Join(dir, server+".*.log"))
	slices.SortFunc(logs, cmp.Compare[string])
	for len(logs) >= keptServeLogs {
		os.Remove(logs[0])
		logs = logs[1:]
	}
	name := fmt.Sprintf("%s.%s-%d.log", server, time.Now().UTC().Format("20060102-150405"), os.Getpid())
	return os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}
