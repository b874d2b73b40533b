//go:build guest

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// outcomes of the request for an image
const (
	imageExact   = "exact"
	imageRefused = "refused"
	imageMarked  = "marked"
	imageWrong   = "wrong"
)

// exactCase is a stand, and what is asked for on it.
type exactCase struct {
	volume, server string
	rounds         []exactRound
}

type exactRound struct {
	lock, profile string
	images        []string // how each is taken: "snapshot" or "backup", which proves it
	shifted       bool     // the last of them with other coordinates, too
	mixed         bool     // statements in the binlog, where they are safe, instead of rows
}

// TestExact takes images while the origin is written to, restores each, rolls it forward
// from its coordinates by the origin's binlogs, and compares it with the origin. Each is the
// origin then, or was refused, or marked as not exact: never silently wrong. All volumes,
// locks and profiles come when soaking, for the server that the lab names.
func TestExact(t *testing.T) {
	cases := []exactCase{
		{"thin-ext4", "mariadb-10.11", []exactRound{{lock: "auto", profile: "ddl", images: []string{"snapshot"}, shifted: true}}},
		{"btrfs", "mysql-5.6", []exactRound{
			{lock: "auto", profile: "ddl", images: []string{"snapshot"}},
			{lock: "none", profile: "transactional", images: []string{"snapshot"}, mixed: true},
		}},
	}
	if soak {
		cases = exactSoak(os.Getenv("LAB_SERVER"))
	}
	for _, c := range cases {
		t.Run(c.volume+" "+c.server, func(t *testing.T) {
			e := newExact(t, c.volume, c.server)
			for _, r := range c.rounds {
				t.Run(r.lock+" "+r.profile, func(t *testing.T) {
					e.t = t
					e.round(t, r)
				})
			}
			e.t = t
			e.before.NothingLeft(t)
		})
	}
}

// exactSoak is the whole product of one server.
func exactSoak(server string) (cases []exactCase) {
	for i, volume := range []string{"thick-ext4", "thin-xfs", "btrfs"} {
		c := exactCase{volume: volume, server: server}
		for j, p := range exactProfiles {
			// A temporary table that statements in the binlog are about is in no image: with rows then.
			mixed := (i+j)%2 == 1 && !p.ddl
			for _, lock := range []string{"auto", "none", "backup", "global"} {
				c.rounds = append(c.rounds, exactRound{lock, p.name, []string{"backup", "snapshot"}, lock == "global" && p.name == "all", mixed})
			}
		}
		cases = append(cases, c)
	}
	return cases
}

// exact is a stand with the tables of the load, and room for restored images.
type exact struct {
	*stand
	folder string // on another disk
	rounds int
	images int
}

func newExact(t *testing.T, volume, server string) *exact {
	t.Helper()
	e := &exact{folder: "/srv/images", stand: newStand(t, volume, server, standOptions{})}
	exactSchema(t, e.server)
	other := 1
	if volume == "btrfs" {
		other = 0
	}
	guest.NewFolder(t, other, e.folder)
	e.before = guest.Look(t)
	return e
}

// exactImage is one that was asked for.
type exactImage struct {
	outcome string
	reason  string
	backup  bool
	ref     string // what respaldo restore wants
	taken   respaldo.Quiesced
}

// round takes images under load and says what became of them.
func (e *exact) round(t *testing.T, r exactRound) {
	t.Helper()
	e.rounds++
	format, size := "ROW", 256<<10 // so that the binlog rotates every few moments
	if r.mixed {
		format = "MIXED"
	}
	if r.shifted { // needs groups around the coordinates in one file
		size = 1 << 30
	}
	e.server.Exec(t, "SET GLOBAL binlog_format = "+format, fmt.Sprint("SET GLOBAL max_binlog_size = ", size))
	profile := exactProfiles[slices.IndexFunc(exactProfiles, func(p exactProfile) bool { return p.name == r.profile })]
	load := startExactLoad(t, e.server, profile, e.rounds)
	load.Moves(t, 5)
	var images []exactImage
	for _, how := range r.images {
		images = append(images, e.take(how, r.lock, load))
		load.Resume()
		load.Moves(t, 3)
	}
	if err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("steps of the writers: %v", load.done)
	result := guest.Exactness{Server: e.server.Name, Volume: e.volume.Kind, Lock: r.lock, Profile: r.profile}
	origin, err := contentsOf(e.server)
	if err != nil {
		t.Fatal(err)
	}
	for i, img := range images {
		if img.outcome == "" {
			e.judge(&img, origin)
		}
		if r.shifted && i == len(images)-1 && img.outcome == imageExact {
			e.shifted(&img, origin)
		}
		img.count(&result)
		calm := r.profile == "transactional" // so that nothing speaks against an image without a lock
		switch mode := img.taken.Mode; {
		case img.outcome != imageExact && r.lock == "auto":
			t.Errorf("auto is to find a way that is exact: %s: %s", img.outcome, img.reason)
		case img.outcome != imageExact && calm && r.lock != "backup":
			t.Errorf("%s: %s", img.outcome, img.reason)
		case img.outcome == imageExact && r.lock != "auto" && string(mode) != r.lock, calm && r.lock == "auto" && mode != respaldo.LockNone:
			t.Errorf("--lock=%s took an image under the lock %s", r.lock, mode)
		}
		if img.ref != "" && !img.backup {
			e.ok("snapshot", "remove", img.ref)
		}
	}
	line, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("LAB-EXACT %s\n", line)
	e.tidy()
}

