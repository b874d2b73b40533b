// Stallrun is what measures how long a backup holds writers, in a guest of the lab or beside
// it: see bench.
package main

import (
	"encoding/json"
	"os"

	"github.com/respaldo-backup/respaldo/bench/stall"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

func main() {
	guest.Main(func(t guest.T) {
		var plan stall.Plan
		if err := json.Unmarshal([]byte(os.Args[1]), &plan); err != nil {
			t.Fatal(err)
		}
		stall.Run(t, plan)
	})
}
