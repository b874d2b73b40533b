//go:build guest

package main

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// preparations are the kinds of volume and the servers that are prepared.
func preparations() [][2]string {
	pairs := [][2]string{{"lvm-thick", "mariadb-10.11"}, {"lvm-thin", "mysql-5.6"}}
	if !soak {
		return pairs
	}
	for _, kind := range []string{"lvm-thick", "lvm-thin", "btrfs"} {
		for _, server := range []string{"mariadb-10.5", "mariadb-10.11", "mariadb-11.8", "mysql-9.7", "mysql-5.6"} {
			if pair := [2]string{kind, server}; !slices.Contains(pairs, pair) {
				pairs = append(pairs, pair)
			}
		}
	}
	return pairs
}

// TestPrepare goes from a blank disk to a backup, and back.
func TestPrepare(t *testing.T) {
	guest.NewFolder(t, 1, "/srv")
	for n, pair := range preparations() {
		t.Run(pair[0]+" "+pair[1], func(t *testing.T) {
			s := newPlainServer(t, pair[0], pair[1])
			if n == 0 {
				s.refusesDevices()
				s.refusesMount()
			}
			if n == 1 { // a disk that nobody needs any more, and the other filesystem
				guest.Run(t, "mkfs.ext4", "-q", "-F", guest.Disk(0))
				s.more = []string{"--wipe", guest.Disk(0), "--fs", "xfs"}
			}
			if n == 0 || soak {
				s.dryRun()
				s.killed(nil, s.makingPoints()...)
				s.undoneHalfway()
				s.failsAndStops()
				s.killed(nil, s.movingPoints()...)
				s.staysOnceStarted()
				s.killed(nil, s.startedPoints()...)
			}
			s.prepared()
			if n == 0 || soak {
				s.killed([]string{"--undo"}, s.backPoints()...)
				s.undone()
			}
			if n == 0 {
				s.intoGroup()
			}
		})
	}
}

func (s *plainServer) args(more ...string) []string {
	if slices.Contains(more, "--undo") {
		return append([]string{"prepare"}, more...)
	}
	return slices.Concat([]string{"prepare", "--device", guest.Disk(0), "--kind", s.kind, "--mount", s.mount}, s.more, more)
}

// machine is what a dry run must not change.
func (s *plainServer) machine() string {
	fstab, _ := os.ReadFile("/etc/fstab")
	state, _ := os.ReadFile(s.dir + "/state/main.prepare.json")
	return string(fstab) + string(state) + guest.Run(s.t, "lvs", "-a") + guest.Run(s.t, "lsblk") + guest.Run(s.t, "wipefs", "-n", guest.Disk(0)) +
		guest.Run(s.t, "find", "/srv/old", "/srv/new", s.dir+"/conf.d", "-maxdepth", "1", "-not", "-name", "*.sock*")
}

func (s *plainServer) dryRun() {
	if err := os.MkdirAll(s.mount, 0o755); err != nil {
		s.t.Fatal(err)
	}
	before := s.machine()
	o := s.ok(s.args("--dry-run")...)
	s.t.Logf("the dry run:\n%s", o.stdout)
	for _, want := range []string{"mkfs.", " >> /etc/fstab", "mount " + s.mount, s.dir + "/stop", "cp --archive", "ln -s " + s.mount + "/data " + plainData, s.dir + "/start", "stay"} {
		if !strings.Contains(o.stdout, want) {
			s.t.Errorf("a dry run does not show %q", want)
		}
	}
	s.fails(int(respaldo.Usage), s.args()...) // nobody is there to say yes
	shown, code := s.asked("[y/N] ", "", s.args()...)
	if code != int(respaldo.Refused) || !strings.Contains(shown, "mkfs.") || !strings.Contains(shown, "nothing was touched") {
		s.t.Errorf("asked, and not told yes, it ends with %d:\n%s", code, shown)
	}
	if after := s.machine(); after != before {
		s.t.Errorf("a dry run has changed something:\n%s\nwas\n%s", after, before)
	}
}

