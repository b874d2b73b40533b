package volume

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// lvmTag is what lvm(8) allows in a tag.
var lvmTag = regexp.MustCompile(`^[A-Za-z0-9_+.][A-Za-z0-9_+.\-/=!:#&]*$`)

func TestTagsSurviveTheRoundTrip(t *testing.T) {
	created := time.Date(2026, 11, 23, 14, 36, 0, 123456000, time.UTC)
	for _, d := range []respaldo.Snapshot{
		{},
		{Server: "shop", Run: "20261123T143600-9f3a", Volume: "vg/lv", Created: created},
		{Server: "a,b=c #23 {ä}\n", Run: "-", Volume: "my-vg/da_ta+1.x", Created: created, Kept: true, Expires: created.AddDate(1, 0, 0)},
		{Server: "#", Run: "#2", Volume: "##41"},
	} {
		checkRoundTrip(t, d)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := make([]byte, r.IntN(12))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		checkRoundTrip(t, respaldo.Snapshot{Server: string(b), Kept: r.IntN(2) == 0})
	}
}

func checkRoundTrip(t *testing.T, d respaldo.Snapshot) {
	t.Helper()
	tags := encodeTags(d)
	for _, tag := range tags {
		if !lvmTag.MatchString(tag) {
			t.Errorf("LVM would refuse the tag %q", tag)
		}
	}
	// lvs prints them with commas between.
	row := lvRow{Tags: strings.Join(tags, ",")}
	got, ours := decodeTags(row.tags())
	if got != d || !ours {
		t.Errorf("%+v became %+v (ours: %v) by way of %q", d, got, ours, tags)
	}
}

func TestWhoseTags(t *testing.T) {
	for tags, want := range map[string]bool{
		"":                             false,
		"backup,prod":                  false,
		"respaldo":                     true,
		"prod,respaldo,x":              true,
		"respaldo2,respaldo.server=db": false,
	} {
		if _, ours := decodeTags(lvRow{Tags: tags}.tags()); ours != want {
			t.Errorf("tags %q are ours: %v", tags, ours)
		}
	}
	d, ours := decodeTags([]string{"respaldo", "respaldo.created=yesterday", "respaldo.server=db", "respaldo.new=1"})
	if !ours || d.Server != "db" || !d.Created.IsZero() {
		t.Errorf("tags of a later release, or damaged ones, are read as %+v", d)
	}
}

func TestNames(t *testing.T) {
	at := time.Date(2026, 11, 23, 14, 36, 0, 0, time.UTC)
	seen := map[string]bool{}
	for _, server := range []string{"shop", "", "snapshot", "pvmove", "a b/c,ä", strings.Repeat("-", 200), "x_tdata"} {
		for range 20 {
			name := NewName(server, at)
			if seen[name] {
				t.Errorf("%q came twice", name)
			}
			seen[name] = true
			if err := checkName(name, "my-group"); err != nil && server != "x_tdata" {
				t.Errorf("our own name is refused: %v", err)
			}
		}
	}
	for _, bad := range []string{"", ".", "..", "-x", "a b", "a/b", "snapshot1", "pvmove0", "x_tmeta", "ä", strings.Repeat("x", 128), strings.Repeat("-x", 50)} {
		if err := checkName(bad, "vg"); respaldo.KindOf(err) != respaldo.Usage || err == nil || len(respaldo.HintsOf(err)) == 0 {
			t.Errorf("name %q: %v", bad, err)
		}
	}
	for _, n := range []struct{ vg, lv, dm string }{{"vg", "lv", "vg-lv"}, {"my-vg", "da-ta", "my--vg-da--ta"}, {"a", "-b", "a---b"}, {"a--", "b", "a-----b"}} {
		if got := dmName(n.vg, n.lv); got != n.dm {
			t.Errorf("device of %s/%s: %q", n.vg, n.lv, got)
		}
		if n.lv[0] == '-' || n.vg[len(n.vg)-1] == '-' {
			continue // LVM itself takes these apart in one way only: no name begins with a dash
		}
		if vg, lv, ok := splitDMName(n.dm); !ok || vg != n.vg || lv != n.lv {
			t.Errorf("%q is taken apart as %q and %q", n.dm, vg, lv)
		}
	}
	if _, _, ok := splitDMName("luks--root"); ok {
		t.Error("a name without a single dash is taken for a volume's")
	}
}
