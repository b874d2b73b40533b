package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/repo"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// dumpSite is a site with one backup, of a server that was shut down.
func dumpSite(t *testing.T) *Site {
	t.Helper()
	root, err := os.MkdirTemp("", "dmp") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	data, folder := root+"/data", root+"/repo"
	m := stoppedServer(t, "mariadb-10.11", data)
	m.ServerID, m.Host = "ours", "db1"
	m.Quiesced.Coordinates = respaldo.Coordinates{File: "binlog.000007", Position: 4711, GTIDSet: "0-1-42"}
	r, err := repo.Create(t.Context(), repo.Config{URL: "file://" + folder}, "password", repo.Options{CacheDir: root + "/cache", Host: "db1"})
	if err != nil {
		t.Fatal(err)
	}
	record(t, r, data, m)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &Site{Server: m.Server, ServerID: m.ServerID, Host: "db1", Program: "1.2.3", StateDir: root + "/state", RunDir: root + "/run", Run: run.Local{}, Report: quiet{},
		Repository: func(ctx context.Context) (*repo.Repo, error) {
			return repo.Open(ctx, repo.Config{URL: "file://" + folder}, "password", repo.Options{CacheDir: root + "/cache", Host: "db1"})
		}}
}

// broken is a dump program that does what the real one does, up to a point.
func broken(t *testing.T, how string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mariadb-dump")
	script := fmt.Sprintf("#!/bin/sh\nreal=%s\ncase \"$*\" in *--version*) exec $real --version;; esac\n%s\n", servers.Binary("mariadb-10.11", "mysqldump"), how)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A dump is whole or not there: whatever happens to the program that makes it, no file looks
// like a dump that is none, on standard output the last line is missing, and the repository
// lists nothing. Everything that it took to make it is gone in any case.
func TestDumpIsWholeOrNotThere(t *testing.T) {
	s := dumpSite(t)
	out := t.TempDir()
	file := out + "/mysql.sql.zst"
	request := DumpRequest{Image: "latest", Databases: []string{"mysql"}, File: file}
	for _, c := range []struct{ name, how, want string }{
		{"killed midway", "$real \"$@\" | head -c 30000; kill -9 $$", "ended by signal 9"},
		{"ends too early and says nothing", "$real \"$@\" | head -c 30000", "not whole"},
	} {
		r := request
		r.Program = broken(t, c.how)
		if _, err := s.Dump(t.Context(), r); respaldo.KindOf(err) != respaldo.Failed || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if left, _ := os.ReadDir(out); len(left) > 0 {
			t.Errorf("%s: %s is left", c.name, left[0].Name())
		}
	}
	r := request
	r.Program = broken(t, "$real \"$@\"; echo 'Error 1317: interrupted' >&2; exit 3")
	r.File = ""
	var text bytes.Buffer
	r.Stdout = &text
	if _, err := s.Dump(t.Context(), r); err == nil || !strings.Contains(err.Error(), "Error 1317") || text.Len() < 100_000 || strings.Contains(text.String(), "Dump completed") {
		t.Errorf("on standard output, %d bytes: %v", text.Len(), err)
	}
	r.Stdout, r.Repository = nil, true
	if _, err := s.Dump(t.Context(), r); err == nil || s.dumps(t) != 0 {
		t.Errorf("in the repository, %d dumps: %v", s.dumps(t), err)
	}
	r.Stdout, r.Repository = brokenPipe{}, false
	if _, err := s.Dump(t.Context(), r); err == nil || !strings.Contains(err.Error(), "standard output") || !errors.Is(err, os.ErrClosed) {
		t.Errorf("when nobody reads it: %v", err)
	}

	done, err := s.Dump(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(file)
	if err != nil || int64(len(packed)) != done.Written || done.Tables < 20 {
		t.Errorf("%+v, but the file has %d bytes: %v", done, len(packed), err)
	}
	reader, _ := zstd.NewReader(nil)
	sql, err := reader.DecodeAll(packed, nil)
	if err != nil || int64(len(sql)) != done.Bytes || !strings.Contains(string(sql[len(sql)-60:]), "-- Dump completed") {
		t.Errorf("%d bytes, %v", len(sql), err)
	}
	for _, line := range []string{"Logical dump of server verified on db1", "by respaldo 1.2.3", "-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.000007', MASTER_LOG_POS=4711;\n", "-- SET GLOBAL gtid_slave_pos='0-1-42';\n"} {
		if !strings.Contains(string(sql), line) {
			t.Errorf("its head lacks %q:\n%.800s", line, sql)
		}
	}
	if _, err := s.Dump(t.Context(), request); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("over a file that exists: %v", err)
	}
	s.mydumps(t)
	for _, dir := range []string{"/state/work", "/run/work", "/run/mounts"} {
		if left, _ := os.ReadDir(filepath.Dir(s.StateDir) + dir); len(left) > 0 {
			t.Errorf("%s is left in %s", left[0].Name(), dir)
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

func (s *Site) dumps(t *testing.T) (n int) {
	t.Helper()
	r, err := s.Repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(t.Context())
	list, err := r.List(t.Context(), s.Server)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if b.Manifest.Dump != nil {
			n++
		}
	}
	return n
}

// mydumps: mydumper's directory appears whole, too, takes the place of an older one only, and
// goes to the repository and back.
func (s *Site) mydumps(t *testing.T) {
	t.Helper()
	path, err := servers.Mydumper(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "dump")
	r := DumpRequest{Image: "latest", Databases: []string{"mysql"}, Tool: "mydumper", Program: path, File: dir}
	done, err := s.Dump(t.Context(), r)
	if err != nil || done.Tables < 20 || done.File != dir || !exists(dir+"/metadata") || exists(dir+partialSuffix) {
		t.Fatalf("%+v, %v", done, err)
	}
	r.Force = true
	if err := os.WriteFile(dir+"/of-the-older-one", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Dump(t.Context(), r); err != nil || !exists(dir+"/metadata") || exists(dir+"/of-the-older-one") || exists(dir+partialSuffix) {
		t.Errorf("in the place of an older one: %v", err)
	}
	if os.Remove(dir+"/respaldo.txt") != nil {
		t.Error("it does not say what it is of")
	}
	if _, err := s.Dump(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused || !exists(dir+"/metadata") {
		t.Errorf("over somebody's directory: %v", err)
	}
	r.File, r.Repository = "", true
	done, err = s.Dump(t.Context(), r)
	if err != nil || s.dumps(t) != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	back := filepath.Join(t.TempDir(), "back")
	restored, err := s.Restore(t.Context(), RestoreRequest{ID: done.Backup.ID, To: back})
	if err != nil || len(restored.DumpFiles) < 20 || !exists(back+"/metadata") || !exists(back+"/respaldo.txt") {
		t.Errorf("%+v, %v", restored, err)
	}
	r.Repository, r.Tool, r.File = false, "", dir+".sql"
	again := r
	again.Image = done.Backup.ID
	if _, err := s.Dump(t.Context(), again); respaldo.KindOf(err) != respaldo.Usage || !strings.Contains(err.Error(), "is a dump") {
		t.Errorf("a dump of a dump: %v", err)
	}
	if _, err := s.Dump(t.Context(), r); respaldo.KindOf(err) != respaldo.Usage || exists(dir+".sql") {
		t.Errorf("mydumper, and a file: %v", err)
	}
}

// What contradicts itself is refused before anything is touched.
func TestDumpRequestsAreChecked(t *testing.T) {
	for _, c := range []struct {
		request DumpRequest
		want    string
	}{
		{DumpRequest{Databases: []string{"a"}, Tables: []string{"a.b"}}, "both"},
		{DumpRequest{Tables: []string{"orders"}}, "DATABASE.TABLE"},
		{DumpRequest{Tool: "pg_dump"}, "pg_dump"},
		{DumpRequest{File: "x.gz", Compress: Zstd}, "gzip"},
		{DumpRequest{File: "x", Compress: "lzma"}, "lzma"},
		{DumpRequest{Repository: true, Compress: Zstd}, "compresses by itself"},
		{DumpRequest{Tool: "mydumper", Stdout: brokenPipe{}}, "directory"},
	} {
		if _, err := (&Site{}).Dump(t.Context(), c.request); respaldo.KindOf(err) != respaldo.Usage || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.request, err)
		}
	}
	for name, want := range map[string]Compression{"a.sql": "", "a.sql.zst": Zstd, "a.gz": Gzip} {
		r := DumpRequest{File: name}
		if _, err := r.settle(); err != nil || r.Compress != want {
			t.Errorf("%s is compressed by %q, %v", name, r.Compress, err)
		}
	}
	r := DumpRequest{File: filepath.Join(t.TempDir(), "dir")}
	if err := os.Mkdir(r.File, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := mayReplace(r.File, r); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("in place of a directory: %v", err)
	}
	r.Tool, r.Force = "mydumper", true // said before hours of dumping, not after
	if err := mayReplace(r.File, r); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("in place of a directory that is no dump: %v", err)
	}
	if err := mayReplace(r.File+"/missing/file", r); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("into a directory that is missing: %v", err)
	}
}
