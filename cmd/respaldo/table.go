package main

import (
	"io"
	"strings"
	"unicode/utf8"
)

// table is columns of words, aligned, without borders. Titles are in capitals.
type table struct {
	columns []column
	rows    [][]string
}

type column struct {
	title    string
	right    bool
	flexible bool
}

func left(title string) column  { return column{title: title} }
func right(title string) column { return column{title: title, right: true} }

// flexible columns give way when the terminal is too narrow: what does not fit is cut off.
// Anywhere but on a terminal nothing ever is.
func flexible(title string) column { return column{title: title, flexible: true} }

func newTable(columns ...column) *table { return &table{columns: columns} }

// row adds a line; an empty cell is shown as a dash.
func (t *table) row(cells ...string) {
	row := make([]string, len(t.columns))
	for i := range row {
		row[i] = "-"
		if i < len(cells) && cells[i] != "" {
			row[i] = cells[i]
		}
	}
	t.rows = append(t.rows, row)
}

const gap = "  "

// write aligns the columns; width 0 is unlimited.
func (t *table) write(w io.Writer, width int) {
	widths, titled := make([]int, len(t.columns)), false
	for i, c := range t.columns {
		titled = titled || c.title != ""
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	t.narrow(widths, width)
	if titled {
		titles := make([]string, len(t.columns))
		for i, c := range t.columns {
			titles[i] = c.title
		}
		t.line(w, titles, widths)
	}
	for _, row := range t.rows {
		t.line(w, row, widths)
	}
}

// narrow takes from the widest flexible column until the line fits, down to what can
// still be recognised.
func (t *table) narrow(widths []int, width int) {
	const least = 12
	total := len(gap) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; width > 0 && total > width; total-- {
		widest := -1
		for i, c := range t.columns {
			if c.flexible && widths[i] > least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

func (t *table) line(w io.Writer, cells []string, widths []int) {
	var line strings.Builder
	for i, cell := range cells {
		length := utf8.RuneCountInString(cell)
		if length > widths[i] {
			cell, length = string([]rune(cell)[:widths[i]-1])+"…", widths[i]
		}
		if i > 0 {
			line.WriteString(gap)
		}
		padding := strings.Repeat(" ", widths[i]-length)
		if t.columns[i].right {
			line.WriteString(padding + cell)
		} else {
			line.WriteString(cell + padding)
		}
	}
	io.WriteString(w, strings.TrimRight(line.String(), " ")+"\n")
}

// newFields is a table of names and values without titles, for a single thing.
func newFields() *table { return newTable(left(""), left("")) }

// field adds a line to newFields, unless there is no value.
func (t *table) field(name, value string) {
	if value != "" {
		t.row(name, value)
	}
}
