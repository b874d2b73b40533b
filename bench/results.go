package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// header is what the file of any results begins with.
type header struct {
	Format   int               `json:"format"` // of the file: 1
	Command  string            `json:"command"`
	Date     time.Time         `json:"date"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Rounds   int               `json:"rounds"`
	Method   string            `json:"method"`
}

type machine struct {
	Cores       int     `json:"cores"`
	Processor   string  `json:"processor"`
	MemoryBytes int64   `json:"memory_bytes"`
	Kernel      string  `json:"kernel"`
	Load        float64 `json:"load"` // one-minute average when the run began
}

// newHeader also warns when the machine is busy.
func newHeader(ctx context.Context, command, method string, rounds int) header {
	out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output()
	ours := strings.TrimSpace(string(out))
	if err != nil {
		ours = "unknown"
	}
	h := header{Format: 1, Command: command, Date: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(),
		Versions: map[string]string{"respaldo": ours}, Rounds: rounds, Method: method}
	if h.Machine.Load > float64(h.Machine.Cores)/2 {
		logf("bench: this machine is busy (load %.1f): the numbers will be worse than they should be", h.Machine.Load)
	}
	return h
}

func thisMachine() (m machine) {
	m.Cores = runtime.NumCPU()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		m.MemoryBytes = int64(s.Totalram) * int64(s.Unit)
		m.Load = float64(s.Loads[0]) / (1 << 16)
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	if _, after, found := bytes.Cut(info, []byte("model name\t: ")); found {
		name, _, _ := bytes.Cut(after, []byte("\n"))
		m.Processor = string(name)
	}
	return m
}

// conditions is where and how it was run, for people.
func (h header) conditions() string {
	m := h.Machine
	return fmt.Sprintf("%d cores (%s), %s of memory, Linux %s, load %.1f at the start; %s, `%s`.",
		m.Cores, m.Processor, size(m.MemoryBytes), m.Kernel, m.Load, h.Date.Format(time.DateOnly), h.Command)
}

// versions is the last line for people.
func (h header) versions() string {
	var list []string
	for name, v := range h.Versions {
		list = append(list, name+" "+v)
	}
	slices.Sort(list)
	return "Versions: " + strings.Join(list, ", ") + ".\n"
}

// innermost is a JSON object without others in it.
var innermost = regexp.MustCompile(`\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}`)

// saveResults writes NAME.json for programs, in which a measurement takes one line, and
// NAME.md for people.
func saveResults(dir, name string, report any, markdown string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(report, "", " ")
	if err != nil {
		return err
	}
	text = innermost.ReplaceAllFunc(text, func(object []byte) []byte {
		var line bytes.Buffer
		json.Compact(&line, object) // it is valid: it has just been made
		return line.Bytes()
	})
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".md"), []byte(markdown), 0o644)
}
