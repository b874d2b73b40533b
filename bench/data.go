package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

const (
	server = "mariadb-10.11"
	tables = 8
	// dataRecipe is part of the cache's name: raise it when the rows change.
	dataRecipe = 1
	// rowBytes is what a row takes in its table and index; emptyBytes is a data directory
	// without rows and redo log. Both measured.
	rowBytes, emptyBytes = 252, 16 << 20
)

// dataset is a data directory that no server has open, except while started.
type dataset struct {
	dir     string
	work    string // for the contenders; removed on release, and by the next run after a kill
	rows    int    // of each table
	redo    int    // size of its log, in MiB
	bytes   int64
	files   int
	socket  string // of the server while started; "" lets it choose
	release func()

	running *servers.Running
}

// prepareData returns a data directory of about the given size, made by a real server and
// kept for the next run. It is ours alone until released.
func prepareData(ctx context.Context, dir string, size int64) (*dataset, error) {
	home := filepath.Join(dir, fmt.Sprintf("data-%dMB-%d", size>>20, dataRecipe))
	d := &dataset{dir: filepath.Join(home, "data"), work: home + ".work", redo: redoLog(size)}
	d.rows = int(max(size-emptyBytes-int64(d.redo)<<20, size/10) / tables / rowBytes)
	unlock, err := debian.Lock(ctx, home+".lock")
	if err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "bench")
	if err != nil {
		unlock()
		return nil, err
	}
	d.socket = filepath.Join(sockets, "s")
	d.release = func() {
		os.RemoveAll(d.work)
		os.RemoveAll(sockets)
		unlock()
	}
	if err := os.RemoveAll(d.work); err != nil {
		d.release()
		return nil, err
	}
	if _, err = os.Stat(home); errors.Is(err, fs.ErrNotExist) {
		logf("bench: making a data directory of %d tables with %d rows each", tables, d.rows)
		err = d.make(ctx, home)
	}
	if err == nil {
		d.bytes, d.files, err = treeSize(d.dir)
	}
	if err != nil {
		d.release()
		return nil, err
	}
	return d, nil
}

func (d *dataset) make(ctx context.Context, home string) error {
	tmp := home + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	made := &dataset{dir: filepath.Join(tmp, "data"), rows: d.rows, redo: d.redo}
	if err := servers.Init(ctx, server, made.dir); err != nil {
		return err
	}
	if err := made.start(ctx, "--innodb-buffer-pool-size=512M", "--loose-innodb-buffer-pool-size-max=512M", "--tmpdir="+tmp); err != nil {
		return err
	}
	if err := made.load(ctx); err != nil {
		return errors.Join(err, made.running.Kill())
	}
	if err := made.stop(); err != nil {
		return err
	}
	return os.Rename(tmp, home)
}

// redoLog is MariaDB's default, 96 MiB, unless that would be most of the data.
func redoLog(size int64) int { return int(min(96, max(8, size>>20/16))) }

// start runs a server on the directory, without binlog.
func (d *dataset) start(ctx context.Context, args ...string) (err error) {
	d.running, err = servers.Start(ctx, servers.Spec{Name: server, DataDir: d.dir, Socket: d.socket,
		Args: append([]string{"--skip-log-bin", fmt.Sprintf("--innodb-log-file-size=%dM", d.redo), "--innodb-buffer-pool-size=128M"}, args...)})
	return err
}

func (d *dataset) stop() error {
	err := d.running.Stop()
	d.running = nil
	return err
}

// load makes the tables as sysbench does, rows and all; the same rows every time.
func (d *dataset) load(ctx context.Context) error {
	db := d.running.Open()
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE sbtest"); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for n := 1; n <= tables; n++ {
		g.Go(func() error { return d.table(ctx, db, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// Purged and merged: nothing is left for the next server to change in the background.
	_, err := db.Exec("SET GLOBAL innodb_fast_shutdown=0")
	return err
}

func (d *dataset) table(ctx context.Context, pool *sql.DB, n int) error {
	name := fmt.Sprintf("sbtest.sbtest%d", n)
	db, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	// Without the two checks a whole table is built at once, which leaves no undo log behind.
	if _, err := db.ExecContext(ctx, "SET unique_checks=0, foreign_key_checks=0"); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "CREATE TABLE "+name+" (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,"+
		" k INT NOT NULL DEFAULT 0, c CHAR(120) NOT NULL DEFAULT '', pad CHAR(60) NOT NULL DEFAULT '') ENGINE=InnoDB")
	if err != nil {
		return err
	}
	reader := "table" + strconv.Itoa(n)
	defer mysql.DeregisterReaderHandler(reader)
	pipe, w := io.Pipe()
	defer pipe.Close()
	mysql.RegisterReaderHandler(reader, func() io.Reader { return pipe })
	go func() { w.CloseWithError(writeRows(w, rand.New(rand.NewPCG(uint64(n), dataRecipe)), d.rows)) }()
	if _, err := db.ExecContext(ctx, "LOAD DATA LOCAL INFILE 'Reader::"+reader+"' INTO TABLE "+name); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf("ALTER TABLE %s ADD KEY k_%d (k)", name, n))
	return err
}

// writeRows writes rows as sysbench fills them: groups of eleven random digits.
func writeRows(to io.Writer, random *rand.Rand, rows int) error {
	w := bufio.NewWriterSize(to, 64<<10)
	group := func() { fmt.Fprintf(w, "%011d", random.Int64N(100_000_000_000)) }
	for id := 1; id <= rows; id++ {
		fmt.Fprintf(w, "%d\t%d\t", id, 1+random.IntN(rows))
		for i := range 15 {
			switch i {
			case 0:
			case 10:
				w.WriteByte('\t')
			default:
				w.WriteByte('-')
			}
			group()
		}
		if err := w.WriteByte('\n'); err != nil {
			return err
		}
	}
	return w.Flush()
}

// usable starts a server on a restored directory and asks it for its rows.
func (d *dataset) usable(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	copied := &dataset{dir: dir, redo: d.redo}
	if err := copied.start(ctx); err != nil {
		return err
	}
	db := copied.running.Open()
	for n := 1; n <= tables; n++ {
		var last int
		err := db.QueryRowContext(ctx, fmt.Sprintf("SELECT COALESCE(MAX(id), 0) FROM sbtest.sbtest%d", n)).Scan(&last)
		if err == nil && last != d.rows {
			err = fmt.Errorf("table %d has %d rows of %d", n, last, d.rows)
		}
		if err != nil {
			return errors.Join(err, db.Close(), copied.running.Kill())
		}
	}
	return errors.Join(db.Close(), copied.stop())
}
