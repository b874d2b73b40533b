package volume

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// The recordings in testdata are of LVM as Debian 11, 12 and 13 have it, each of the same
// group: a thick volume with a snapshot of ours, twice extended, and a full one of
// others', a thin volume with a snapshot of ours.
func recordings(t *testing.T, kind string) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/" + kind + "-*")
	if err != nil || len(files) != 3 {
		t.Fatalf("recordings %v, %v", files, err)
	}
	texts := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(f)] = string(text)
	}
	return texts
}

func TestReports(t *testing.T) {
	for name, text := range recordings(t, "lvs") {
		rows, err := parseLVs([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		by := map[string]lvRow{}
		for _, r := range rows {
			if _, twice := by[r.LV]; twice {
				t.Errorf("%s: %s is there twice", name, r.LV)
			}
			by[r.LV] = r
		}
		thick, thin, pool := by["da-ta"], by["thin"], by["pool"]
		if thick.size() != 200<<20 || thick.free() != 2906652672 || thick.extent() != 4<<20 || refuseLV(thick) != nil {
			t.Errorf("%s: thick origin %+v, %v", name, thick, refuseLV(thick))
		}
		if thin.Pool != "pool" || refuseLV(thin) != nil || fractionOf(pool.Data) != 0.25 || math.Abs(fractionOf(pool.Metadata)-0.1113) > 1e-9 || refusePool("my-vg", pool, Request{}) != nil {
			t.Errorf("%s: thin origin %+v, pool %+v", name, thin, pool)
		}
		if err := refuseLV(by["full"]); respaldo.KindOf(err) != respaldo.Refused || err == nil {
			t.Errorf("%s: a snapshot of a snapshot: %v", name, err)
		}
		var ours []respaldo.Snapshot
		for _, r := range rows {
			if d, yes := r.snapshot(); yes {
				ours = append(ours, d)
			}
		}
		want := []respaldo.Snapshot{
			{Name: "sn-1", Server: "shop 1", Run: "r/1", Kind: respaldo.LVMThick, Volume: "my-vg/da-ta", Path: "/dev/mapper/my--vg-sn--1", Created: time.Date(2026, 11, 23, 14, 36, 0, 123456000, time.UTC)},
			{Name: "thin-sn", Kind: respaldo.LVMThin, Volume: "my-vg/thin", Path: "/dev/mapper/my--vg-thin--sn", Kept: true},
		}
		if !slices.Equal(ours, want) {
			t.Errorf("%s: our snapshots are %+v", name, ours)
		}
	}
}

func TestRecordedFill(t *testing.T) {
	for name, status := range recordings(t, "status") {
		for _, c := range []struct {
			snapshot, pool string
			want           respaldo.Fill
		}{
			{"my--vg-sn--1", "", respaldo.Fill{Data: 12352.0 / 40960, Valid: true}},
			{"my--vg-full", "", respaldo.Fill{Data: 1}},
			{"my--vg-gone", "", respaldo.Fill{}},
			{"my--vg-thin--sn", "my--vg-pool-tpool", respaldo.Fill{Data: 0.25, Metadata: 114.0 / 1024, Valid: true}},
			{"my--vg-gone", "my--vg-pool-tpool", respaldo.Fill{Data: 0.25, Metadata: 114.0 / 1024}},
			{"my--vg-thin--sn", "my--vg-other-tpool", respaldo.Fill{}},
		} {
			if got := parseFill(status, c.snapshot, c.pool); got != c.want {
				t.Errorf("%s: fill of %s is %+v, not %+v", name, c.snapshot, got, c.want)
			}
		}
	}
	for _, broken := range []string{"s: 0 8 snapshot Invalid", "s: 0 8 snapshot Overflow", "s: 0 8 snapshot Merge failed", "s: 0 8 snapshot Unknown", "s: 0 8 thin Fail", "s: 0 8 error", "s: 0 8 snapshot 3/0 1", "s: "} {
		if f := parseFill(broken, "s", ""); f.Valid {
			t.Errorf("%q is valid", broken)
		}
	}
	for _, broken := range []string{"Fail", "Error"} {
		if f := parseFill("s: 0 8 thin 1 2\np: 0 8 thin-pool "+broken, "s", "p"); f.Valid {
			t.Errorf("a pool that says %s is valid", broken)
		}
	}
}

func TestRecordedDevices(t *testing.T) {
	for name, text := range recordings(t, "info") {
		list := parseDevices(text)
		layers := map[string]string{}
		for _, d := range list {
			if d.suspended || !d.live || d.inactive {
				t.Errorf("%s: %+v", name, d)
			}
			layers[d.name] = d.layer()
			if len(d.volume()) != 32 || d.group() != list[0].group() {
				t.Errorf("%s: volume %q of group %q", name, d.volume(), d.group())
			}
		}
		if len(list) != 12 || layers["my--vg-da--ta-real"] != "-real" || layers["my--vg-sn--1-cow"] != "-cow" || layers["my--vg-thin"] != "" || layers["my--vg-pool-tpool"] != "-tpool" {
			t.Errorf("%s: layers %v", name, layers)
		}
	}
	d := parseDevices(lvUUID + "-real 0 Suspended Inactive vg-x-real\n" + lvUUID + " 1 Suspended Both vg-x\nother 0 Active Live luks\n" + lvUUID + "-cow 0 Active None vg-y-cow\n")
	if len(d) != 3 || !d[0].suspended || d[0].live || !d[0].inactive || !d[1].live || !d[1].inactive || d[1].open != 1 || d[2].live || d[2].inactive {
		t.Errorf("devices of a killed command: %+v", d)
	}
}

// What the tools say becomes an error that says what to do.
func TestRecordedErrors(t *testing.T) {
	for name, text := range recordings(t, "errors") {
		seen := map[string]bool{}
		for line := range strings.Lines(text) {
			err := lvmError(respaldo.SnapshotLost, "x", &run.ExitError{Cmd: "lvm", Exit: 5, Stderr: line})
			switch hint := strings.Join(respaldo.HintsOf(err), " "); {
			case strings.Contains(line, "already exists"):
				seen["taken"] = respaldo.KindOf(err) == respaldo.Refused && strings.Contains(hint, "another snapshot name")
			case strings.Contains(strings.ToLower(line), "insufficient free space"):
				seen["room"] = errors.Is(err, ErrNoRoom) && strings.Contains(hint, "vgextend")
			case strings.Contains(line, "filesystem in use"):
				seen["busy"] = respaldo.KindOf(err) == respaldo.Leftovers && strings.Contains(hint, "unmount")
			case strings.Contains(line, "Failed to find logical volume"), strings.HasPrefix(line, "  Volume group \"nope\" not found"):
				seen["gone"] = notFound(err)
			}
		}
		for _, what := range []string{"taken", "room", "busy", "gone"} {
			if !seen[what] {
				t.Errorf("%s: %s is not told", name, what)
			}
		}
	}
	_, err := (&System{Run: failing{out: `{"report":[{"lv":[]}],"log":[
		{"log_seq_num":"1","log_type":"error","log_context":"processing","log_object_type":"lv","log_object_name":"nope","log_object_group":"vg","log_message":"Failed to find logical volume \"vg/nope\"","log_errno":"-1","log_ret_code":"0"},
		{"log_seq_num":"2","log_type":"status","log_context":"processing","log_object_type":"lv","log_object_name":"nope","log_object_group":"vg","log_message":"failure","log_errno":"-1","log_ret_code":"5"}]}`,
		err: &run.ExitError{Cmd: "lvs", Exit: 5}}}).lvs(t.Context(), "vg/nope")
	if !notFound(err) {
		t.Errorf("an error that 2.03.31 writes into its report: %v", err)
	}
	_, err = (run.Local{}).Run(t.Context(), run.Cmd{Argv: []string{"no-such-lvm"}})
	if hints := respaldo.HintsOf(lvmError(respaldo.Failed, "x", err)); len(hints) != 1 || !strings.Contains(hints[0], "lvm2") {
		t.Errorf("LVM is not installed: %q", hints)
	}
}

func TestRefusedVolumes(t *testing.T) {
	good := lvRow{VG: "vg", VGAttr: "wz--n-", LV: "data", UUID: "u", Attr: "-wi-ao----", Layout: "linear", Role: "public"}
	for name, change := range map[string]func(*lvRow){
		"":             func(*lvRow) {},
		" striped":     func(r *lvRow) { r.Layout = "striped" },
		" raid1":       func(r *lvRow) { r.Attr, r.Layout = "rwi-aor---", "raid,raid1" },
		" cache":       func(r *lvRow) { r.Attr, r.Layout = "Cwi-aoC---", "cache" },
		" shared":      func(r *lvRow) { r.VGAttr = "wz--ns" },
		"mirror":       func(r *lvRow) { r.Attr, r.Layout = "mwi-aom---", "mirror" },
		"vdo":          func(r *lvRow) { r.Attr, r.Layout = "vwi-aov---", "vdo" },
		"merging":      func(r *lvRow) { r.Attr = "Owi-aos---" },
		"read-only":    func(r *lvRow) { r.VGAttr = "rz--n-" },
		"exported":     func(r *lvRow) { r.VGAttr = "wzx-n-" },
		"disk missing": func(r *lvRow) { r.VGAttr = "wz-pn-" },
		"clustered":    func(r *lvRow) { r.VGAttr = "wz--nc" },
	} {
		row := good
		change(&row)
		err := refuseLV(row)
		if fine := name == "" || name[0] == ' '; fine != (err == nil) {
			t.Errorf("%q: %v", name, err)
		} else if !fine && (!strings.Contains(err.Error(), name) || len(respaldo.HintsOf(err)) == 0) {
			t.Errorf("%q is refused by %q, hints %q", name, err, respaldo.HintsOf(err))
		}
	}
	for _, pool := range []lvRow{{UUID: "u", LV: "pool", Data: "85.00", Metadata: "10.00"}, {UUID: "u", LV: "pool", Data: "10.00", Metadata: "75.01"}} {
		if err := refusePool("vg", pool, Request{PoolData: 0.9, PoolMetadata: 0.9}); err != nil {
			t.Errorf("a pool below the limits that were set: %v", err)
		}
		if err := refusePool("vg", pool, Request{}); !errors.Is(err, ErrNoRoom) || len(respaldo.HintsOf(err)) != 1 || !strings.Contains(err.Error(), "vg/pool") {
			t.Errorf("a full pool: %v", err)
		}
	}
}

func TestCOWSize(t *testing.T) {
	const MiB, GiB = int64(1) << 20, int64(1) << 30
	row := func(origin, free int64) lvRow {
		n := func(n int64) string { return strconv.FormatInt(n, 10) }
		return lvRow{VG: "vg", LV: "data", Size: n(origin), VGFree: n(free), ExtentSize: n(4 * MiB)}
	}
	for _, c := range []struct {
		name                string
		origin, free, asked int64
		want                int64 // 0: no room
	}{
		{"a quarter", 100 * GiB, 500 * GiB, 0, 25 * GiB},
		{"at least 1 GiB", 2 * GiB, 500 * GiB, 0, GiB},
		{"never more than can be used", 100 * MiB, 500 * GiB, 0, 104 * MiB},
		{"what there is", 100 * GiB, 10 * GiB, 0, 10 * GiB},
		{"too little", 100 * GiB, GiB - 4*MiB, 0, 0},
		{"nothing", 100 * GiB, 0, 0, 0},
		{"asked for", 100 * GiB, 500 * GiB, 3*GiB + 1, 3*GiB + 4*MiB},
		{"asked for little", 100 * GiB, 500 * GiB, 1, 4 * MiB},
		{"asked for too much", 100 * GiB, 2 * GiB, 3 * GiB, 0},
		{"asked for more than can be used", 100 * MiB, 500 * GiB, 10 * GiB, 104 * MiB},
	} {
		got, err := cowSize(row(c.origin, c.free), c.asked)
		if got != c.want || (err != nil) != (c.want == 0) || err != nil && (!errors.Is(err, ErrNoRoom) || len(respaldo.HintsOf(err)) != 1) {
			t.Errorf("%s: %d, %v; not %d", c.name, got, err, c.want)
		}
	}
}
