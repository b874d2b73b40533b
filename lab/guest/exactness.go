package guest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Exactness is what became of the images that were asked for with one lock, while one
// profile was written to one server. Images is the sum of the four after it.
type Exactness struct {
	Server  string         `json:"server"`
	Volume  string         `json:"volume"`
	Lock    string         `json:"lock"`
	Profile string         `json:"profile"`
	Images  int            `json:"images"`
	Exact   int            `json:"exact"`   // rolled forward from their coordinates, they were the origin
	Refused int            `json:"refused"` // nothing was taken, and the reason was given
	Marked  int            `json:"marked"`  // taken, found to be not exact, and not recorded
	Wrong   int            `json:"wrong"`   // silently, or for want of anything better
	Tries   int            `json:"tries"`
	Modes   map[string]int `json:"modes,omitempty"`   // the locks that were used
	Reasons []string       `json:"reasons,omitempty"` // of those that are not exact, each once
}

// Add adds up what became of images, not why.
func (e *Exactness) Add(other Exactness) {
	e.Images += other.Images
	e.Exact += other.Exact
	e.Refused += other.Refused
	e.Marked += other.Marked
	e.Wrong += other.Wrong
	e.Tries += other.Tries
	for mode, n := range other.Modes {
		if e.Modes == nil {
			e.Modes = map[string]int{}
		}
		e.Modes[mode] += n
	}
}

// String is short: "9 exact (1 backup, 8 none), 2 refused". A nil one is empty.
func (e *Exactness) String() string {
	if e == nil {
		return ""
	}
	var modes, parts []string
	for _, mode := range slices.Sorted(maps.Keys(e.Modes)) {
		modes = append(modes, fmt.Sprintf("%d %s", e.Modes[mode], mode))
	}
	for _, p := range []struct {
		n    int
		what string
	}{{e.Exact, "exact"}, {e.Refused, "refused"}, {e.Marked, "marked"}, {e.Wrong, "**wrong**"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if len(modes) > 0 {
		parts[0] += " (" + strings.Join(modes, ", ") + ")"
	}
	return strings.Join(parts, ", ")
}
