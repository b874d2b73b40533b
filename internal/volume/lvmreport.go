package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// lvRow is one logical volume as `lvs` reports it. All fields exist in LVM 2.03.02 (Debian 10),
// and none belongs to a segment: those print one row per segment.
type lvRow struct {
	VG         string `json:"vg_name"`
	VGAttr     string `json:"vg_attr"`
	VGFree     string `json:"vg_free"`
	ExtentSize string `json:"vg_extent_size"`
	LV         string `json:"lv_name"`
	UUID       string `json:"lv_uuid"`
	Attr       string `json:"lv_attr"`
	Size       string `json:"lv_size"`
	Layout     string `json:"lv_layout"`
	Role       string `json:"lv_role"`
	Origin     string `json:"origin"`
	OriginSize string `json:"origin_size"` // thick snapshots only
	Pool       string `json:"pool_lv"`
	Data       string `json:"data_percent"`
	Metadata   string `json:"metadata_percent"`
	Tags       string `json:"lv_tags"`
	Invalid    string `json:"lv_snapshot_invalid"`
	DMPath     string `json:"lv_dm_path"`
}

const lvFields = "vg_name,vg_attr,vg_free,vg_extent_size,lv_name,lv_uuid,lv_attr,lv_size,lv_layout,lv_role,origin,origin_size,pool_lv," +
	"data_percent,metadata_percent,lv_tags,lv_snapshot_invalid,lv_dm_path"

// lvs lists the volumes that the arguments name: groups, volumes or @tags. A group or
// volume that does not exist is an error; a tag that nothing has is an empty list.
func (s *System) lvs(ctx context.Context, args ...string) ([]lvRow, error) {
	argv := append([]string{"lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", lvFields}, args...)
	r, err := s.Run.Run(ctx, run.Cmd{Argv: s.lvmArgv(argv), Quiet: true})
	var exit *run.ExitError
	if errors.As(err, &exit) {
		exit.Stderr += reportedErrors(r.Stdout)
	}
	if err != nil {
		return nil, err
	}
	return parseLVs(r.Stdout)
}

type lvReport struct {
	Report []struct {
		LV []lvRow `json:"lv"`
	} `json:"report"`
	Log []struct {
		Type    string `json:"log_type"`
		Message string `json:"log_message"`
	} `json:"log"`
}

// reportedErrors are the errors that LVM, from some release between 2.03.16 and 2.03.31 on,
// writes into the report instead of on standard error.
func reportedErrors(text []byte) string {
	var report lvReport
	if json.Unmarshal(text, &report) != nil {
		return ""
	}
	var said strings.Builder
	for _, l := range report.Log {
		if l.Type == "error" {
			said.WriteString(l.Message + "\n")
		}
	}
	return said.String()
}

func parseLVs(text []byte) ([]lvRow, error) {
	var report lvReport
	if err := json.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("cannot read the report of lvs: %w", err)
	}
	var rows []lvRow
	for _, r := range report.Report {
		for _, row := range r.LV {
			row.LV = strings.Trim(row.LV, "[]") // hidden ones are bracketed
			row.Pool = strings.Trim(row.Pool, "[]")
			row.Origin = strings.Trim(row.Origin, "[]")
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// lvmArgv puts our --config behind the command's name.
func (s *System) lvmArgv(argv []string) []string {
	if s.LVMConfig == "" {
		return argv
	}
	return append([]string{argv[0], "--config", s.LVMConfig}, argv[1:]...)
}

func (r lvRow) size() int64   { return bytesOf(r.Size) }
func (r lvRow) free() int64   { return bytesOf(r.VGFree) }
func (r lvRow) extent() int64 { return max(bytesOf(r.ExtentSize), 1) }

func (r lvRow) tags() []string {
	if r.Tags == "" {
		return nil
	}
	return strings.Split(r.Tags, ",")
}

// is reports whether one word is among the comma-separated ones of a field.
func is(field, word string) bool { return hasOption(field, word) }

// attr is one character of lv_attr (lvs(8)); '-' where the report is shorter.
func (r lvRow) attr(i int) byte {
	if i < len(r.Attr) {
		return r.Attr[i]
	}
	return '-'
}

// snapshot is what a row's tags and origin say; ours is false without our tag.
func (r lvRow) snapshot() (d respaldo.Snapshot, ours bool) {
	d, ours = decodeTags(r.tags())
	d.Name, d.Path, d.Kind = r.LV, r.DMPath, respaldo.LVMThick
	if r.Pool != "" {
		d.Kind = respaldo.LVMThin
	}
	if d.Path == "" {
		d.Path = "/dev/mapper/" + dmName(r.VG, r.LV)
	}
	if d.Volume == "" && r.Origin != "" {
		d.Volume = r.VG + "/" + r.Origin
	}
	return d, ours
}

func bytesOf(s string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(s, "B"), 10, 64)
	return n
}

// fractionOf reads a percentage; an empty one is 0.
func fractionOf(s string) float64 {
	f, _ := strconv.ParseFloat(s, 64)
	return f / 100
}
