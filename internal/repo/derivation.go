//go:build !faults

package repo

import "github.com/kopia/kopia/repo/format"

// keyDerivation makes the key from the password. kopia's default, scrypt, takes 64 MiB and a
// second for each guess at it.
var keyDerivation = format.DefaultKeyDerivationAlgorithm