// tidy removes what the load has made beside its own tables, and the binlogs: the next
// round is to take no longer than this one.
func (e *exact) tidy() {
	e.t.Helper()
	var statements []string
	list := func(query, statement string) {
		err := each(e.server.DB, query, func(row []string) error {
			statements = append(statements, statement+row[0])
			return nil
		})
		if err != nil {
			e.t.Fatal(err)
		}
	}
	list("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE 'dba%' OR SCHEMA_NAME LIKE 'admin%'", "DROP DATABASE ")
	list("SELECT CONCAT('\\'', user, '\\'@\\'', host, '\\'') FROM mysql.user WHERE user LIKE 'admin%'", "DROP USER ")
	e.server.Exec(e.t, append(statements, "FLUSH BINARY LOGS")...)
	binlogs, err := binlogsFrom(e.server, "")
	if err != nil {
		e.t.Fatal(err)
	}
	e.server.Exec(e.t, "PURGE BINARY LOGS TO '"+filepath.Base(binlogs[len(binlogs)-1])+"'")
}

// count adds an image to the result.
func (img exactImage) count(r *guest.Exactness) {
	one := guest.Exactness{Images: 1, Tries: max(img.taken.Tries, 1)}
	switch img.outcome {
	case imageExact:
		one.Exact++
	case imageRefused:
		one.Refused++
	case imageMarked:
		one.Marked++
	default:
		one.Wrong++
	}
	if img.taken.Mode != "" {
		one.Modes = map[string]int{string(img.taken.Mode): 1}
	}
	r.Add(one)
	if img.reason != "" && !slices.Contains(r.Reasons, img.reason) {
		r.Reasons = append(r.Reasons, img.reason)
	}
}

// take asks for an image as a user does. The writers pause when the snapshot is there.
func (e *exact) take(how, lock string, load *exactLoad) (img exactImage) {
	e.t.Helper()
	args := []string{"snapshot", "create"}
	if img.backup = how == "backup"; img.backup {
		args = []string{"backup"}
	}
	o := e.watched(func(said []byte) {
		if bytes.Contains(said, []byte("msg=snapshot ")) {
			load.Pause()
		}
	}, nil, append(args, "--lock="+lock, "--json")...)
	switch respaldo.Kind(o.code) {
	case 0:
		read := func(into any) {
			if err := json.Unmarshal([]byte(o.stdout), into); err != nil {
				e.t.Fatalf("no JSON: %v\n%s", err, o.stdout)
			}
		}
		if img.backup {
			var made backup.Made
			read(&made)
			img.ref, img.taken = made.Backup.ID, made.Backup.Manifest.Quiesced
		} else {
			var kept backup.KeptSnapshot
			read(&kept)
			img.ref, img.taken = kept.Snapshot.Name, kept.Manifest.Quiesced
		}
		if img.taken.Coordinates.File == "" {
			e.t.Errorf("an image without coordinates: %+v", img.taken)
		}
	case respaldo.Refused, respaldo.LockTimeout:
		img.outcome, img.reason = imageRefused, e.reason(o)
	case respaldo.NotProved:
		img.outcome, img.reason = imageMarked, e.reason(o)
		if !strings.Contains(o.stderr, "not exact") {
			e.t.Errorf("it is not proved, and yet may be exact:\n%s", o.stderr)
		}
	default:
		img.outcome, img.reason = imageWrong, e.reason(o)
		e.t.Errorf("exit code %d\n%s", o.code, o.stderr)
	}
	return img
}

// reason is why there is no image.
func (e *exact) reason(o outcome) string {
	e.t.Helper()
	var doc errorDocument
	if err := json.Unmarshal([]byte(o.stdout), &doc); err != nil {
		e.t.Errorf("no JSON: %v\n%s", err, o.stdout)
	}
	return doc.Error.Message
}

