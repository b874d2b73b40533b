//go:build !faults

package repo

// The tests make hundreds of repositories; the golden one under testdata is as a user's.
func init() { keyDerivation = "pbkdf2-sha256-600000" }