func (s *plainServer) refusesDevices() {
	guest.Run(s.t, "mkfs.ext4", "-q", "-F", guest.Disk(0))
	if o := s.fails(int(respaldo.Refused), s.args("--yes")...); !strings.Contains(o.stderr, "ext4") || !strings.Contains(o.stderr, "--wipe "+guest.Disk(0)) {
		s.t.Errorf("a device with a filesystem:\n%s", o.stderr)
	}
	s.fails(int(respaldo.Usage), s.args("--yes", "--wipe", guest.Disk(1))...)
	if o := s.fails(int(respaldo.Refused), "prepare", "--device", guest.Disk(1), "--wipe", guest.Disk(1), "--yes"); !strings.Contains(o.stderr, "mounted at /srv") {
		s.t.Errorf("a device that is mounted:\n%s", o.stderr)
	}
	guest.Run(s.t, "wipefs", "-qa", guest.Disk(0))
	writer, err := os.OpenFile(guest.Disk(0), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	if o := s.fails(int(respaldo.Refused), s.args("--yes")...); !strings.Contains(o.stderr, fmt.Sprintf("open for writing by process %d", os.Getpid())) {
		s.t.Errorf("a device that a program writes to:\n%s", o.stderr)
	}
	writer.Close()
	guest.Run(s.t, "pvcreate", "-qq", guest.Disk(0))
	guest.Run(s.t, "vgcreate", "-qq", "others", guest.Disk(0))
	if o := s.fails(int(respaldo.Refused), s.args("--yes", "--wipe", guest.Disk(0))...); !strings.Contains(o.stderr, "volume group others") {
		s.t.Errorf("a device in a group:\n%s", o.stderr)
	}
	if o := s.fails(int(respaldo.Refused), "prepare", "--vg", "others", "--size", "8MiB", "--kind", s.kind, "--yes"); !strings.Contains(o.stderr, "MiB") {
		s.t.Errorf("too small a volume, without numbers:\n%s", o.stderr)
	}
	nobody := filepath.Join(s.dir, "nobody.toml")
	text, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	managed, _, _ := strings.Cut(string(text), "start = ")
	s.write(nobody, 0o644, managed)
	if o := s.fails(int(respaldo.Refused), s.args("--config", nobody, "--yes")...); !strings.Contains(o.stderr, "stop = ") {
		s.t.Errorf("nobody can stop the server:\n%s", o.stderr)
	}
	guest.Run(s.t, "vgremove", "-qq", "others")
	guest.Run(s.t, "pvremove", "-qq", guest.Disk(0))
}

func (s *plainServer) refusesMount() {
	line := "/dev/sdz1 " + s.mount + " ext4 defaults 0 2"
	s.write("/etc/fstab", 0o644, "# the administrator's\n"+line+"\n")
	if o := s.fails(int(respaldo.Refused), s.args("--yes")...); !strings.Contains(o.stderr, "line 2") || !strings.Contains(o.stderr, line) {
		s.t.Errorf("fstab names the mount point:\n%s", o.stderr)
	}
	s.write("/etc/fstab", 0o644, "# the administrator's\n/dev/sdz1 /elsewhere ext4 noauto 0 2\n")
}

// prepared prepares it and asserts that the server has all it had, in the new place, and
// can be backed up.
func (s *plainServer) prepared() {
	var done backup.Prepared
	s.into(&done, s.args("--yes")...)
	s.t.Logf("stopped for %.1f s", done.Seconds)
	db := s.answers()
	s.worksIn(db, s.mount+"/data")
	if got := guest.Checksums(s.t, db); !maps.Equal(got, s.tables) {
		s.t.Errorf("the tables are %v, not %v", got, s.tables)
	}
	for _, dir := range []string{plainData, "/srv/old/binlog", "/srv/old/mysql-files"} {
		if link, err := os.Readlink(dir); err != nil || !strings.HasPrefix(link, s.mount+"/") {
			s.t.Errorf("%s leads to %q, %v", dir, link, err)
		}
		if info, err := os.Stat(dir + ".before-respaldo"); err != nil || !info.IsDir() {
			s.t.Errorf("%s was not kept: %v", dir, err)
		}
	}
	if text, err := os.ReadFile(s.dir + "/conf.d/zz-respaldo-main.cnf"); !strings.HasSuffix(string(text), "[mysqld]\ndatadir="+s.mount+"/data\n") {
		s.t.Errorf("the options are %q, %v", text, err)
	}
	if o := s.ok("prepare", "--undo", "--dry-run"); !strings.Contains(o.stdout, "umount "+s.mount) || strings.Contains(o.stdout, "lvremove") {
		s.t.Errorf("what an undo would do:\n%s", o.stdout)
	}
	fstab, _ := os.ReadFile("/etc/fstab")
	want := "/dev/mysql/mysql " + s.mount + " "
	if s.kind == "btrfs" {
		want = "UUID=" + done.Volume.FSUUID + " " + s.mount + " btrfs noatime,subvol=mysql"
	}
	if slices.Contains(s.more, "xfs") {
		want += "xfs noatime 0 0"
	}
	if !strings.Contains(string(fstab), "\n"+want) {
		s.t.Errorf("fstab has no line %q:\n%s", want, fstab)
	}
	if o := s.ok(s.args("--yes")...); !strings.Contains(o.stdout, "prepared") {
		s.t.Errorf("again:\n%s", o.stdout)
	}
	s.ok("init")
	made := s.backup()
	if !made.Backup.Manifest.Proof.OK || made.Backup.Manifest.Volume.Kind != respaldo.VolumeKind(s.kind) {
		s.t.Errorf("backed up as %+v", made.Backup.Manifest.Volume)
	}
}

// worksIn asserts where the server has its data, by whatever path it was told so: somebody
// may have started it before the options were there.
func (s *plainServer) worksIn(db *sql.DB, dir string) {
	s.t.Helper()
	var at string
	if err := db.QueryRow("SELECT @@datadir").Scan(&at); err != nil {
		s.t.Fatal(err)
	}
	if real, err := filepath.EvalSymlinks(at); err != nil || real != dir {
		s.t.Errorf("the server works in %s, not in %s", at, dir)
	}
}

// undoneHalfway: what was made before the server was touched goes again, and the device is
// as blank as it was.
func (s *plainServer) undoneHalfway() {
	s.ok("prepare", "--undo", "--yes")
	if left := guest.Run(s.t, "wipefs", "-n", guest.Disk(0)); left != "" {
		s.t.Errorf("the device is not blank again:\n%s", left)
	}
	if fstab, _ := os.ReadFile("/etc/fstab"); strings.Contains(string(fstab), s.mount) {
		s.t.Errorf("fstab still has our line:\n%s", fstab)
	}
	s.worksIn(s.answers(), plainData)
}

// failsAndStops: a server that does not start on the volume, and one who changes his mind, find
// it at work where it was.
func (s *plainServer) failsAndStops() {
	s.write(s.dir+"/refuse", 0o644, "")
	o := s.fails(int(respaldo.Failed), s.args("--yes")...)
	if !strings.Contains(o.stderr, "works where it did before") {
		s.t.Errorf("it does not say that the server is back:\n%s", o.stderr)
	}
	s.worksIn(s.answers(), plainData)
	if info, err := os.Lstat(plainData); err != nil || !info.IsDir() {
		s.t.Errorf("%s: %v, %v", plainData, info, err)
	}
	if o := s.run([]string{"RESPALDO_FAULT=int:prepare.copied"}, s.args("--yes")...); o.code != int(respaldo.Interrupted) {
		s.t.Errorf("exit code %d after an interrupt\n%s", o.code, o.stderr)
	}
	s.worksIn(s.answers(), plainData)
}

// staysOnceStarted: a server that was started on the volume may serve others before it
// answers us. Who changes his mind then finds it at work there.
func (s *plainServer) staysOnceStarted() {
	guest.Run(s.t, s.dir+"/stop") // so that it has to be started
	guest.Eventually(s.t, testLimit, func() error {
		if s.alive() {
			return errors.New("the server still runs")
		}
		return nil
	})
	o := s.run([]string{"RESPALDO_FAULT=int:prepare.started"}, s.args("--yes")...)
	if o.code != int(respaldo.Interrupted) || !strings.Contains(o.stderr, "lies on the new volume") {
		s.t.Errorf("exit code %d after an interrupt\n%s", o.code, o.stderr)
	}
	db := s.answers()
	s.worksIn(db, s.mount+"/data")
	if _, err := db.Exec("INSERT INTO shop.customers SELECT MAX(id) + 1, 'on the volume' FROM shop.customers c"); err != nil {
		s.t.Fatal(err)
	}
}

// killed kills respaldo at one point after the other. Each time somebody starts the server,
// if it does not run, and writes to it; then it is done again.
func (s *plainServer) killed(more []string, points ...string) {
	for _, point := range points {
		if o := s.run([]string{"RESPALDO_FAULT=kill:" + point}, s.args(append(more, "--yes")...)...); o.code != -1 {
			s.t.Fatalf("respaldo was not killed at %s: exit code %d\n%s", point, o.code, o.stderr)
		}
		if !s.alive() {
			guest.Run(s.t, s.dir+"/start")
		}
		db := s.answers()
		if _, err := db.Exec("INSERT INTO shop.customers SELECT MAX(id) + 1, ? FROM shop.customers c", point); err != nil {
			s.t.Fatalf("after %s: %v", point, err)
		}
		s.tables = guest.Checksums(s.t, db)
	}
}

// makingPoints, movingPoints, startedPoints and backPoints are where respaldo is killed: everywhere when
// soaking, else once in making the volume, and wherever the data is in two places.
func (s *plainServer) makingPoints() []string {
	if !soak {
		return []string{"prepare.mount.done"}
	}
	steps := map[string][]string{"lvm-thick": {"pv", "group", "volume", "mkfs"}, "lvm-thin": {"pv", "group", "pool", "volume", "mkfs"}, "btrfs": {"mkfs", "subvolume"}}
	var points []string
	for _, step := range append(steps[s.kind], "fstab", "mount") {
		points = append(points, "prepare."+step, "prepare."+step+".done")
	}
	return points
}

func (s *plainServer) movingPoints() []string {
	if !soak {
		return []string{"prepare.switched-1"}
	}
	return []string{"prepare.stop", "prepare.stopping", "prepare.stop.done", "prepare.copy", "prepare.copying", "prepare.copied", "prepare.copied#2", "prepare.copy.done",
		"prepare.switch", "prepare.switched-1", "prepare.switched-2", "prepare.switched-3", "prepare.switch.done",
		"prepare.options", "prepare.options.done", "prepare.start"}
}

func (s *plainServer) startedPoints() []string {
	if !soak {
		return []string{"prepare.start.done"}
	}
	return []string{"prepare.start.done", "prepare.check", "prepare.check.done"}
}

func (s *plainServer) backPoints() []string {
	if !soak {
		return []string{"undo.switched-1"}
	}
	return []string{"undo.check", "undo.start", "undo.start.done", "undo.options", "undo.options.done", "undo.switch", "prepare.copying", "prepare.copied", "undo.switched-1", "undo.switched-2", "undo.switched-3",
		"undo.switch.done", "undo.copy", "undo.stop", "undo.stop.done", "undo.mount", "undo.mount.done", "undo.fstab", "undo.fstab.done", "undo.mkfs"}
}

// undone goes back, with what was written meanwhile.
func (s *plainServer) undone() {
	db := s.answers()
	if _, err := db.Exec("INSERT INTO shop.customers SELECT MAX(id) + 1, 'came later' FROM shop.customers c"); err != nil {
		s.t.Fatal(err)
	}
	s.tables = guest.Checksums(s.t, db)
	s.ok("prepare", "--undo", "--yes")
	db = s.answers()
	s.worksIn(db, plainData)
	if got := guest.Checksums(s.t, db); !maps.Equal(got, s.tables) {
		s.t.Errorf("the tables are %v, not %v", got, s.tables)
	}
	fstab, _ := os.ReadFile("/etc/fstab")
	if strings.Contains(string(fstab), s.mount) || strings.Contains(string(fstab), "respaldo") {
		s.t.Errorf("fstab still has our line:\n%s", fstab)
	}
	for _, dir := range []string{plainData, "/srv/old/binlog", "/srv/old/mysql-files"} {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			s.t.Errorf("%s is no directory: %v", dir, err)
		}
		if _, err := os.Stat(dir + ".before-respaldo"); err != nil {
			s.t.Errorf("what was set aside is gone: %v", err)
		}
	}
	if mounted := guest.Run(s.t, "cat", "/proc/mounts"); strings.Contains(mounted, s.mount) {
		s.t.Errorf("still mounted:\n%s", mounted)
	}
	if entries, _ := os.ReadDir(s.dir + "/conf.d"); len(entries) > 0 {
		s.t.Errorf("still there: %s", entries[0].Name())
	}
	s.fails(int(respaldo.NotFound), "prepare", "--undo", "--yes")
}

