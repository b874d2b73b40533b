//go:build !faults

package ledger

// Point marks a step at which a test may kill the process or cut the power. Only a binary
// built with the tag "faults" does anything here.
func Point(string) {}
