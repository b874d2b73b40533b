// Labinit is small programs that must not fail each other: the first process inside a guest
// of the lab, what systemd starts in a guest that it is the first process of, and on the host
// the keeper that a guest's kernel runs under.
package main

import (
	"fmt"
	"os"
)

func main() {
	if os.Getpid() == 1 {
		guest()
		return
	}
	if len(os.Args) == 2 && (os.Args[1] == "job" || os.Args[1] == "emergency") {
		unit(os.Args[1])
		return
	}
	if len(os.Args) < 3 || os.Args[1] != "keep" {
		fmt.Fprintln(os.Stderr, "usage: labinit keep PROGRAM ARG…")
		os.Exit(2)
	}
	os.Exit(keep(os.Args[2:]))
}
