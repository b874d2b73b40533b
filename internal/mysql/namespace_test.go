package mysql

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// holdVariable names a file with a request; the test program then starts that instance,
// says so, and holds it until its input ends.
const holdVariable = "RESPALDO_TEST_HOLD"

// held is the part of a request that fits into a file.
type held struct {
	Manifest respaldo.Manifest
	Dirs     map[string]string
	Scratch  string
	Run      string
	// Forbid new user namespaces first.
	Forbid bool
}

func holdInstance(file string) {
	var h held
	content, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(content, &h)
	}
	if err == nil && h.Forbid {
		err = os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
	}
	if err == nil {
		_, err = StartInstance(context.Background(), InstanceRequest{Manifest: h.Manifest, Dirs: h.Dirs, Scratch: h.Scratch, Run: h.Run})
	}
	if err != nil {
		fmt.Println(err, strings.Join(respaldo.HintsOf(err), " "))
		os.Exit(1)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// hold starts another process that starts the instance, and returns the first line that
// it says.
func hold(t *testing.T, r InstanceRequest, attr *syscall.SysProcAttr) (cmd *exec.Cmd, says string) {
	t.Helper()
	content, err := json.Marshal(held{r.Manifest, r.Dirs, r.Scratch, r.Run, attr != nil})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "request")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdVariable+"="+file)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		input.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	says, err = bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("the other process said nothing: %v", err)
	}
	return cmd, strings.TrimSpace(says)
}

func runningOf(t *testing.T, r InstanceRequest) (found []InstanceProcess) {
	t.Helper()
	all, err := FindInstances(r.Manifest.Server)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Run == r.Run {
			found = append(found, p)
		}
	}
	return found
}

// An instance does not outlive us, not even when we are killed.
func TestInstanceDiesWithItsParent(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	r := o.clean.request(t)
	cmd, says := hold(t, r, nil)
	if says != "ready" {
		t.Fatal(says)
	}
	if found := runningOf(t, r); len(found) != 1 {
		t.Fatalf("found instances %v", found)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	waitFor(t, "the instance died with its parent", func() bool { return len(runningOf(t, r)) == 0 })
	o.unharmed(t)
	if root, err := os.OpenRoot(r.Dirs[o.data]); err == nil { // what cleanup would do
		root.Remove(scratchName)
		root.Close()
	}
}

// An instance is found, and ended, without the ledger.
func TestInstanceIsFoundAndKilledByItsMarks(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	r := o.clean.request(t)
	started := 0
	r.Started = func(pid int) {
		started = pid
		// The kernel reports the exec a moment before the new environment can be read.
		var environment []byte
		var err error
		for deadline := time.Now().Add(10 * time.Second); err == nil && len(environment) == 0 && time.Now().Before(deadline); {
			environment, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		}
		if err != nil || !strings.Contains(string(environment), runMark+r.Run) {
			t.Errorf("before it does anything the process is marked %q, %v", environment, err)
		}
	}
	i := startInstance(t, r)
	found := runningOf(t, r)
	if len(found) != 1 || found[0].PID != i.PID() || started != i.PID() {
		t.Fatalf("found %v, started %d, the instance is %d", found, started, i.PID())
	}
	stranger := found[0]
	stranger.Run = "another operation"
	if err := stranger.Kill(); err != nil || !found[0].Alive() {
		t.Fatalf("killed what it did not mean: %v", err)
	}
	if err := found[0].Kill(); err != nil {
		t.Fatal(err)
	}
	<-i.Exited()
	if found[0].Alive() {
		t.Error("it is alive")
	}
	if err := found[0].Kill(); err != nil {
		t.Errorf("killing it again: %v", err)
	}
}

// neverReady is a server program that does nothing, and does not go when asked to.
func neverReady(t *testing.T) respaldo.Binary {
	t.Helper()
	script := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncase \"$*\" in *--version) exit;; esac\ntrap '' TERM\necho started >&2\nwhile :; do sleep 1000; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return respaldo.Binary{Argv: []string{"/bin/sh", script}}
}

func TestServerThatNeverGetsReadyIsEnded(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mysql-5.6")
	t.Run("out of time", func(t *testing.T) {
		r := o.clean.request(t)
		r.Binary = neverReady(t)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := Prove(ctx, r, respaldo.ProveQuick)
		if respaldo.KindOf(err) != respaldo.NotProved || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v of kind %d", err, respaldo.KindOf(err))
		}
		o.unharmed(t)
	})
	t.Run("interrupted", func(t *testing.T) {
		r := o.clean.request(t)
		r.Binary = neverReady(t)
		ctx, cancel := context.WithCancel(t.Context())
		r.Started = func(int) { cancel() }
		proof, err := Prove(ctx, r, respaldo.ProveQuick)
		if respaldo.KindOf(err) != respaldo.Interrupted || proof.OK || len(proof.Problems) > 0 {
			t.Errorf("error %v of kind %d, proof %+v", err, respaldo.KindOf(err), proof)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		r := o.clean.request(t)
		r.Binary = respaldo.Binary{Argv: []string{"/nonexistent/mysqld"}}
		_, err := StartInstance(t.Context(), r)
		if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "/nonexistent/mysqld") {
			t.Errorf("error %v of kind %d", err, respaldo.KindOf(err))
		}
	})
}