// judge finds out whether an image is exact. One that is not is kept, and so is one that
// cannot be restored or does not start.
func (e *exact) judge(img *exactImage, origin map[string]string) {
	e.t.Helper()
	img.outcome = imageWrong
	problems := []string{"it cannot be restored and started"} // if nothing is said instead
	defer func() {
		if img.outcome != imageExact {
			img.reason = problems[0]
			text := fmt.Sprintf("%s\nimage %s, taken with %+v\n", strings.Join(problems, "\n"), img.ref, img.taken)
			e.t.Errorf("silently wrong: the image is not the origin at its coordinates; it is kept in %s\n%s", e.keep(img, text), text)
		}
	}()
	if problems = e.rolledForward(img, origin, img.taken.Coordinates.Position); len(problems) == 0 {
		img.outcome = imageExact
	}
}

// rolledForward restores an image, rolls it forward from the position, and says how it
// differs from the origin then. The origin is at rest.
func (e *exact) rolledForward(img *exactImage, origin map[string]string, from uint64) (problems []string) {
	e.t.Helper()
	e.images++
	to := filepath.Join(e.folder, fmt.Sprint("image-", e.images))
	defer os.RemoveAll(to)
	s := e.restoredTo(to, img.ref)
	defer s.Kill()
	at := img.taken.Coordinates
	at.Position = from
	fails := func(err error) []string { return append(problems, err.Error()) }
	recovered, err := gtidSet(s)
	if err != nil {
		return fails(err)
	}
	for _, q := range []string{"SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 0"} { // nothing else is to crash
		if _, err := s.DB.Exec(q); err != nil {
			return fails(err)
		}
	}
	binlogs, err := binlogsFrom(e.server, at.File)
	var gtids []string
	if err == nil {
		gtids, err = rollForward(s, binlogs, at.Position)
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	differ, err := gtidProblems(e.server, s, at, recovered, gtids)
	if problems = append(problems, differ...); err != nil {
		return fails(err)
	}
	now, err := contentsOf(s)
	if problems = append(problems, differences(origin, now)...); err != nil {
		return fails(err)
	}
	e.t.Logf("%s at %s (%s) rolled forward by %d groups: %d tables and definitions, %d problems", img.ref, at, img.taken.Mode, len(gtids), len(now), len(problems))
	return problems
}

// keep copies an image as it was restored, the origin's binlogs, and what both servers said
// to where the guest's console is, and returns that folder as it is called outside.
func (e *exact) keep(img *exactImage, problems string) string {
	e.t.Helper()
	dir := filepath.Join("/out", "wrong-"+img.ref)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.t.Fatal(err)
	}
	e.write(filepath.Join(dir, "problems"), 0o644, problems)
	binlogs, _ := filepath.Glob(filepath.Join(e.server.DataDir, "binlog.*"))
	logs, _ := filepath.Glob("/run/mysqld/*.err")
	guest.Run(e.t, "cp", append(append(binlogs, logs...), dir)...)
	e.ok("restore", img.ref, "--to", filepath.Join(e.folder, "kept")) // last: it may be what fails
	defer os.RemoveAll(filepath.Join(e.folder, "kept"))
	guest.Run(e.t, "cp", "-r", "--sparse=always", filepath.Join(e.folder, "kept"), filepath.Join(dir, "image"))
	return outside(dir)
}

// outside is what a path below /out is called on the host.
func outside(path string) string {
	text, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == "/out" {
			for option := range strings.SplitSeq(f[3], ",") {
				if strings.Contains(option, "/") {
					return "/" + strings.TrimLeft(option, "/") + strings.TrimPrefix(path, "/out")
				}
			}
		}
	}
	return path + " of the guest"
}

// shifted proves that the comparison can fail: with coordinates that are one group too
// late, or too early, an image is not taken for exact.
func (e *exact) shifted(img *exactImage, origin map[string]string) {
	e.t.Helper()
	at := img.taken.Coordinates
	binlogs, err := binlogsFrom(e.server, at.File)
	if err != nil {
		e.t.Fatal(err)
	}
	starts, err := groupStarts(e.server, binlogs[0])
	if err != nil {
		e.t.Fatal(err)
	}
	here, _ := slices.BinarySearch(starts, int(at.Position)) // not to the byte: what is no group may come between
	if here < 1 || here+1 >= len(starts) {
		e.t.Fatalf("no groups before and after %s: %v", at, starts)
	}
	shifts := []int{starts[here+1]}
	if soak {
		shifts = append(shifts, starts[here-1])
	}
	for _, wrong := range shifts {
		if problems := e.rolledForward(img, origin, uint64(wrong)); len(problems) == 0 {
			e.t.Errorf("from %d on, not %d, it would be taken for exact", wrong, at.Position)
		}
	}
}
