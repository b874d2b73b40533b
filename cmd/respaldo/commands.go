package main

import "github.com/spf13/cobra"

// commands are what respaldo can do, in the order of the help.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newCheckCmd(a), newBackupCmd(a), newSnapshotCmd(a),
		newListCmd(a), newShowCmd(a), newRestoreCmd(a), newServeCmd(a), newStopCmd(a),
		newInitCmd(a), newVerifyCmd(a), newPruneCmd(a), newCleanupCmd(a), newStatusCmd(a),
	}
}
