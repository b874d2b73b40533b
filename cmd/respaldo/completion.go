package main

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"
)

func newCompletionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script for a shell",
		Long: `Print a script that teaches a shell to complete respaldo's commands, flags and server
names. Packages install it already.`,
		Example: `  respaldo completion bash > /etc/bash_completion.d/respaldo
  source <(respaldo completion zsh)`,
		Args:      exactArgs("the shell"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			var script bytes.Buffer
			var err error
			switch root := cmd.Root(); args[0] {
			case "bash":
				err = root.GenBashCompletionV2(&script, true)
			case "zsh":
				err = root.GenZshCompletion(&script)
			case "fish":
				err = root.GenFishCompletion(&script, true)
			default:
				return usageError(fmt.Sprintf("there is no completion for the shell %q", args[0]), "there is one for bash, zsh and fish")
			}
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(script.Bytes())
			return err
		},
	}
}
