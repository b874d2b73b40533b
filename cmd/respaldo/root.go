package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
)

// Groups of commands in the help.
const (
	groupBackup  = "backup"
	groupRestore = "restore"
	groupCare    = "care"
)

// newRootCmd puts the commands together. What they need comes through app.
func newRootCmd(a *app, extra ...func(*app) *cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:   "respaldo",
		Short: "Backups of MySQL and MariaDB from volume snapshots, proved by starting them",
		Long: `respaldo takes consistent backups of MySQL and MariaDB servers whose data lies on
LVM or Btrfs: it holds writers for an instant, takes a snapshot, saves that into an
encrypted, deduplicated repository, proves it by starting it, and leaves nothing behind.

Any backup or snapshot is also a private server within seconds (serve), a logical dump
(dump), or a server or replica on another node (clone); a volume goes back to a snapshot
that was kept (rollback).

Begin with respaldo check, which says what a backup would do and touches nothing. Where the
data lies on no volume that can be snapshotted, respaldo prepare moves it onto one.`,
		Example: `  respaldo check
  respaldo init
  respaldo backup
  respaldo restore latest --to /srv/restored
  respaldo serve now
  respaldo rollback SNAPSHOT`,
		Version:           buildVersion().Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.begin() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.console)
	root.SetVersionTemplate("respaldo {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(err.Error(), helpHint(cmd)) })

	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.flags.config, "config", "", "configuration `FILE` (default /etc/respaldo/respaldo.toml)")
	f.StringVarP(&a.flags.server, "server", "s", "", "the server's `NAME` in the configuration; not needed where there is one")
	f.StringVarP(&a.flags.repository, "repository", "r", "", "`URL` of the repository, in place of the configured one")
	f.StringVar(&a.flags.passwordFile, "password-file", "", "`FILE` with the repository's password")
	f.BoolVar(&a.flags.json, "json", false, "print the result, or the error, as one JSON document on stdout")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "say nothing on stderr but warnings and errors")
	f.BoolVarP(&a.flags.verbose, "verbose", "v", false, "log every external command, statement and decision")
	f.StringVar(&a.flags.logFormat, "log-format", "text", "`FORMAT` of the log on stderr: text or json")
	f.BoolVar(&a.flags.noColor, "no-color", false, "no colours (also NO_COLOR in the environment)")
	root.MarkFlagsMutuallyExclusive("quiet", "verbose")
	root.RegisterFlagCompletionFunc("server", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		c, err := a.config()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return c.Names(), cobra.ShellCompDirectiveNoFileComp
	})
	root.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: groupBackup, Title: "Back up:"},
		&cobra.Group{ID: groupRestore, Title: "Bring back:"},
		&cobra.Group{ID: groupCare, Title: "Look after:"},
	)
	root.AddCommand(commands(a)...)
	root.AddCommand(newVersionCmd(a), newCompletionCmd(a), newManCmd(a), newExitCodesTopic())
	for _, add := range extra {
		root.AddCommand(add(a))
	}
	equip(a, root)
	return root
}

// equip gives all commands what they have in common: a parent alone is a mistake, and
// from the moment a command runs, errors are its own.
func equip(a *app, cmd *cobra.Command) {
	for _, child := range cmd.Commands() {
		equip(a, child)
	}
	switch {
	case cmd.RunE != nil:
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.began = true
			return run(cmd, args)
		}
	case cmd.HasSubCommands() && cmd.HasParent():
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, child := range cmd.Commands() {
				names = append(names, child.Name())
			}
			what := cmd.CommandPath() + " needs a subcommand"
			if len(args) > 0 {
				what = fmt.Sprintf("%s has no subcommand %q", cmd.CommandPath(), args[0])
			}
			return usageError(what, "it has "+strings.Join(names, ", "))
		}
	}
}

// asUsage turns what cobra complains about before a command runs into errors of ours, and
// sees to it that such an error, too, is printed as asked for.
func (a *app) asUsage(err error, args []string) error {
	if a.began || respaldo.KindOf(err) != respaldo.Failed {
		a.flags.json = a.flags.json || !a.began && slices.Contains(args, "--json")
		return err
	}
	a.flags.json = a.flags.json || slices.Contains(args, "--json")
	what, rest, _ := strings.Cut(err.Error(), "\n")
	hint := "see respaldo --help"
	if near := strings.Fields(strings.TrimPrefix(strings.TrimSpace(rest), "Did you mean this?")); len(near) > 0 {
		hint = "did you mean respaldo " + strings.Join(near, " or respaldo ") + "?"
	}
	return usageError(what, hint)
}

func usageError(what, hint string) error {
	return &respaldo.Error{Kind: respaldo.Usage, What: what, Hint: hint}
}

func helpHint(cmd *cobra.Command) string { return "see " + cmd.CommandPath() + " --help" }

// exactArgs is cobra.ExactArgs with an error that names the arguments.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError(fmt.Sprintf("%s: %s is missing", cmd.CommandPath(), names[len(args)]), helpHint(cmd))
		case len(args) > len(names):
			return usageError(fmt.Sprintf("%s: %q is one argument too many", cmd.CommandPath(), args[len(names)]), helpHint(cmd))
		}
		return nil
	}
}
