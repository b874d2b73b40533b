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
	size         config.Size
	flags        *pflag.FlagSet
}

func (o *lockFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	o.flags = f
	f.StringVar(&o.defaultsFile, "defaults-file", "", "MySQL option `FILE` with [client] or [respaldo], in place of all others")
	f.StringVar(&o.socket, "socket", "", "`PATH` of the server's socket")
	f.StringVar(&o.lock, "lock", "", "`MODE` of the lock: auto, none, backup or global; a weaker one than is safe is refused")
	f.DurationVar(&o.maxLock, "max-lock", 0, "longest `TIME` that writers may be held, waiting for the lock included (500ms, 3s)")
	f.Var(&o.size, "snapshot-size", "room for changes of a thick LVM snapshot (20GiB); without it, chosen from the free space")
	cmd.RegisterFlagCompletionFunc("lock", cobra.FixedCompletions([]string{"auto", "none", "backup", "global"}, cobra.ShellCompDirectiveNoFileComp))
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
