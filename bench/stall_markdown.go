package main

import (
	"fmt"
	"strings"

	"github.com/respaldo-backup/respaldo/bench/stall"
)

// The aims, to which each set's numbers are held.
const (
	aimQuiet   = 1.2 // times the gap without a backup, where the volume hardly pauses
	aimPause   = 1.1 // times the volume's own suspension, on thick LVM
	aimClassic = 20  // times shorter than the classic script's gap
)

func (r *stallReport) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s Rounds: %d.\n\n", r.conditions(), r.Rounds)
	for _, s := range r.Sets {
		results := s.results()
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", s.heading(), s.conditions(r.Versions))
		b.WriteString("| | Longest gap | worst | p99.9 | Lock | Volume's pause | Suspended | Commits | It ran |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n")
		for _, x := range results {
			b.WriteString(x.row())
		}
		b.WriteByte('\n')
		for _, x := range results {
			if x.Failed != "" {
				fmt.Fprintf(&b, "`%s` took no snapshot: %s\n\n", x.Contender, lastLine(x.Failed))
			}
		}
		for _, a := range s.aims() {
			fmt.Fprintf(&b, "- %s\n", a)
		}
		fmt.Fprintf(&b, "\n![%s](%s)\n\n", s.heading(), s.file())
	}
	b.WriteString("## How it was measured\n\n" + r.Method + "\n\n")
	b.WriteString(r.versions())
	return b.String()
}

var kindNames = map[string]string{"thick-ext4": "Thick LVM with ext4", "thin-ext4": "Thin LVM with ext4", "thick-xfs": "Thick LVM with XFS", "thin-xfs": "Thin LVM with XFS",
	"btrfs": "Btrfs", "btrfs-on-lv": "Btrfs on a logical volume"}

func (s *stallSet) heading() string { return kindNames[s.Kind] + ", " + s.Title }

func (s *stallSet) conditions(versions map[string]string) string {
	text := fmt.Sprintf("%s (%s), Linux %s; %d connections with a transaction each in every %s.", s.Server, versions[s.Server], s.Kernel, s.Connections, milliseconds(s.Pace))
	if s.Read > 0 {
		text += fmt.Sprintf(" A SELECT of %s starts %s before each contender.", milliseconds(s.Read), milliseconds(stall.Lead.Seconds()))
	}
	return text
}

func (x stallResult) row() string {
	cells := []string{"`" + x.Contender + "`", milliseconds(x.Gap), milliseconds(x.Worst), milliseconds(x.Latency), "-", milliseconds(x.Pause), "-", fmt.Sprint(x.Commits), "-"}
	if x.Lock != "" {
		cells[4] = milliseconds(x.Waited+x.Held) + " (" + x.Lock + ")"
	}
	if x.Suspended > 0 {
		cells[6] = milliseconds(x.Suspended)
	}
	if x.Took > 0.001 {
		cells[8] = fmt.Sprintf("%.1f s", x.Took)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// aims are the set's numbers beside what we want of them, met or not.
func (s *stallSet) aims() (list []string) {
	ours, none, classic := s.find(stall.Auto), s.find(stall.None), s.find(stall.Classic)
	if ours == nil || none == nil || classic == nil || ours.Gap == 0 || none.Gap == 0 {
		return nil
	}
	say := func(met bool, format string, a ...any) {
		list = append(list, map[bool]string{true: "Met: ", false: "Missed: "}[met]+fmt.Sprintf(format, a...))
	}
	if strings.HasPrefix(s.Kind, "thick") {
		limit, told := max(ours.Suspended*aimPause, none.Gap*aimQuiet), "how long the volume was suspended is not known"
		if ours.Suspended > 0 {
			told = "the volume was suspended for " + milliseconds(ours.Suspended)
		}
		say(ours.Gap <= limit, "respaldo's longest gap is %s; %s (aim: a tenth more at most, or %.3g times the gap without a backup if that is longer).",
			milliseconds(ours.Gap), told, aimQuiet)
	} else {
		say(ours.Gap <= none.Gap*aimQuiet, "respaldo's longest gap is %.2f times that without a backup (aim: %.3g at most).", ours.Gap/none.Gap, aimQuiet)
	}
	if look := s.find(stall.Look); look != nil {
		list = append(list, fmt.Sprintf("`respaldo check`, which takes nothing, has %.2f times the gap without a backup: that much is the lab's one processor.", look.Gap/none.Gap))
	}
	if s.Read > 0 {
		say(ours.Took+stall.Lead.Seconds() < s.Read, "respaldo was done after %.1f s; the SELECT ended after %.1f s.", ours.Took, s.Read-stall.Lead.Seconds())
	}
	if s.Kind == "btrfs" { // the aim is about what LVM does meanwhile
		list = append(list, fmt.Sprintf("The classic script's is %.1f times respaldo's.", classic.Gap/ours.Gap))
	} else {
		say(classic.Gap >= ours.Gap*aimClassic, "the classic script's is %.1f times respaldo's (aim: %d at least).", classic.Gap/ours.Gap, aimClassic)
	}
	return list
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
