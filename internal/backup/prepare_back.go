package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// startAgain starts the server where it was, with the tables that it had.
func (w *preparing) startAgain(ctx context.Context) error {
	if err := w.start(ctx, w.Moves[0].Dir); err != nil {
		return err
	}
	server, err := mysql.Connect(ctx, w.MySQL, w.Log)
	if err != nil {
		return err
	}
	defer server.Close()
	return w.sameTables(ctx, server.DB())
}

// start starts the server, if it does not run, and returns when it answers and says that
// its data directory is the one named.
func (w *preparing) start(ctx context.Context, dir string) error {
	if err := w.letItEnd(); err != nil {
		return err
	}
	server, err := w.answers(ctx)
	if err != nil {
		return err
	}
	defer server.Close()
	var at string
	if err := server.DB().QueryRowContext(ctx, "SELECT @@datadir").Scan(&at); err != nil {
		return err
	}
	if resolved(filepath.Clean(at)) != resolved(dir) {
		return &respaldo.Error{Kind: respaldo.Failed, What: fmt.Sprintf("the server has its data in %s, not in %s", at, dir), Hint: "does its command line say so?"}
	}
	if !w.stopped.IsZero() {
		w.down += time.Since(w.stopped)
		w.stopped = time.Time{}
	}
	return nil
}

// letItEnd waits for a server that was told to stop and has not: it looks like one that
// runs, and can neither be used nor started.
func (w *preparing) letItEnd() error {
	if w.gone == nil {
		return nil
	}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for begun := time.Now(); !w.gone(); <-tick.C {
		if time.Since(begun) > shutdownPatience {
			return &respaldo.Error{Kind: respaldo.Failed, What: "the server was told to stop, and its process has not ended", Hint: "when it has, start it: " + shown(w.service.StartCommand())}
		}
	}
	w.gone = nil
	return nil
}

// answers starts the server, unless it runs, and returns when it answers. One that ended
// while it was waited for, as if somebody had told it to stop before, is started too. Who
// loses patience waits until its process is there: only then can anybody tell whether the
// server works on its files.
func (w *preparing) answers(ctx context.Context) (*mysql.Server, error) {
	told := false
	start := func() error {
		told = true
		if err := w.service.Start(ctx); err != nil {
			return err
		}
		ledger.Point("prepare.started")
		return nil
	}
	if w.running() == nil {
		if err := start(); err != nil {
			return nil, err
		}
	}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	begun, seen := time.Now(), time.Now()
	for looks := 1; ; looks++ {
		server, err := mysql.Connect(ctx, w.MySQL, w.Log)
		if err == nil {
			return server, nil
		}
		if looks%looksPerScan == 0 || ctx.Err() != nil {
			switch runs := w.running() != nil; {
			case ctx.Err() != nil && (runs || !told):
				return nil, context.Cause(ctx)
			case runs:
				seen = time.Now()
			case !told:
				if err := start(); err != nil {
					return nil, err
				}
				begun, seen = time.Now(), time.Now()
			}
		}
		if time.Since(begun) > startPatience || time.Since(seen) > processPatience {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, &respaldo.Error{Kind: respaldo.Failed, What: "the server does not answer after its start", Hint: "its error log says why", Err: err}
		}
		<-tick.C
	}
}

// startHere starts the server on the volume. If that fails and a process of it is there, it
// may have said yes to somebody else already, whatever it said to us: what is on the volume
// is the present from then on.
func (w *preparing) startHere(ctx context.Context) error {
	w.Tried = true
	if err := w.save(); err != nil {
		return err
	}
	err := w.start(ctx, w.Moves[0].To)
	if err != nil && w.running() == nil {
		return err // switchBack looks whether it has changed anything
	}
	w.Lives = true
	return joinErrors(err, w.save())
}

// hintIfDown says how the server is started, if it does not run.
func (w *preparing) hintIfDown(hint string) string {
	if w.running() != nil {
		return hint
	}
	return "the server does not run; to start it: " + shown(w.service.StartCommand()) + "; " + hint
}

// setAside exchanges the directories for links.
func (w *preparing) setAside() error {
	for n := range w.Moves {
		m := &w.Moves[n]
		if isDir(m.Dir) && isDir(m.Aside) { // of an earlier attempt, which ended with copies of the volume
			m.Aside = freeName(m.Dir + asideSuffix)
			if err := w.save(); err != nil {
				return err
			}
		}
		if err := host.SetAside(m.Dir, m.Aside, m.To); err != nil {
			return err
		}
		ledger.Point(fmt.Sprintf("prepare.switched-%d", n+1))
	}
	return nil
}

