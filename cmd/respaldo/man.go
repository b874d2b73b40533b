package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCmd(*app) *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Hidden:  true, // for those who make packages
		Short:   "Write the manual pages into a directory",
		Long:    "Write a manual page for each command into a directory, which is made if need be.",
		Example: "  respaldo man dist/man",
		Args:    exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // it would name the day of the build
			return doc.GenManTree(root, &doc.GenManHeader{Title: "RESPALDO", Section: "8", Source: "respaldo " + root.Version, Manual: "respaldo"}, args[0])
		},
	}
}
