package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
)

// Fstab is the table of what is mounted at boot.
const Fstab = "/etc/fstab"

// Mount is one line of fstab.
type Mount struct {
	Source  string `json:"source"` // "/dev/vg/lv", or "UUID=…" for Btrfs
	Dir     string `json:"dir"`
	Type    string `json:"type"`
	Options string `json:"options"`
	Pass    int    `json:"pass"` // of fsck; 0: never
}

// Line is the mount as fstab has it, without a newline.
func (m Mount) Line() string {
	return fmt.Sprintf("%s %s %s %s 0 %d", escapeField(m.Source), escapeField(m.Dir), m.Type, m.Options, m.Pass)
}

// fstab(5): blanks in a field are written as octal numbers.
var (
	fieldEscapes   = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`)
	fieldUnescapes = strings.NewReplacer(`\134`, `\`, `\040`, " ", `\011`, "\t", `\012`, "\n")
)

func escapeField(s string) string   { return fieldEscapes.Replace(s) }
func unescapeField(s string) string { return fieldUnescapes.Replace(s) }

// fstabMark precedes a line of ours.
const fstabMark = "# The next line is respaldo prepare's; respaldo prepare --undo removes it."

// RefuseMount is an error if fstab names the directory or the source already, with the line.
// Our own line for just that mount is none.
func (h *Host) RefuseMount(m Mount) error {
	lines, err := h.fstab()
	if err != nil {
		return err
	}
	for n, line := range lines {
		source, dir, ok := fstabFields(line)
		if !ok || line == m.Line() && n > 0 && lines[n-1] == fstabMark {
			continue
		}
		what := ""
		switch {
		case filepath.Clean(dir) == filepath.Clean(m.Dir):
			what = "the mount point " + m.Dir
		case source == m.Source && !strings.Contains(m.Options, "subvol="): // of Btrfs, each subvolume has its line
			what = m.Source
		default:
			continue
		}
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s line %d names %s already: %s", Fstab, n+1, what, strings.TrimSpace(line)),
			Hint: "remove that line if it is no longer needed, or give another --mount"}
	}
	return nil
}

// AddMount adds the line to fstab, after keeping a copy of what was there. A second call
// changes nothing.
func (h *Host) AddMount(m Mount) error {
	if err := h.RefuseMount(m); err != nil {
		return err
	}
	lines, err := h.fstab()
	if err != nil {
		return err
	}
	if ourLine(lines, m) >= 0 {
		return nil
	}
	if err := keepCopy(h.path(Fstab)); err != nil {
		return err
	}
	return h.writeFstab(append(lines, fstabMark, m.Line()))
}

// RemoveMount removes the line of ours, even if its options were changed since; without our
// mark above it, it is somebody else's and stays.
func (h *Host) RemoveMount(m Mount) error {
	lines, err := h.fstab()
	if err != nil {
		return err
	}
	at := ourLine(lines, m)
	if at < 0 {
		return nil
	}
	return h.writeFstab(append(lines[:at-1:at-1], lines[at+1:]...))
}

// ourLine is the index of the line that mounts it and has our mark above it, or -1.
func ourLine(lines []string, m Mount) int {
	for n, line := range lines {
		source, dir, ok := fstabFields(line)
		if ok && n > 0 && lines[n-1] == fstabMark && source == m.Source && filepath.Clean(dir) == filepath.Clean(m.Dir) {
			return n
		}
	}
	return -1
}

func fstabFields(line string) (source, dir string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 2 || strings.HasPrefix(f[0], "#") {
		return "", "", false
	}
	return unescapeField(f[0]), unescapeField(f[1]), true
}

// fstab is its lines without their ends; none where there is no file.
func (h *Host) fstab() ([]string, error) {
	text, err := os.ReadFile(h.path(Fstab))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), err
}

func (h *Host) writeFstab(lines []string) error {
	text := strings.Join(lines, "\n")
	if text != "" {
		text += "\n"
	}
	return disk.Rewrite(h.path(Fstab), []byte(text), 0o644)
}