// A backup can be proved where its server never was: the origin's paths are missing.
func TestImageStartsWhereTheOriginsPathsAreMissing(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	for _, dir := range []string{"/respaldo-no-such-folder/mysql", filepath.Join(os.TempDir(), "respaldo-no-such-folder/a/b")} {
		r := o.clean.request(t)
		m := &r.Manifest
		r.Dirs = map[string]string{dir: r.Dirs[o.data], dir + "-outside": r.Dirs[o.outside]}
		m.Layout = respaldo.Layout{DataDir: dir, Places: []respaldo.Place{{Role: respaldo.DataRole, Path: dir, Real: dir}}}
		m.Variables = map[string]string{}
		for name, value := range o.clean.manifest.Variables {
			m.Variables[name] = strings.ReplaceAll(value, o.data, dir)
		}
		if _, err := Prove(t.Context(), r, respaldo.ProveQuick); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s was made on disk", dir)
		}
		nothingLeft(t, r)
	}
}

// What somebody removes from a busy /tmp while it is being mirrored is no error.
func TestMirrorOfAnEntryThatHasGone(t *testing.T) {
	t.Parallel()
	for _, kind := range []fs.FileMode{0, fs.ModeDir, fs.ModeSymlink} {
		to := filepath.Join(t.TempDir(), "replacement")
		if err := mirror(filepath.Join(t.TempDir(), "gone"), to, kind); err != nil {
			t.Errorf("%v: %v", kind, err)
		}
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v: something was left in its place: %v", kind, err)
		}
	}
}

// A place that nobody told us about can be read at worst: the origin's disk is read-only
// for the instance.
func TestInstanceCannotWriteOutsideTheImage(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	r := o.clean.request(t)
	delete(r.Dirs, o.outside)
	r.Manifest.Layout.Places = r.Manifest.Layout.Places[:1]
	mine := filesOf(t, o.outside)
	i := startInstance(t, r)
	if _, err := i.DB().Exec("INSERT INTO shop.afar VALUES (4)"); err == nil {
		t.Error("wrote into the origin's file")
	}
	stopInstance(t, i)
	if now := filesOf(t, o.outside); now != mine {
		t.Errorf("the origin's files changed from\n%sto\n%s", mine, now)
	}
	o.unharmed(t)
}

// A place that the layout knows must be in the image.
func TestImageThatLacksAPlaceIsRefused(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	r := o.clean.request(t)
	delete(r.Dirs, o.outside)
	if _, err := StartInstance(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), o.outside) {
		t.Errorf("error %v", err)
	}
}

// The server runs as the owner of the files, and is refused to whom they do not belong.
func TestInstanceRunsAsTheOwnerOfTheData(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	r := o.clean.request(t)
	if os.Geteuid() != 0 {
		r.Dirs[o.data] = "/usr"
		if _, err := StartInstance(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused {
			t.Errorf("error %v", err)
		}
		return
	}
	const nobody = 65534
	for _, dir := range r.Dirs {
		if out, err := exec.Command("chown", "-R", fmt.Sprint(nobody), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, dir := range []string{filepath.Dir(r.Scratch), o.dir} { // temporary folders are root's alone
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.Manifest = whereOthersMayRead(t, r.Manifest, o.dir)
	i := startInstance(t, r)
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", i.PID()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != nobody {
		t.Errorf("it runs as user %d", st.Uid)
	}
	if err := i.DB().PingContext(t.Context()); err != nil {
		t.Error(err)
	}
}

// whereOthersMayRead makes the server's program reachable for other users: the cache folder
// may lie in root's home, which is root's alone.
func whereOthersMayRead(t *testing.T, m respaldo.Manifest, dir string) respaldo.Manifest {
	t.Helper()
	from, to := filepath.Join(servers.Cache(), "servers", "mariadb-10.11"), filepath.Join(dir, "program")
	if err := exec.Command("cp", "-al", from, to).Run(); err != nil { // no links between filesystems
		os.RemoveAll(to)
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var moved respaldo.Manifest
	if err := json.Unmarshal(bytes.ReplaceAll(text, []byte(from), []byte(to)), &moved); err != nil {
		t.Fatal(err)
	}
	return moved
}

// Without namespaces there is no isolation, and no instance.
func TestForbiddenNamespacesAreNamed(t *testing.T) {
	t.Parallel()
	o := theOrigin(t, "mariadb-10.11")
	r := o.clean.request(t)
	// A world of its own, in which this user is an ordinary one and may make no
	// further namespace.
	const user = 1000
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_SYS_RESOURCE},
	}
	_, says := hold(t, r, attr)
	if !strings.Contains(says, "user.max_user_namespaces") {
		t.Errorf("it says %q", says)
	}
}
