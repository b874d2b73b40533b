package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

const testGiB = 1 << 30

// oneGroup is LVM with a group "data" that has some space free and one volume, "root".
type oneGroup struct{ free int64 }

func (g oneGroup) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	switch c.Argv[0] {
	case "vgs":
		return run.Result{Stdout: fmt.Appendf(nil, `{"report":[{"vg":[{"vg_name":"data","vg_free":"%d","vg_tags":""}]}]}`, g.free)}, nil
	case "lvs":
		return run.Result{Stdout: []byte(`{"report":[{"lv":[{"vg_name":"data","lv_name":"root","lv_tags":""}]}]}`)}, nil
	}
	return run.Result{}, fmt.Errorf("ran %v, and a plan changes nothing", c.Argv)
}

func planned(t *testing.T, free int64, r MakeRequest) (Making, error) {
	t.Helper()
	r.Group, r.Server = "data", "main"
	return (&System{Run: oneGroup{free}}).PlanMaking(t.Context(), r)
}

// Whatever the sizes, what is planned fits into the group, something stays free, and the
// data has room.
func TestPlannedSizes(t *testing.T) {
	for _, kind := range []respaldo.VolumeKind{respaldo.LVMThick, respaldo.LVMThin} {
		for _, free := range []int64{4 * testGiB, 100 * testGiB, 20 << 40} {
			for _, r := range []MakeRequest{{Free: -1, Needed: testGiB}, {Free: 0.5, Needed: testGiB}, {Free: -1, Bytes: 2*testGiB + 1, Needed: testGiB}} {
				r.Kind = kind
				m, err := planned(t, free, r)
				if err != nil {
					t.Errorf("%s, %s free, %+v: %v", kind, size(free), r, err)
					continue
				}
				taken := m.Bytes
				if kind == respaldo.LVMThin {
					taken = m.PoolBytes + 2*m.MetadataBytes
					if m.PoolBytes <= m.Bytes || m.PoolBytes%extentBytes != 0 || m.MetadataBytes > 16*testGiB || m.PoolBytes/m.ChunkBytes*64 > m.MetadataBytes {
						t.Errorf("%s free: a pool of %s with %s metadata for a volume of %s", size(free), size(m.PoolBytes), size(m.MetadataBytes), size(m.Bytes))
					}
				}
				if taken+m.FreeBytes != free || float64(m.FreeBytes) < 0.05*float64(m.Bytes) || m.Bytes%extentBytes != 0 || m.Bytes < testGiB || m.Bytes < r.Bytes {
					t.Errorf("%s, %s free, %+v: takes %s for a volume of %s, leaves %s", kind, size(free), r, size(taken), size(m.Bytes), size(m.FreeBytes))
				}
				if r.Free == 0.5 && m.FreeBytes < free/2-2*extentBytes {
					t.Errorf("%s: half was to stay free, %s of %s do", kind, size(m.FreeBytes), size(free))
				}
				if r.Free < 0 && r.Bytes == 0 && free > 50*testGiB && taken > 8*testGiB {
					t.Errorf("%s: takes %s of a group that holds other things, for 1 GiB of data", kind, size(taken))
				}
				if !strings.Contains(strings.Join(m.Reasons, "\n"), size(m.FreeBytes)+" of the volume group stay free") {
					t.Errorf("it does not say how much stays free: %q", m.Reasons)
				}
			}
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		free   int64
		r      MakeRequest
		says   string
		noRoom bool
	}{
		"data too large":   {10 * testGiB, MakeRequest{Free: -1, Kind: respaldo.LVMThick, Needed: 9 * testGiB}, "the server's need 9.0 GiB", true},
		"size too large":   {10 * testGiB, MakeRequest{Free: -1, Kind: respaldo.LVMThick, Bytes: 11 * testGiB}, "10 GiB", true},
		"nothing left":     {10 * testGiB, MakeRequest{Free: -1, Kind: respaldo.LVMThick, Bytes: 10*testGiB - 8<<20}, "8.0 MiB of 10 GiB", true},
		"a pool too large": {10 * testGiB, MakeRequest{Free: -1, Kind: respaldo.LVMThin, Bytes: 9 * testGiB}, "10 GiB", true},
		"a full group":     {0, MakeRequest{Free: -1, Kind: respaldo.LVMThin}, "0 B", true},
		"a name taken":     {10 * testGiB, MakeRequest{Free: -1, Name: "root"}, "data/root already", false},
	} {
		_, err := planned(t, c.free, c.r)
		if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrNoRoom) != c.noRoom || len(respaldo.HintsOf(err)) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := planned(t, 10*testGiB, MakeRequest{Free: -1, Name: "a/b"}); respaldo.KindOf(err) != respaldo.Usage {
		t.Errorf("a name that is none: %v", err)
	}
	_, err := (&System{Run: oneGroup{testGiB}}).PlanMaking(t.Context(), MakeRequest{Group: "other", Free: -1})
	if respaldo.KindOf(err) != respaldo.NotFound || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "data (1.0 GiB free)") {
		t.Errorf("a group that is none: %v", err)
	}
}

// What is undone is what was made, and the commands carry the tag by which it is known.
func TestTasks(t *testing.T) {
	m, err := planned(t, 10*testGiB, MakeRequest{Free: -1, Needed: testGiB})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, task := range (&System{}).Tasks(m) {
		names = append(names, task.Name)
		line := strings.Join(task.Argv, " ")
		if task.Argv[0] == "lvcreate" && !strings.Contains(line, "--addtag respaldo.prepared=main") {
			t.Errorf("nobody will know whose this is: %s", line)
		}
		if slices.Contains(task.Argv, Tag) {
			t.Errorf("a cleanup would take it for a snapshot: %s", line)
		}
	}
	if !slices.Equal(names, []string{"pool", "volume", "mkfs"}) {
		t.Errorf("tasks %q", names)
	}
}
