package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/config"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/repo"
	runner "github.com/respaldo-backup/respaldo/internal/run"
)

// site puts together what the stories need for the server that --server names.
func (a *app) site() (*backup.Site, error) { return a.siteOf(a.flags.server) }

func (a *app) siteOf(name string) (*backup.Site, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	s, err := a.serverOf(name)
	if err != nil {
		return nil, err
	}
	id, err := config.ServerID(c.StateDir, s.Name)
	if errors.Is(err, fs.ErrPermission) {
		err = nil // check may be asked by anybody; whatever writes says it again
	}
	if err != nil {
		return nil, err
	}
	return &backup.Site{
		Server: s.Name, ServerID: id, Host: hostName(), Program: buildVersion().Version,
		MySQL:    mysql.Options{DefaultsFile: s.DefaultsFile, Socket: s.Socket, Host: s.Host, Port: s.Port, User: s.User},
		Binary:   s.Mysqld,
		Service:  host.Commands{Stop: s.Stop, Start: s.Start},
		Several:  len(c.Names()) > 1,
		StateDir: c.StateDir, RunDir: c.RunDir, LVMConfig: c.LVMConfig,
		Repository: func(ctx context.Context) (*repo.Repo, error) { return a.open(ctx, s.Repository) },
		Folder:     repo.FolderOf(s.Repository.URL), CacheDir: c.CacheDir,
		Lock: s.Lock, MaxLock: s.MaxLock, Patience: s.Patience, KillBlockers: s.KillBlockers, SnapshotBytes: s.SnapshotSize, Prove: s.Prove,
		Keep: policyOf(s.Keep), KeepSnapshots: policyOf(s.KeepSnapshots),
		PoolData: c.Thresholds.PoolData, PoolMetadata: c.Thresholds.PoolMetadata,
		Hooks: backup.Hooks{Before: s.Hooks.Before, After: s.Hooks.After, OnFailure: s.Hooks.OnFailure, Timeout: s.Hooks.Timeout,
			ExitCode: func(err error) int { return exitCode(err, a.signals.first()) }},
		Run: runner.Local{Log: a.log}, Log: a.log, Report: a.progress(), Redact: a.secrets.redact,
	}, nil
}

func policyOf(k config.Keep) repo.Policy {
	return repo.Policy{Last: k.Last, Hourly: k.Hourly, Daily: k.Daily, Weekly: k.Weekly, Monthly: k.Monthly}
}

// openNamed opens the repository for a command that needs no server.
func (a *app) openNamed(ctx context.Context) (*repo.Repo, error) {
	where, err := a.repository()
	if err != nil {
		return nil, err
	}
	return a.open(ctx, where)
}

// open opens a repository with its password.
func (a *app) open(ctx context.Context, r config.Repository) (*repo.Repo, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	password, err := a.password(r)
	if err != nil {
		return nil, err
	}
	return repo.Open(ctx, repo.Config{URL: r.URL}, password, a.repoOptions(c))
}

func (a *app) repoOptions(c *config.Config) repo.Options {
	return repo.Options{CacheDir: filepath.Join(c.CacheDir, "repository"), Host: hostName(), Log: a.log}
}

// hostName is the name under which this machine's backups are recorded.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name
}
