package backup

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

func TestServeChoosesAPort(t *testing.T) {
	r := ServeRequest{}
	if err := r.settle(); err != nil || r.Bind != "127.0.0.1" || r.Port == 0 {
		t.Errorf("nothing was asked for: %+v, %v", r, err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r = ServeRequest{Port: taken.Addr().(*net.TCPAddr).Port}
	if err := r.settle(); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "--port") {
		t.Errorf("a port that is taken: %v", err)
	}
	for _, r := range []ServeRequest{{Bind: "localhost"}, {Bind: "300.1.1.1"}} {
		if err := r.settle(); respaldo.KindOf(err) != respaldo.Usage {
			t.Errorf("%+v: %v", r, err)
		}
	}
	r = ServeRequest{Socket: t.TempDir()}
	if err := r.settle(); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("a socket where something is: %v", err)
	}
}

func TestWhichIsStopped(t *testing.T) {
	one, two := Served{Name: "serve-1"}, Served{Name: "serve-2"}
	for _, c := range []struct {
		list []Served
		name string
		all  bool
		kind respaldo.Kind
		n    int
	}{
		{list: []Served{one}, n: 1},
		{list: []Served{one, two}, kind: respaldo.Usage},
		{list: []Served{one, two}, all: true, n: 2},
		{list: []Served{one, two}, name: "serve-2", n: 1},
		{list: []Served{one}, name: "serve-3", kind: respaldo.NotFound},
		{kind: respaldo.NotFound},
		{all: true},
	} {
		got, err := ChooseServed(c.list, c.name, c.all)
		if len(got) != c.n || (err != nil) != (c.kind != 0) || err != nil && respaldo.KindOf(err) != c.kind {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
		if c.name != "" && c.n == 1 && got[0].Name != c.name {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// What is served is known to others for as long as it lives, and so is what it uses.
func TestServedIsKnown(t *testing.T) {
	s := &Site{Server: "shop", StateDir: t.TempDir(), RunDir: t.TempDir()}
	side, err := ledger.OpenSide(s.StateDir, "shop", "serve", s.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	const snapshot = "respaldo-shop-20261123T030000-9f3a01"
	if _, err := side.Intend(kindUse, map[string]string{"name": snapshot}); err != nil {
		t.Fatal(err)
	}
	noted, err := side.Intend(kindServed, nil)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.Served(); err != nil || len(list) != 0 {
		t.Errorf("not ready yet: %v, %v", list, err)
	}
	want := Served{Name: sideName(side.Server()), Port: 3307, Since: time.Now().Round(0)}
	if err := noteServed(noted, want); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Served(); err != nil || len(list) != 1 || list[0].Name != want.Name || list[0].Port != 3307 || !list[0].Since.Equal(want.Since) {
		t.Errorf("served: %+v, %v", list, err)
	}
	op := &operation{Site: s, scope: s.Server}
	err = op.refuseUsed(respaldo.Snapshot{Name: snapshot})
	if respaldo.KindOf(err) != respaldo.Busy || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "respaldo stop "+want.Name) {
		t.Errorf("a snapshot in use: %v", err)
	}
	if err := op.refuseUsed(respaldo.Snapshot{Name: "respaldo-shop-other"}); err != nil {
		t.Errorf("one that nobody uses: %v", err)
	}
	if err := side.Close(); err != nil { // as after a crash: nothing was released
		t.Fatal(err)
	}
	if list, err := s.Served(); err != nil || len(list) != 0 {
		t.Errorf("it is dead: %v, %v", list, err)
	}
	if err := op.refuseUsed(respaldo.Snapshot{Name: snapshot}); err != nil {
		t.Errorf("used by the dead: %v", err)
	}
}

// keptAt is a kept snapshot as far as retention looks at it.
type keptAt struct {
	volume.Snapshot
	described respaldo.Snapshot
}

func (k keptAt) Describe() respaldo.Snapshot { return k.described }

func TestSnapshotRetention(t *testing.T) {
	now := time.Now().Truncate(time.Hour)
	var list []volume.Snapshot
	add := func(name string, hoursAgo int, d respaldo.Snapshot) {
		d.Name, d.Created = name, now.Add(-time.Duration(hoursAgo)*time.Hour)
		list = append(list, keptAt{described: d})
	}
	add("old", 5, respaldo.Snapshot{Kept: true})
	add("with a time of its own", 4, respaldo.Snapshot{Kept: true, Expires: now.Add(24 * time.Hour)})
	add("whose time has passed", 3, respaldo.Snapshot{Kept: true, Expires: now.Add(-time.Hour)})
	add("of an operation", 2, respaldo.Snapshot{})
	add("new", 1, respaldo.Snapshot{Kept: true})
	add("newest", 0, respaldo.Snapshot{Kept: true})
	for _, c := range []struct {
		policy repo.Policy
		goes   []string
	}{
		{repo.Policy{}, []string{"whose time has passed"}},
		{repo.Policy{Hourly: 2}, []string{"whose time has passed", "old"}},
		{repo.Policy{Last: 1}, []string{"whose time has passed", "old", "new"}},
	} {
		op := &operation{Site: &Site{KeepSnapshots: c.policy}}
		got := op.unwanted(list)
		for _, name := range c.goes {
			if got[name] == "" {
				t.Errorf("%+v: %s stays", c.policy, name)
			}
		}
		if len(got) != len(c.goes) {
			t.Errorf("%+v: %v go", c.policy, got)
		}
	}
}
