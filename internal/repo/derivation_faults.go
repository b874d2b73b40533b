//go:build faults

package repo

// keyDerivation is another one of kopia's in the binary that tests run a thousand times:
// touching scrypt's 64 MiB takes seconds in a user-mode kernel. A repository says itself
// which it was made with.
var keyDerivation = "pbkdf2-sha256-600000"
