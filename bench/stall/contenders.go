package stall

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// contender takes a snapshot in its way. Each has the program's own defaults, and LVM's.
type contender struct {
	name   string
	take   func() (held, error)
	remove func() error // what take has made; not measured
}

// held is for how long a contender had which lock, and had the volume suspended, if it says so.
type held struct {
	lock                    string
	waited, held, suspended float64
}

const copyOnWrite = "512M" // of a thick snapshot, where one has to say

// contenders are all that can work on the volume.
func (b *bench) contenders() []contender {
	nothing := func() error { return nil }
	list := []contender{{None, func() (held, error) { return held{}, nil }, nothing}}
	if b.plan.Folder == "" && b.plan.Read == 0 { // where there is one processor
		list = append(list, contender{Look, func() (held, error) {
			_, err := command(nil, b.plan.Respaldo, "--config", b.config, "check")
			return held{}, err
		}, nothing})
	}
	list = append(list, b.respaldo(Auto, "auto"), b.respaldo(Global, "global"))
	if b.group != "" {
		list = append(list, b.mylvmbackup())
	}
	return append(list, b.classic())
}

func (b *bench) respaldo(name, lock string) contender {
	var taken string
	return contender{name, func() (held, error) {
		out, err := command(nil, b.plan.Respaldo, "--config", b.config, "snapshot", "create", "--lock", lock, "--json")
		if err != nil {
			return held{}, err
		}
		var made struct {
			Snapshot respaldo.Snapshot `json:"snapshot"`
			Manifest respaldo.Manifest `json:"manifest"`
		}
		err = json.Unmarshal(out, &made)
		q := made.Manifest.Quiesced
		taken = made.Snapshot.Name
		return held{string(q.Mode), q.WaitedSeconds, q.HeldSeconds, q.PauseSeconds}, err
	}, func() error {
		_, err := command(nil, b.plan.Respaldo, "--config", b.config, "snapshot", "remove", taken)
		return err
	}}
}

// classic is the script that most people have: one session of the client, which takes the
// lock, notes the coordinates, has the snapshot made, and ends the lock.
func (b *bench) classic() contender {
	status := "SHOW MASTER STATUS"
	if strings.HasPrefix(b.plan.Server, "mysql-9") {
		status = "SHOW BINARY LOG STATUS" // the old name is an error there
	}
	var snapshot string
	var remove func() error
	switch taken := filepath.Join(b.path, "classic"); {
	case b.group == "":
		snapshot = strings.Join(b.btrfs("subvolume", "snapshot", "-r", filepath.Join(b.path, "mysql"), taken), " ")
		remove = func() error {
			_, err := command(nil, b.btrfs("subvolume", "delete", "--commit-after", taken)...)
			return err
		}
	default:
		snapshot = "lvcreate --snapshot --name classic"
		if !b.thin {
			snapshot += " --size " + copyOnWrite
		}
		snapshot += " " + b.group + "/data"
		remove = func() error { return b.lvremove("classic") }
	}
	const stamp = "SELECT '%s', UNIX_TIMESTAMP(SYSDATE(6));\n" // for us
	script := fmt.Sprintf(stamp, "asked") + "FLUSH TABLES WITH READ LOCK;\n" + fmt.Sprintf(stamp, "locked") +
		status + ";\nsystem " + snapshot + "\n" + fmt.Sprintf(stamp, "done") + "UNLOCK TABLES;\n"
	return contender{Classic, func() (held, error) {
		out, err := command(strings.NewReader(script), servers.Binary(b.plan.Server, "mysql"), "--no-defaults", "--user=root", "--socket="+b.server.Spec().Socket,
			"--batch", "--unbuffered", "--skip-column-names")
		at := map[string]float64{}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) == 2 {
				at[f[0]], _ = strconv.ParseFloat(f[1], 64)
			}
		}
		if err == nil && at["done"] == 0 {
			err = fmt.Errorf("the classic script said %s", out)
		}
		return held{lock: "global", waited: at["locked"] - at["asked"], held: at["done"] - at["locked"]}, err
	}, remove}
}

// mylvmbackup's lock is timed by when it says what it does next.
func (b *bench) mylvmbackup() contender {
	const name = "mylvm"
	// It buffers what it says unless told otherwise.
	argv := append(fetched("bin/perl"), "-e", `$| = 1; my $program = shift; do $program; die $@`, filepath.Join(Peers(), "usr/bin/mylvmbackup"),
		"--user=root", "--socket="+b.server.Spec().Socket, "--vgname="+b.group, "--lvname=data", "--backuplv="+name, "--relpath=mysql",
		"--backuptype=none", "--keep_snapshot", "--skip_mycnf", "--mountdir="+filepath.Join(b.work, "mylvmbackup"))
	if b.thin {
		// Left to itself it makes a snapshot that is not active, and then cannot mount it.
		argv = append(argv, "--thin", "--lvcreate=lvcreate --setactivationskip n")
	} else {
		argv = append(argv, "--lvsize="+copyOnWrite)
	}
	return contender{Mylvm, func() (held, error) {
		if err := errors.Join(installPerl(), os.MkdirAll(filepath.Join(b.work, "mylvmbackup"), 0o700)); err != nil {
			return held{}, err
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		at := map[string]time.Time{}
		out, err := followed(cmd, func(line string) {
			for _, step := range []string{"Flushing tables with read lock", "Taking position record", "Unlocking tables"} {
				if strings.Contains(line, step) {
					at[step] = time.Now()
				}
			}
		})
		asked, locked, done := at["Flushing tables with read lock"], at["Taking position record"], at["Unlocking tables"]
		// It goes on, and ends well, when the lock was refused.
		if err == nil && (done.IsZero() || strings.Contains(out, "Error:")) {
			err = fmt.Errorf("mylvmbackup said %s", out)
		}
		return held{lock: "global", waited: locked.Sub(asked).Seconds(), held: done.Sub(locked).Seconds()}, err
	}, func() error { return b.lvremove(name) }}
}

// installPerl puts Perl's modules where the program looks for them, in a guest, which has none.
func installPerl() error {
	for _, dir := range []string{"share/perl", "share/perl5", "lib/x86_64-linux-gnu/perl", "lib/x86_64-linux-gnu/perl5", "lib/x86_64-linux-gnu/perl-base"} {
		if err := os.Symlink(filepath.Join(Peers(), "usr", dir), filepath.Join("/usr", dir)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func (b *bench) lvremove(name string) error {
	_, err := command(nil, "lvremove", "--yes", "--quiet", b.group+"/"+name)
	return err
}

// btrfs is the program: the guest's own, or on another machine the one fetched for the bench.
func (b *bench) btrfs(args ...string) []string {
	if b.plan.Folder == "" {
		return append([]string{"btrfs"}, args...)
	}
	return append(fetched("bin/btrfs"), args...)
}

// fetched is how to run a fetched program: with its own loader and libraries, which the
// programs that it starts do not inherit.
func fetched(program string) []string {
	root := filepath.Join(Peers(), "usr")
	libs := filepath.Join(root, "lib/x86_64-linux-gnu")
	return []string{filepath.Join(libs, "ld-linux-x86-64.so.2"), "--library-path", libs, filepath.Join(root, program)}
}

// followed runs a program and shows each line of what it says as it comes.
func followed(cmd *exec.Cmd, see func(line string)) (string, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var all strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		see(lines.Text())
		all.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		return all.String(), fmt.Errorf("%s: %w: %s", cmd.Args[0], err, all.String())
	}
	return all.String(), nil
}

// command runs a program and returns what it writes to standard output.
func command(stdin *strings.Reader, argv ...string) ([]byte, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}
