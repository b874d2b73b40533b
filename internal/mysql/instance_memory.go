package mysql

import (
	"fmt"
	"os"
	"strings"
)

const (
	leastMemory = 256 << 20
	mostMemory  = 2 << 30
)

// memoryFor is what an instance may use to recover a redo log of that size: a pool much
// smaller than what the log changes is read and written over and over. It never takes
// more than a quarter of what the machine has free.
func memoryFor(redo, available int64) int64 {
	return max(leastMemory, min(redo/8, mostMemory, available/4))
}

// redoBytes is how large the origin's redo log may have become. Where a server knows both
// the old and the new variables, one of them is not in use.
func redoBytes(variables map[string]string) int64 {
	files := max(1, numberOf(variables, "innodb_log_files_in_group"))
	return max(numberOf(variables, "innodb_redo_log_capacity"), files*numberOf(variables, "innodb_log_file_size"))
}

// availableMemory is the kernel's estimate, 0 if it has none.
func availableMemory() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kilobytes int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kilobytes); n == 1 {
			return kilobytes << 10
		}
	}
	return 0
}
