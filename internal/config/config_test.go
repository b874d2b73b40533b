package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
)

const samples = "../../docs/samples"

// write puts a configuration into a file of its own.
func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "respaldo.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, path string) *Config {
	t.Helper()
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parsed(t *testing.T, path string) *Config {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return load(t, write(t, string(text)))
}

func TestSamplesAreValid(t *testing.T) {
	files, err := filepath.Glob(samples + "/*.toml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { parsed(t, file) })
	}
}

func TestInvalidFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/invalid/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	expect := regexp.MustCompile(`(?m)^# (error|hint): (.*)$`)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			path := write(t, string(text))
			_, err = Load(path)
			if respaldo.KindOf(err) != respaldo.Usage {
				t.Fatalf("error: %v", err)
			}
			message := strings.ReplaceAll(err.Error(), path, "FILE")
			hints := strings.Join(respaldo.HintsOf(err), "; ")
			said := 0
			for _, m := range expect.FindAllStringSubmatch(string(text), -1) {
				said++
				if m[1] == "error" && !strings.HasPrefix(message, m[2]) {
					t.Errorf("it says  %s\nexpected %s", message, m[2])
				}
				if m[1] == "hint" && hints != m[2] {
					t.Errorf("it hints %s\nexpected %s", hints, m[2])
				}
			}
			if said == 0 {
				t.Error("the file does not say what is expected")
			}
			t.Log(message)
		})
	}
}

// Every key is shown in the full sample and explained in the documentation.
func TestEveryKeyIsDocumented(t *testing.T) {
	sample, err := os.ReadFile(samples + "/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range []reflect.Type{reflect.TypeFor[document](), reflect.TypeFor[repositorySection](),
		reflect.TypeFor[Keep](), reflect.TypeFor[thresholdSection](), reflect.TypeFor[hookSection](), reflect.TypeFor[serverSection]()} {
		for key, value := range keysOf(section) {
			assigned := regexp.MustCompile(`(?m)^` + key + ` = `)
			switch value.Kind() {
			case reflect.Pointer, reflect.Struct, reflect.Map:
				assigned = regexp.MustCompile(`(?m)^\[([a-z.]+\.)?` + key + `[].]`)
			}
			if !assigned.Match(sample) {
				t.Errorf("full.toml does not show %s", key)
			}
			if !strings.Contains(string(docs), "`"+key+"`") && !strings.Contains(string(docs), "["+key) {
				t.Errorf("configuration.md does not explain %s", key)
			}
		}
	}
}

// What full.toml calls a default is one.
func TestFullSampleShowsTheDefaults(t *testing.T) {
	full, none := parsed(t, samples+"/full.toml"), load(t, write(t, "format = 1\n"))
	a, _ := full.Server("main")
	b, _ := none.Server("main")
	if a.Lock != b.Lock || a.MaxLock != b.MaxLock || a.Patience != b.Patience || a.KillBlockers != b.KillBlockers || a.SnapshotSize != b.SnapshotSize || a.Prove != b.Prove || a.MaxAge != b.MaxAge || a.Hooks.Timeout != b.Hooks.Timeout || full.Thresholds != none.Thresholds {
		t.Errorf("full.toml: %+v %+v\ndefaults:  %+v %+v", a, full.Thresholds, b, none.Thresholds)
	}
	if os.Geteuid() == 0 && (full.StateDir != none.StateDir || full.RunDir != none.RunDir || full.CacheDir != none.CacheDir) {
		t.Errorf("full.toml: %+v\ndefaults: %+v", full, none)
	}
	if b.MaxLock != time.Second || b.Patience != time.Minute || b.KillBlockers || b.Lock != respaldo.LockAuto || b.Prove != respaldo.ProveQuick || b.Keep != (Keep{}) || b.Mysqld != nil {
		t.Errorf("defaults: %+v", b)
	}
}

func TestSeveralServers(t *testing.T) {
	c := parsed(t, samples+"/several-servers.toml")
	if !slices.Equal(c.Names(), []string{"reports", "shop"}) {
		t.Errorf("servers: %v", c.Names())
	}
	if _, err := c.Server(""); respaldo.KindOf(err) != respaldo.Usage || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "--server shop") {
		t.Errorf("without --server: %v, %v", err, respaldo.HintsOf(err))
	}
	if _, err := c.Server("shpo"); respaldo.KindOf(err) != respaldo.NotFound {
		t.Errorf("an unknown server: %v", err)
	}
	shop, err := c.Server("shop")
	if err != nil {
		t.Fatal(err)
	}
	if shop.MaxLock != 500*time.Millisecond || shop.Keep != (Keep{Last: 3, Daily: 7, Weekly: 5, Monthly: 12}) || shop.Repository != c.Repository {
		t.Errorf("shop: %+v", shop)
	}
	reports, err := c.Server("reports")
	if err != nil {
		t.Fatal(err)
	}
	if reports.Prove != respaldo.ProveFull || reports.Keep != (Keep{Last: 2}) || !strings.HasPrefix(reports.Repository.URL, "s3://reports-backup/") {
		t.Errorf("reports: %+v", reports)
	}
}