// intoGroup prepares once more after an undo, in the group that is there by now, beside
// somebody else's volume.
func (s *plainServer) intoGroup() {
	const theirs = "/dev/mysql/theirs"
	guest.Run(s.t, "lvremove", "-qq", "--yes", "mysql/mysql")
	guest.Run(s.t, "lvcreate", "-qq", "--yes", "--size", "64m", "--name", "theirs", "mysql")
	guest.Run(s.t, "sh", "-c", "printf precious >"+theirs)
	s.ok("prepare", "--vg", "mysql", "--lv", "again", "--kind", s.kind, "--mount", s.mount, "--yes")
	db := s.answers()
	s.worksIn(db, s.mount+"/data")
	if got := guest.Checksums(s.t, db); !maps.Equal(got, s.tables) {
		s.t.Errorf("the tables are %v, not %v", got, s.tables)
	}
	if mounted := guest.Run(s.t, "cat", "/proc/mounts"); !strings.Contains(mounted, "/dev/mapper/mysql-again "+s.mount+" ") {
		s.t.Errorf("not mounted from the new volume:\n%s", mounted)
	}
	if got := guest.Run(s.t, "head", "--bytes=8", theirs); got != "precious" {
		s.t.Errorf("the other volume holds %q", got)
	}
	s.ok("check") // it can be snapshotted
}
