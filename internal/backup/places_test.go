package backup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// origin is a layout as a real server has it, in a directory of the test's.
func origin(t *testing.T) (root string, covers []Cover) {
	t.Helper()
	root = t.TempDir()
	for path, content := range map[string]string{
		"data/ibdata1":                  "system tablespace",
		"data/shop/t.ibd":               "table",
		"data/shop/far.isl":             root + "/far/shop/far.ibd",
		"far/shop/far.ibd":              "far table",
		"redo/ib_logfile0":              "redo",
		"binlog/bin.000001":             "events",
		"etc/my.cnf":                    "[mysqld]",
		"etc/more/my.cnf":               "[mysqld]",
		"stranger/not-ours":             "somebody else's",
		"data/relay-log.index":          "./relay.000001\n",
		"data/shop/opaque.index":        "a\x00b " + root + "/far",
		"binlog/bin.index":              root + "/binlog/bin.000001\n",
		"archive/linked-database/a.ibd": "linked",
		"shopdb/a.ibd":                  "linked relatively",
		"archive/shop_v3/a.ibd":         "linked over another link",
		"victim":                        "untouched",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"data/linked":         root + "/archive/linked-database",
		"data/shop/elsewhere": root + "/stranger/not-ours",
		"data/shop/near":      "t.ibd",
		"data/shop/up":        "../linked",
		"data/relative":       "../shopdb",
		"data/indirect":       root + "/archive/current",
		"archive/current":     root + "/archive/shop_v3",
		"data/shop/table.MYD": "../../far/shop/table.MYD",

		// A name that a careless program might write to.
		"data/shop/far.isl.respaldo": root + "/victim",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	place := func(role respaldo.Role, path string, from Source) {
		path = filepath.Join(root, path)
		covers = append(covers, Cover{Place: respaldo.Place{Role: role, Path: path, Real: path}, From: from})
	}
	place(respaldo.DataRole, "data", FromSnapshot)
	place(respaldo.RedoRole, "redo", FromSnapshot)
	place(respaldo.BinlogRole, "binlog", FromTail)
	place(respaldo.TablespaceRole, "far/shop", FromSnapshot)
	place(respaldo.DatabaseRole, "archive/linked-database", FromSnapshot)
	for name, real := range map[string]string{"relative": "shopdb", "indirect": "archive/shop_v3"} {
		covers = append(covers, Cover{Place: respaldo.Place{Role: respaldo.DatabaseRole, Path: filepath.Join(root, "data", name), Real: filepath.Join(root, real)}, From: FromSnapshot})
	}
	place(respaldo.OptionFileRole, "etc/my.cnf", FromLive)
	place(respaldo.OptionFileRole, "etc/more/my.cnf", FromLive)
	place(respaldo.RelayLogRole, "relay", NotNeeded)
	covers = append(covers, Cover{Place: respaldo.Place{Role: respaldo.UndoRole, Path: root + "/data", Real: root + "/data", Inside: true}, From: FromSnapshot})
	return root, covers
}

func TestEveryPlaceHasItsOwnNameInABackup(t *testing.T) {
	root, covers := origin(t)
	got := map[string]string{}
	for _, p := range storedPlaces(covers) {
		if other, taken := got[p.Stored]; taken && p.Stored != "" {
			t.Errorf("%s and %s are both stored as %q", other, p.Path, p.Stored)
		}
		got[p.Stored] = strings.TrimPrefix(p.Path, root)
	}
	for stored, path := range map[string]string{"data": "/data", "redo": "/redo", "option-file/my.cnf": "/etc/my.cnf", "option-file-2/my.cnf": "/etc/more/my.cnf"} {
		if got[stored] != path {
			t.Errorf("%q is %q, not %q", stored, got[stored], path)
		}
	}
}

// A server started on what was restored must find its own files by every path that the
// files themselves carry, and none of the origin's.
func TestRelocate(t *testing.T) {
	root, covers := origin(t)
	layout := respaldo.Layout{DataDir: root + "/data", Places: storedPlaces(covers)}
	to := filepath.Join(t.TempDir(), "mysql")
	where, err := targets(respaldo.Manifest{Layout: layout}, RestoreRequest{To: to, Places: map[string]string{"redo": to + "-redo"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range layout.Places {
		if target, ok := placeIn(where, p); ok {
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := copyTree(context.Background(), p.Real, target); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := relocate(layout, where); err != nil {
		t.Fatal(err)
	}
	link := func(name string) string { got, _ := os.Readlink(filepath.Join(to, name)); return got }
	text := func(path string) string { got, _ := os.ReadFile(path); return string(got) }
	for _, c := range []struct{ what, got, want string }{
		{"the link of a database", link("linked"), to + ".more/database-link"},
		{"a link to somebody else's file", link("shop/elsewhere"), root + "/stranger/not-ours"},
		{"a relative link", link("shop/near"), "t.ibd"},
		{"a relative link inside the data directory", link("shop/up"), "../linked"},
		{"a relative link of a database", link("relative"), to + ".more/" + stored(layout, "relative")},
		{"a link of a database over another link", link("indirect"), to + ".more/" + stored(layout, "indirect")},
		{"a relative link of a table", link("shop/table.MYD"), to + ".more/tablespace/table.MYD"},
		{"a file that a link leads to", text(root + "/victim"), "untouched"},
		{"an .isl file", text(to + "/shop/far.isl"), to + ".more/tablespace/far.ibd"},
		{"the binlog index", text(to + ".more/binlog/bin.index"), to + ".more/binlog/bin.000001\n"},
		{"a relative index", text(to + "/relay-log.index"), "./relay.000001\n"},
		{"a file that is no list of paths", text(to + "/shop/opaque.index"), "a\x00b " + root + "/far"},
	} {
		if c.got != c.want {
			t.Errorf("%s says %q, not %q", c.what, c.got, c.want)
		}
	}
	if info, err := os.Stat(to + "/shop/far.isl"); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("a rewritten file lost its mode: %v %v", info.Mode(), err)
	}
	options := strings.Join(optionsFor(respaldo.Manifest{Layout: layout, BinlogOn: true, Variables: map[string]string{"log_bin_basename": root + "/binlog/bin", "innodb_log_group_home_dir": root + "/redo/"}}, where), "\n")
	for _, line := range []string{"datadir=" + to, "innodb_log_group_home_dir=" + to + "-redo", "log_bin=" + to + ".more/binlog/bin"} {
		if !strings.Contains(options, line) {
			t.Errorf("the options lack %s:\n%s", line, options)
		}
	}
}

// stored is the name in a backup of a link in the data directory.
func stored(layout respaldo.Layout, name string) string {
	for _, p := range layout.Places {
		if p.Path == filepath.Join(layout.DataDir, name) {
			return p.Stored
		}
	}
	return ""
}

func TestTargetsThatWouldMixAreRefused(t *testing.T) {
	_, covers := origin(t)
	m := respaldo.Manifest{Layout: respaldo.Layout{Places: storedPlaces(covers)}}
	for name, places := range map[string]map[string]string{
		"inside the data directory": {"redo": "/srv/new/redo"},
		"the same directory":        {"redo": "/srv/new"},
		"around the data directory": {"redo": "/srv"},
		"a place that is not there": {"keyring": "/srv/keys"},
		"the data directory twice":  {"data": "/srv/other"},
	} {
		if _, err := targets(m, RestoreRequest{To: "/srv/new", Places: places}); respaldo.KindOf(err) != respaldo.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A directory in which a process has a file open is refused, by whatever name and link.
func TestDirectoryInUseIsRefused(t *testing.T) {
	root, _ := origin(t)
	if err := refuseInUse(root + "/data"); err != nil {
		t.Fatalf("nobody uses it: %v", err)
	}
	if err := refuseInUse(root + "/not-there"); err != nil {
		t.Fatal(err)
	}
	user := holdOpen(t, root+"/data/ibdata1")
	other := filepath.Join(t.TempDir(), "another-name")
	if err := os.Symlink(root+"/data", other); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root + "/data", root, other} {
		err := refuseInUse(dir)
		if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), user) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestTimelineFollowsTheServersHistory(t *testing.T) {
	at := func(file string, position uint64) respaldo.Coordinates {
		return respaldo.Coordinates{File: file, Position: position}
	}
	h := history{Timeline: "first", ServerUUID: "u", Coordinates: at("bin.000009", 500)}
	for _, c := range []struct {
		name, uuid string
		now        respaldo.Coordinates
		same       bool
	}{
		{"nothing happened", "u", at("bin.000009", 500), true},
		{"it moved on", "u", at("bin.000009", 501), true},
		{"the next file", "u", at("bin.000010", 4), true},
		{"a longer number", "u", at("bin.1000000", 4), true},
		{"it went back", "u", at("bin.000009", 499), false},
		{"RESET MASTER", "u", at("bin.000001", 4), false},
		{"another server", "v", at("bin.000010", 4), false},
		{"the binlog was switched off", "u", at("", 0), false},
	} {
		if got := h.timeline(c.uuid, c.now); (got == "first") != c.same {
			t.Errorf("%s: timeline %q", c.name, got)
		}
	}
	if a, b := (history{}).timeline("u", at("bin.1", 4)), (history{}).timeline("u", at("bin.1", 4)); a == b || a == "" {
		t.Errorf("new timelines are %q and %q", a, b)
	}
}