func TestWhichFileIsRead(t *testing.T) {
	byFlag, byEnv := write(t, "format = 1\n[server.flag]\n"), write(t, "format = 1\n[server.env]\n")
	t.Setenv("RESPALDO_CONFIG", byEnv)
	if c := load(t, byFlag); c.Names()[0] != "flag" || c.Path != byFlag {
		t.Errorf("--config: %v of %s", c.Names(), c.Path)
	}
	if c := load(t, ""); c.Names()[0] != "env" || c.Path != byEnv {
		t.Errorf("RESPALDO_CONFIG: %v of %s", c.Names(), c.Path)
	}
	t.Setenv("RESPALDO_CONFIG", filepath.Join(t.TempDir(), "missing"))
	if _, err := Load(""); respaldo.KindOf(err) != respaldo.Usage || len(respaldo.HintsOf(err)) == 0 {
		t.Errorf("a missing file that was asked for: %v", err)
	}
	if c, err := parse("", nil); err != nil || !slices.Equal(c.Names(), []string{DefaultServer}) {
		t.Errorf("no file at all: %v", err)
	}
}

func TestConfigurationThatOthersMayWrite(t *testing.T) {
	path := write(t, "format = 1\n")
	for mode, refused := range map[os.FileMode]bool{0o600: false, 0o644: false, 0o664: true, 0o646: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if (err != nil) != refused || refused && (respaldo.KindOf(err) != respaldo.Usage || !strings.Contains(respaldo.HintsOf(err)[0], "chmod go-w "+path)) {
			t.Errorf("mode %o: %v, %q", mode, err, respaldo.HintsOf(err))
		}
	}
}

func TestPassword(t *testing.T) {
	t.Setenv("RESPALDO_PASSWORD", "")
	t.Setenv("RESPALDO_PASSWORD_FILE", "")
	file := filepath.Join(t.TempDir(), "password")
	put := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	r := Repository{PasswordFile: file}
	fails := func(what string, r Repository) {
		t.Helper()
		if p, err := r.Password(); respaldo.KindOf(err) != respaldo.Usage || len(respaldo.HintsOf(err)) == 0 || p != "" {
			t.Errorf("%s: %q, %v", what, p, err)
		}
	}
	fails("no password anywhere", Repository{})
	fails("a missing file", r)
	put("", 0o600)
	fails("an empty file", r)
	put("secret\n", 0o644)
	fails("a file that everybody can read", r)
	put("secret\n", 0o620)
	fails("a file that the group can change", r)

	put(" in the file \n", 0o600)
	if p, err := r.Password(); p != " in the file " || err != nil {
		t.Errorf("%q, %v", p, err)
	}
	put("secret\n", 0o640)
	if p, err := r.Password(); p != "secret" || err != nil {
		t.Errorf("readable by the group: %q, %v", p, err)
	}
	t.Setenv("RESPALDO_PASSWORD_FILE", file)
	if p, err := (Repository{PasswordFile: "/missing"}).Password(); p != "secret" || err != nil {
		t.Errorf("RESPALDO_PASSWORD_FILE: %q, %v", p, err)
	}
	t.Setenv("RESPALDO_PASSWORD", "from the environment")
	if p, err := r.Password(); p != "from the environment" || err != nil {
		t.Errorf("RESPALDO_PASSWORD: %q, %v", p, err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "4096B": 4096, "20GiB": 20 << 30, "1.5 TiB": 3 << 39, "500m": 500 << 20, "10G": 10 << 30, "20GB": 20e9, " 7 kib ": 7168,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "-1GiB", "0", "10%", "1e30TiB", "NaN", "inf", "5 GiBs", "10ZiB", "9000000000TiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
	for size, want := range map[Size]string{0: "", 20 << 30: "20GiB", 1536 << 20: "1536MiB", 1000: "1000B"} {
		if got := size.String(); got != want {
			t.Errorf("%d: %q, want %q", int64(size), got, want)
		}
	}
}
