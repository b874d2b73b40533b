package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

func newDumpCmd(a *app) *cobra.Command {
	var lock lockFlags
	var request backup.DumpRequest
	var to, compress string
	cmd := &cobra.Command{
		Use:     "dump [IMAGE] --to FILE",
		GroupID: groupBackup,
		Short:   "Make a logical dump of an image, which the origin does not feel",
		Long: `Starts a private server on an image and has mysqldump or mariadb-dump, of the release
that fits the server, dump it: all databases with routines, triggers, events, users and
grants, or those that --databases or --tables name. At its head stand, as SQL comments,
the statements that make a server on which it was loaded a replica of the origin.

IMAGE is "now", which it is without one (a snapshot taken on the spot and removed
afterwards), the name of a kept snapshot, or a backup: an ID, the beginning of one, or
"latest". Nothing but that snapshot touches the origin, and no lock is held while dumping.

--to is a file (compressed by its suffix, .zst or .gz, or by --compress), "-" for standard
output, or "repository": there the dump is an object of its own, which list and show
show, restore writes into a directory, and the retention policy counts apart. A file
appears under its name when it is whole and on disk; a dump that fails leaves none, and
on standard output lacks its last line, "-- Dump completed". With --tool mydumper it is
a directory.`,
		Example: `  respaldo dump --to /srv/dumps/shop.sql.zst
  respaldo dump latest --to repository
  respaldo dump respaldo-main-20261123T030000-9f3a01 --databases shop,crm --to shop-crm.sql.gz
  respaldo dump --tables shop.orders --to - | mariadb test
  respaldo dump --tool mydumper --to /srv/dumps/shop`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Image, request.Of = "now", a.flags.server
			if len(args) > 0 {
				request.Image = args[0]
			}
			request.Compress = backup.Compression(compress)
			switch {
			case to == "":
				return usageError("where to? --to is missing", "give a file, - for standard output, or repository")
			case to == "-" && a.flags.json:
				return usageError("--json and the dump would both go to standard output", "give --to a file, or leave --json out")
			case to == "-":
				request.Stdout = a.stdout
			case to == "repository":
				request.Repository = true
			default:
				request.File = to
			}
			site, err := a.site()
			if err != nil {
				return err
			}
			if err := lock.apply(site); err != nil {
				return err
			}
			done, err := site.Dump(cmd.Context(), request)
			if done.File == "" && done.Backup == nil { // failed, or on standard output
				return err
			}
			// It is whole: it is shown even when something could not be released after it.
			if showErr := a.show(done, func(p *page) { showDumped(p, done) }); err == nil {
				err = showErr
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "`FILE`, - for standard output, or repository")
	f.StringSliceVar(&request.Databases, "databases", nil, "`NAMES` of databases, separated by commas; without this and --tables, all")
	f.StringSliceVar(&request.Tables, "tables", nil, "`NAMES` of tables (shop.orders), separated by commas")
	f.StringSliceVar(&request.Without, "without", nil, "`NAMES` of tables and views to leave out (shop.log), separated by commas")
	f.StringVar(&compress, "compress", "", "`KIND` of compression: zstd, gzip or none; without it, by the file's suffix")
	f.BoolVar(&request.Force, "force", false, "replace the file, once the new one is whole")
	f.StringVar(&request.Tool, "tool", mysql.ToolAuto, "dump with this `TOOL`: auto, mysqldump or mydumper")
	f.StringVar(&request.Program, "program", "", "`PATH` of the dump program; without it, the one that came with the server, or on the PATH")
	lock.add(cmd)
	lock.addTries(cmd)
	cmd.RegisterFlagCompletionFunc("tool", cobra.FixedCompletions([]string{mysql.ToolAuto, mysql.ToolMysqldump, mysql.ToolMydumper}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("compress", cobra.FixedCompletions([]string{"zstd", "gzip", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func showDumped(p *page, d backup.Dumped) {
	f := newFields()
	if d.Backup != nil {
		f.field("dump", d.Backup.ID)
	} else {
		f.field("dump", d.File)
	}
	f.field("of", fmt.Sprintf("%s (%s), by %s", d.Image, d.Version, d.Tool))
	f.field("as of", fmt.Sprintf("%s at %s", formatTime(d.Taken), d.Coordinates))
	if d.Coordinates.GTIDSet != "" {
		f.field("GTID set", d.Coordinates.GTIDSet)
	}
	f.field("data", fmt.Sprintf("%d tables, %s; %s written in %s", d.Tables, backup.FormatBytes(d.Bytes), backup.FormatBytes(d.Written), backup.FormatSeconds(d.Seconds)))
	p.table(f)
	if len(d.Forgotten) > 0 {
		p.printf("\n%d older backups and dumps let go by the retention policy\n", len(d.Forgotten))
	}
}
