package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// How long a server may take to answer after its start, and how long there may be no
// process of it at all.
const (
	startPatience   = 10 * time.Minute
	processPatience = time.Minute
	askEvery        = 250 * time.Millisecond
	looksPerScan    = 8 // of all of /proc
)

// running is an error that names the server's process while one has the files open that a
// server always has, wherever its directories are by now. Who only reads a log is none.
func (w *preparing) running() error {
	files := map[inode]string{}
	for _, m := range w.Moves {
		for _, dir := range []string{m.Dir, m.To} {
			for _, pattern := range []string{"ibdata*", "mysql.ibd", "ib_logfile*", "aria_log_control"} {
				found, _ := filepath.Glob(filepath.Join(dir, pattern))
				for _, path := range found {
					if info, err := os.Stat(path); err == nil {
						stat := info.Sys().(*syscall.Stat_t)
						files[inode{stat.Dev, stat.Ino}] = path
					}
				}
			}
		}
	}
	return openBy(files, "a program is at work in the data directory", "stop it, then call respaldo prepare again")
}

// stop stops the server and returns when nobody has its files open. What tables it has is
// noted just before.
func (w *preparing) stop(ctx context.Context) error {
	held := w.running()
	if held == nil && w.Unit == "" { // the configured command may not like to be asked twice
		return nil
	}
	gone := func() bool { return w.running() == nil }
	if held != nil {
		server, err := mysql.Connect(ctx, w.MySQL, w.Log)
		if err == nil {
			if facts, factsErr := server.Facts(ctx); factsErr == nil && w.isOurs(facts.Process.DataDir) {
				gone = func() bool { return !facts.Process.Alive() }
			}
			w.Tables, err = tableNames(ctx, server.DB())
			err = joinErrors(err, server.Close())
		}
		if err != nil && !w.has(stepStop) && w.State == PrepareForward && !w.Lives {
			return err // not that of a run that died, whose server may be in any state
		}
		if err := w.save(); err != nil {
			return err
		}
	}
	if w.stopped.IsZero() {
		w.stopped = time.Now()
	}
	ledger.Point("prepare.stopping")
	// Once it is being stopped, it is waited for, also by who has lost patience: a server
	// that is about to end cannot be started again.
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPatience)
	defer cancel()
	err := w.service.Stop(waiting, func() bool { // which is asked once the command has done its part
		w.gone = gone
		return gone()
	})
	if err != nil {
		return err
	}
	w.gone = nil
	return w.running()
}

// isOurs tells one of the directories that are moved, by either of its paths.
func (w *preparing) isOurs(dir string) bool {
	real := resolved(dir)
	return slices.ContainsFunc(w.Moves, func(m Move) bool { return real == resolved(m.Dir) || real == m.To })
}

// copyAll copies what is not on the volume yet. A directory that was exchanged by a run that
// died is there, and may be ahead of what was set aside.
func (w *preparing) copyAll(ctx context.Context) error {
	mounted, err := w.volumes.MountedFrom(ctx, w.Mount.Dir, w.Volume)
	if err != nil {
		return err
	}
	if !mounted {
		return &respaldo.Error{Kind: respaldo.Failed, What: w.Volume.Node() + " is not mounted at " + w.Mount.Dir, Hint: "mount " + w.Mount.Dir + ", then call respaldo prepare again"}
	}
	for _, m := range w.Moves {
		if to, err := os.Readlink(m.Dir); err == nil && to == m.To {
			continue
		}
		if err := w.copy(ctx, m.Dir, m.To); err != nil {
			return err
		}
	}
	return w.running() // somebody may have started it meanwhile
}

