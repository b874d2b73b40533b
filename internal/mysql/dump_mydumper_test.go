package mysql

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// What mydumper writes is loaded by myloader, and its metadata have the image's coordinates.
func TestMydumperDumps(t *testing.T) {
	t.Parallel()
	o := richOrigin(t, "mariadb-10.11")
	path, err := servers.Mydumper(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := o.clean.manifest
	tool, err := FindDumpTool(t.Context(), DumpToolRequest{Server: m.Version, Tool: ToolMydumper, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	at := respaldo.Coordinates{File: "binlog.000777", Position: 4711, GTIDSet: "0-1-42"}
	r := o.clean.request(t)
	r.Manifest.Quiesced.Coordinates = at
	i := startForDump(t, r)
	dir := filepath.Join(o.dir, "dump")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	scope := DumpScope{Databases: []string{"shop"}}
	if err := i.Mydump(t.Context(), tool, scope, dir, at, DumpHead(r.Manifest, "now", "1.0", "")); err != nil {
		t.Fatal(err)
	}
	metadata, err := os.ReadFile(filepath.Join(dir, "metadata"))
	if err != nil || !strings.Contains(string(metadata), "binlog.000777") || !strings.Contains(string(metadata), "4711") || !strings.Contains(string(metadata), "0-1-42") {
		t.Errorf("%v\n%s", err, metadata)
	}
	if head, err := os.ReadFile(filepath.Join(dir, DumpCoordinates)); err != nil || !strings.Contains(string(head), "binlog.000777") {
		t.Errorf("%v\n%s", err, head)
	}
	target := emptyServer(t, o)
	out, err := exec.Command(filepath.Join(filepath.Dir(path), "myloader"), "--defaults-file=/dev/null", "--socket="+target.Spec().Socket, "--user=root", "--directory="+dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	db := target.Open()
	defer db.Close()
	for _, table := range []string{"shop.orders", "shop.old", "shop.aria"} {
		var name, sum string
		if err := db.QueryRow("CHECKSUM TABLE "+table).Scan(&name, &sum); err != nil || !strings.Contains(o.clean.rows, sum+" \n") {
			t.Errorf("%s has checksum %s, %v", table, sum, err)
		}
	}
	scope = DumpScope{Tables: []DumpTable{{"shop", "no_such_table"}}}
	stopInstance(t, i)
	if err := i.Mydump(t.Context(), tool, scope, t.TempDir(), at, ""); err == nil {
		t.Error("it dumps a server that is gone")
	}
}
