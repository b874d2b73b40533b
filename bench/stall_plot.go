package main

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/respaldo-backup/respaldo/bench/stall"
)

// The plot's measures, in pixels.
const (
	plotWidth = 860
	plotLeft  = 44
	plotRight = 16
	plotTop   = 40
	panel     = 92 // of a contender, its title included
	title     = 24 // of a panel
	plotFoot  = 44
)

// Colours that can be read on white and on black: a picture cannot know what it is shown on.
const (
	inkColour  = "#7a828c"
	oursColour = "#1f9d55"
	elseColour = "#3b82c4"
	gapColour  = "#e0483e"
)

// plot draws the commits in every ten milliseconds against the time, the contenders under
// each other on the same axes, as an SVG without a script.
func (s *stallSet) plot() string {
	results := s.results()
	last, most := 0.0, 1
	for _, x := range results {
		last = max(last, x.Window)
		most = max(most, slices.Max(append(slices.Clone(x.Counts), 0)))
	}
	lead := stall.Lead.Seconds()
	across := func(seconds float64) float64 {
		return plotLeft + (seconds+lead)/(last+lead)*(plotWidth-plotLeft-plotRight)
	}
	height := plotTop + panel*len(results) + plotFoot
	heading := s.heading() + ": commits in each 10 ms"

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="system-ui, sans-serif" font-size="13" fill="%s">`+"\n",
		plotWidth, height, plotWidth, height, inkColour)
	fmt.Fprintf(&b, "<title>%s</title>\n<desc>%s</desc>\n", escaped(heading), escaped(s.description()))
	text := func(x, y float64, more, words string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f"%s>%s</text>`+"\n", x, y, more, escaped(words))
	}
	text(plotLeft, 20, ` font-size="15"`, heading)
	for i, x := range results {
		top := float64(plotTop + i*panel)
		base, room := top+panel-8, float64(panel-title-8)
		colour := elseColour
		if strings.HasPrefix(x.Contender, stall.Auto) {
			colour = oursColour
		}
		text(plotLeft, top+title-8, ` font-weight="bold"`, x.Contender)
		text(plotWidth-plotRight, top+title-8, ` text-anchor="end"`, x.caption())
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" fill-opacity="0.3"/>`+"\n",
			across(x.GapAt), base-room, max(across(x.GapAt+x.Gap)-across(x.GapAt), 1), room, gapColour)
		fmt.Fprintf(&b, `<path d="%s" stroke="%s" stroke-width="%.2f" fill="none"/>`+"\n", x.bars(across, base, room/float64(most)), colour, max(across(0.01)-across(0), 1.2))
		if x.Took > 0 {
			fmt.Fprintf(&b, `<path d="M%.1f %.1fH%.1f" stroke="%s" stroke-width="3"/>`+"\n", across(0), base+3, across(x.Took), inkColour)
		}
		fmt.Fprintf(&b, `<path d="M%d %.1fV%.1fH%.1f" stroke="%s" stroke-opacity="0.6" fill="none"/>`+"\n", plotLeft, base-room, base, across(x.Window), inkColour)
		text(plotLeft-6, base-room+10, ` text-anchor="end" font-size="11"`, fmt.Sprint(most))
		text(plotLeft-6, base, ` text-anchor="end" font-size="11"`, "0")
	}
	foot := float64(height - plotFoot)
	for second := 0; second <= int(last); second++ {
		if last > 10 && second%2 != 0 {
			continue
		}
		fmt.Fprintf(&b, `<path d="M%.1f %.1fv5" stroke="%s"/>`+"\n", across(float64(second)), foot-8, inkColour)
		text(across(float64(second)), foot+12, ` text-anchor="middle" font-size="11"`, fmt.Sprintf("%d s", second))
	}
	text(plotLeft, foot+32, ` font-size="11"`, "0 s: the contender starts, and runs as long as the line under its axis, which ends where it was watched no longer. Red: the longest time without a commit.")
	b.WriteString("</svg>\n")
	return b.String()
}

// bars is a path with one vertical line for each slice in which something was committed.
func (x stallResult) bars(across func(float64) float64, base, unit float64) string {
	var b strings.Builder
	for i, n := range x.Counts {
		if n > 0 {
			middle := (float64(i)+0.5)*stall.Slice.Seconds() - stall.Lead.Seconds()
			fmt.Fprintf(&b, "M%.1f %.1fv-%.1f", across(middle), base, float64(n)*unit)
		}
	}
	return b.String()
}

func (x stallResult) caption() string {
	words := fmt.Sprintf("longest gap %s, p99.9 %s", milliseconds(x.Gap), milliseconds(x.Latency))
	if x.Failed != "" {
		words += "; took no snapshot"
	}
	return words
}

// description is for who does not see the plot.
func (s *stallSet) description() string {
	var words []string
	for _, x := range s.results() {
		words = append(words, x.Contender+": "+x.caption())
	}
	return strings.Join(words, ". ") + "."
}

func escaped(words string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(words)) // a strings.Builder takes everything
	return b.String()
}

// milliseconds has as many digits as one can believe.
func milliseconds(seconds float64) string {
	switch ms := seconds * 1e3; {
	case ms == 0:
		return "0"
	case ms < 9.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 9999.5:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f s", seconds)
	}
}
