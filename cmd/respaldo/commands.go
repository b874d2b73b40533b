package main

import "github.com/spf13/cobra"

// commands are what respaldo can do, in the order of the help.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{}
}