// isDir is about the name itself: a link to a directory is none.
func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// fresh is where an undo copies a directory to before it takes its place again.
func (m Move) fresh() string { return m.Dir + ".respaldo-undo" }

// switched tells that the directory's path leads to the volume.
func (m Move) switched() bool {
	to, err := os.Readlink(m.Dir)
	return err == nil && to == m.To
}

// switchBack makes the paths lead to directories again. As long as the server has changed
// nothing on the volume, these are the ones that were set aside. Afterwards they are copies
// of what is on the volume, and what was set aside stays under its name.
func (w *preparing) switchBack(ctx context.Context) error {
	if err := w.compareAside(ctx); err != nil {
		return err
	}
	if !w.Lives {
		w.Tried = false
		for _, m := range slices.Backward(w.Moves) {
			if err := host.PutBack(m.Dir, m.Aside, m.To); err != nil {
				return err
			}
		}
		return nil
	}
	w.Stays = true
	if err := w.save(); err != nil {
		return err
	}
	if err := w.roomToGoBack(); err != nil {
		return err
	}
	if w.running() != nil { // started by somebody, after a run that died here
		if err := w.stop(ctx); err != nil {
			return err
		}
	}
	for _, m := range w.Moves {
		if !m.switched() {
			continue // an earlier run's work
		}
		if err := w.copy(ctx, m.To, m.fresh()); err != nil {
			return err
		}
	}
	if err := w.running(); err != nil {
		return err
	}
	for n, m := range w.Moves {
		if err := host.PutBack(m.Dir, m.fresh(), m.To); err != nil {
			return err
		}
		ledger.Point(fmt.Sprintf("undo.switched-%d", n+1))
	}
	w.Lives, w.Tried = false, false
	return nil
}

// compareAside asks what is on the volume whether the server has worked there: nothing that
// it has written may be lost, also if it has never answered us.
func (w *preparing) compareAside(ctx context.Context) error {
	if !w.Tried || w.Lives {
		return nil
	}
	for _, m := range w.Moves {
		if !m.switched() {
			continue
		}
		_, err := host.SameTree(ctx, m.Aside, m.To, nil)
		if errors.Is(err, host.ErrDiffers) {
			w.Log.Info("the server has worked on the volume", "because", err)
			w.Lives = true
			return w.save()
		}
		if err != nil {
			return err
		}
	}
	return w.running()
}

// halfSwitched makes a run go on from the stop of the server, unless each path leads to the
// volume: what does not may have changed since it was copied, and is copied again then.
func (w *preparing) halfSwitched() {
	all := !slices.ContainsFunc(w.Moves, func(m Move) bool { return !m.switched() })
	if w.has(stepStop) && !(w.has(stepSwitch) && all) {
		again := []string{stepStop, stepCopy, stepSwitch, stepStart}
		w.Done = slices.DeleteFunc(w.Done, func(step string) bool { return slices.Contains(again, step) })
		w.Begun = stepStop
	}
}

// dropFresh removes what an undo has copied, and not put into its place.
func (w *preparing) dropFresh() error {
	var failed error
	for _, m := range w.Moves {
		if m.switched() {
			failed = joinErrors(failed, os.RemoveAll(m.fresh()))
		}
	}
	return failed
}

// roomToGoBack refuses an undo that the old filesystem has no room for, before the server is
// stopped.
func (w *preparing) roomToGoBack() error {
	need := map[uint64]int64{}
	for _, m := range w.Moves {
		if !w.Lives || !m.switched() {
			continue
		}
		bytes, err := host.Occupied(m.To)
		if err != nil {
			return err
		}
		dir := filepath.Dir(m.Dir)
		var at unix.Stat_t
		var fs unix.Statfs_t
		if err := errors.Join(unix.Stat(dir, &at), unix.Statfs(dir, &fs)); err != nil {
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		need[at.Dev] += bytes + bytes/50
		if exists(m.fresh()) { // of an earlier run: it is used, or makes room
			there, err := host.Occupied(m.fresh())
			if err != nil {
				return err
			}
			need[at.Dev] -= there
		}
		if free := int64(fs.Bavail) * fs.Bsize; free < need[at.Dev] {
			return &respaldo.Error{Kind: respaldo.Refused,
				What: fmt.Sprintf("the filesystem of %s has %s free, and what the server has by now needs %s", dir, FormatBytes(free), FormatBytes(need[at.Dev])),
				Hint: "make room there; " + m.Aside + " is as it was before the move, and can go if nobody needs that"}
		}
	}
	return nil
}