// copy copies a directory, whole and compared, and returns when it is on disk. What an
// earlier run left at the other end is taken as it is if it is the same.
func (w *preparing) copy(ctx context.Context, from, to string) error {
	if exists(to) {
		_, err := host.SameTree(ctx, from, to, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, host.ErrDiffers) {
			return err
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	total, err := host.Occupied(from)
	if err != nil {
		return err
	}
	ledger.Point("prepare.copying")
	stopWatching := w.watchCopy(filepath.Dir(to), total)
	// It ends with us, however we end: the next run would find it at work in what it removes.
	_, err = w.Run.Run(ctx, run.Cmd{Argv: copyArgv(from, to), SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}})
	stopWatching()
	if err != nil {
		return err
	}
	if err := volume.Settle(filepath.Dir(to)); err != nil {
		return err
	}
	ledger.Point("prepare.copied")
	var read atomic.Int64
	tree, err := host.SameTree(ctx, from, to, func(n int64) {
		w.Report.Progress(respaldo.Progress{Phase: "comparing", Done: read.Add(n), Total: total})
	})
	if err != nil {
		return fmt.Errorf("%s is not what %s is: %w", to, from, err)
	}
	w.Report.Step("compared", fmt.Sprintf("%d files, %s in %s are those of %s", tree.Files, FormatBytes(tree.Bytes), to, from))
	return nil
}

// watchCopy reports how full the filesystem becomes.
func (w *preparing) watchCopy(dir string, total int64) (stop func()) {
	used := func() int64 {
		var st unix.Statfs_t
		unix.Statfs(dir, &st)
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	before, quit, ended := used(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				w.Report.Progress(respaldo.Progress{Phase: "copying", Done: min(used()-before, total), Total: total})
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// check is what stands between a server that answers and one of which it is said that it
// was moved.
func (w *preparing) check(ctx context.Context) error {
	outlook, err := w.look(ctx)
	if err != nil {
		return err
	}
	defer outlook.close()
	if err := w.sameTables(ctx, outlook.server.DB()); err != nil {
		return err
	}
	if outlook.facts.SeesAllTables { // and so may read them
		if err := readSome(ctx, outlook.server.DB(), w.Tables); err != nil {
			return err
		}
	}
	if outlook.volume == nil {
		return errors.Join(fmt.Errorf("%s cannot be snapshotted", w.Mount.Dir), outlook.Refusal())
	}
	if outlook.Volume.MountPoint != w.Mount.Dir {
		return fmt.Errorf("the data lies on %s, not at %s", outlook.Volume.Name, w.Mount.Dir)
	}
	for _, r := range outlook.Refusals {
		w.Report.Warn("a backup would still be refused: " + r.What)
	}
	return nil
}

// sameTables asserts that what the server had when it was stopped is there.
func (w *preparing) sameTables(ctx context.Context, db *sql.DB) error {
	have, err := tableNames(ctx, db)
	if err != nil {
		return err
	}
	for _, table := range w.Tables {
		if _, found := slices.BinarySearch(have, table); !found {
			return &respaldo.Error{Kind: respaldo.NotProved, What: "the table " + table + " is not there any more",
				Hint: "see the server's error log"}
		}
	}
	return nil
}

// readSome reads from a sample of tables.
func readSome(ctx context.Context, db *sql.DB, tables []string) error {
	for _, table := range sample(tables, sampledTables) {
		var one int
		schema, name, _ := strings.Cut(table, ".")
		err := db.QueryRowContext(ctx, fmt.Sprintf("SELECT 1 FROM %s.%s LIMIT 1", quoteName(schema), quoteName(name))).Scan(&one)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return &respaldo.Error{Kind: respaldo.NotProved, What: "the table " + table + " cannot be read", Hint: "see the server's error log", Err: err}
		}
	}
	return nil
}

// sampledTables are read from after the move: that the files are the same is known.
const sampledTables = 20

// sample takes some of a list, evenly.
func sample(list []string, count int) []string {
	if len(list) <= count {
		return list
	}
	var taken []string
	for n := range count {
		taken = append(taken, list[n*len(list)/count])
	}
	return taken
}

func quoteName(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// tableNames are all tables of the server's own and its users', "db.table", sorted.
func tableNames(ctx context.Context, db *sql.DB) ([]string, error) {
	rows, err := db.QueryContext(ctx, "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('information_schema', 'performance_schema', 'sys')")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var schema, table string
		if err := rows.Scan(&schema, &table); err != nil {
			return nil, err
		}
		names = append(names, schema+"."+table)
	}
	slices.Sort(names)
	return names, rows.Err()
}
