package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/config"
)

// lockFlags change, for one run, how a server is reached and quiesced and how large its
// snapshot is.
type lockFlags struct {
	defaultsFile string
	socket       string
	lock         string
	maxLock      time.Duration
	patience     time.Duration
	killBlockers bool
	size         config.Size
	flags        *pflag.FlagSet
}

func (o *lockFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	o.flags = f
	f.StringVar(&o.defaultsFile, "defaults-file", "", "MySQL option `FILE` with [client] or [respaldo], in place of all others")
	f.StringVar(&o.socket, "socket", "", "`PATH` of the server's socket")
	f.StringVar(&o.lock, "lock", "", "`MODE` of the lock: auto, none, backup or global; a weaker one than is safe is refused")
	f.DurationVar(&o.maxLock, "max-lock", 0, "longest `TIME` that one try to take the snapshot may hold writers, waiting for the lock included (500ms, 3s)")
	f.Var(&o.size, "snapshot-size", "room for changes of a thick LVM snapshot (20GiB); without it, chosen from the free space")
	cmd.RegisterFlagCompletionFunc("lock", cobra.FixedCompletions([]string{"auto", "none", "backup", "global"}, cobra.ShellCompDirectiveNoFileComp))
}

// addTries is for commands that take the lock.
func (o *lockFlags) addTries(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&o.patience, "patience", 0, "`TIME` within which to wait for a moment in which the lock can be had, and to try again (10s, 5m); nobody is held meanwhile")
	f.BoolVar(&o.killBlockers, "kill-blockers", false, "end long reads that stand in the way of the lock, by KILL QUERY; never a write")
}

func (o *lockFlags) apply(s *backup.Site) error {
	if o.defaultsFile != "" {
		s.MySQL.DefaultsFile = o.defaultsFile
	}
	if o.socket != "" {
		s.MySQL.Socket = o.socket
	}
	if o.lock != "" {
		mode, err := config.ParseLock(o.lock)
		if err != nil {
			return usageError("--lock: "+err.Error(), "")
		}
		s.Lock = mode
	}
	if o.flags.Changed("max-lock") {
		if o.maxLock <= 0 {
			return usageError("--max-lock must be more than zero", "give a time, such as 500ms or 3s")
		}
		s.MaxLock = o.maxLock
	}
	if o.flags.Changed("patience") {
		if o.patience <= 0 {
			return usageError("--patience must be more than zero", "give a time, such as 10s or 5m")
		}
		s.Patience = o.patience
	}
	if o.flags.Changed("kill-blockers") {
		s.KillBlockers = o.killBlockers
	}
	if o.size > 0 {
		s.SnapshotBytes = int64(o.size)
	}
	return nil
}

// proveFlag chooses how thoroughly an image is proved.
type proveFlag struct{ level string }

func (o *proveFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.level, "prove", "", "`LEVEL` of the proof: quick (starts, system tables, a sample), full (every table) or none")
	cmd.RegisterFlagCompletionFunc("prove", cobra.FixedCompletions([]string{"quick", "full", "none"}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *proveFlag) apply(s *backup.Site) error {
	switch level := respaldo.ProveLevel(o.level); level {
	case "":
	case respaldo.ProveQuick, respaldo.ProveFull, respaldo.ProveNone:
		s.Prove = level
	default:
		return usageError("--prove is quick, full or none, not "+o.level, "")
	}
	return nil
}
