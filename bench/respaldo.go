package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// contenderCommand makes this program be respaldo, without a server and a volume: what
// reads, stores and restores, in a process of its own as the real one.
const contenderCommand = "as-respaldo"

// tellsRead as the last argument makes the contender say how much it has read.
const tellsRead = "tell-read"

const password = "benchmark"

// contend does one of create, backup and restore: ACTION REPOSITORY CACHE DIRECTORY.
func contend(ctx context.Context, args []string) error {
	if len(args) < 4 {
		return fmt.Errorf("%s wants an action, a repository, a cache and a directory", contenderCommand)
	}
	action, cfg, dir := args[0], repo.Config{URL: args[1]}, args[3]
	stop, err := profiled(action)
	if err != nil {
		return err
	}
	options := repo.Options{CacheDir: args[2]}
	open := repo.Open
	if action == "create" {
		open = repo.Create
	}
	r, err := open(ctx, cfg, password, options)
	if err != nil {
		return err
	}
	switch action {
	case "create":
	case "backup":
		err = backup(ctx, r, dir)
	case "restore":
		err = restore(ctx, r, dir)
	default:
		err = fmt.Errorf("no action %q", action)
	}
	return errors.Join(err, r.Close(ctx), stop())
}

func backup(ctx context.Context, r *repo.Repo, dir string) error {
	saved, err := r.Save(ctx, "bench", repo.Tree{Entries: []repo.TreeEntry{{Name: "data", Path: dir}}}, nil)
	if err != nil {
		return err
	}
	m := respaldo.Manifest{Program: "bench", Server: "bench", Taken: time.Now(), Version: respaldo.Version{Flavor: respaldo.MariaDB, Major: 10, Minor: 11}}
	if _, err := r.Record(ctx, saved, m); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]int64{"read": saved.Read, "stored": saved.Stored})
}

func restore(ctx context.Context, r *repo.Repo, dir string) error {
	b, err := r.Find(ctx, "bench", "latest")
	if err != nil {
		return err
	}
	return r.Restore(ctx, b, map[string]string{"data": dir}, repo.RestoreOptions{}, nil)
}

// profileVariable names a folder for profiles.
const profileVariable = "RESPALDO_BENCH_PROFILE"

func profiled(action string) (stop func() error, err error) {
	dir := os.Getenv(profileVariable)
	if dir == "" {
		return func() error { return nil }, nil
	}
	name := filepath.Join(dir, fmt.Sprintf("%s-%d", action, os.Getpid()))
	cpu, err := os.Create(name + ".cpu")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		heap, err := os.Create(name + ".heap")
		if err != nil {
			return err
		}
		return errors.Join(cpu.Close(), pprof.WriteHeapProfile(heap), heap.Close())
	}, nil
}
