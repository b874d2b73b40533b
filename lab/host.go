package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// diskNeeded is what the cache folder and a few guests' disks take.
const diskNeeded = 2 << 30

// memoryFolder is where user-mode Linux keeps a guest's memory, as an unlinked file.
func memoryFolder() string {
	if dir := os.Getenv("TMPDIR"); dir != "" && isTmpfs(dir) {
		return dir
	}
	return "/dev/shm"
}

func isTmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// CheckHost looks whether this machine can run a guest with so many MiB of memory, and
// names everything that is missing together with what to do about it.
func CheckHost(memory int) error {
	var missing []string
	lack := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		lack("Linux on x86_64: this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	for _, p := range [][2]string{{"apt-get", "apt"}, {"dpkg-deb", "dpkg"}, {"tar", "tar"}, {"mke2fs", "e2fsprogs"}, {"go", "golang"}} {
		if _, err := exec.LookPath(sbin(p[0])); err != nil {
			lack("the program %s: apt-get install %s", p[0], p[1])
		}
	}
	if _, err := os.Stat(debian.Keyring); err != nil {
		lack("Debian's keys, by which packages are checked: apt-get install debian-archive-keyring")
	}
	dir := memoryFolder()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		lack("%s for the guest's memory: %v; mount a tmpfs there or set TMPDIR to one", dir, err)
	} else {
		// A guest whose memory does not fit boots all the same, and panics later.
		if free := int64(st.Bavail) * st.Bsize; free < int64(memory+64)<<20 {
			lack("room in %s: a guest needs %d MiB, %d are free; mount -o remount,size=… %s, or set TMPDIR to a larger tmpfs", dir, memory+64, free>>20, dir)
		}
		if st.Flags&unix.ST_NOEXEC != 0 {
			lack("%s without noexec: mount -o remount,exec %s, or set TMPDIR to another tmpfs", dir, dir)
		}
	}
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(scope)) > "1" {
		lack("ptrace: sysctl kernel.yama.ptrace_scope=1 (it is %s)", strings.TrimSpace(string(scope)))
	}
	cache := servers.Cache()
	if err := os.MkdirAll(cache, 0o755); err != nil {
		lack("a cache folder: %v; set RESPALDO_CACHE to another one", err)
	} else if err := unix.Statfs(cache, &st); err == nil && int64(st.Bavail)*st.Bsize < diskNeeded {
		lack("disk: %s needs %d MiB, %d are free; set RESPALDO_CACHE to another folder", cache, diskNeeded>>20, int64(st.Bavail)*st.Bsize>>20)
	}
	if strings.ContainsAny(cache, " ,\"") {
		lack("a cache folder without blanks, commas and quotes in its path: set RESPALDO_CACHE (it is %q)", filepath.Clean(cache))
	}
	if len(missing) == 0 {
		return nil
	}
	return errors.New("the lab cannot run here, this machine lacks:\n  - " + strings.Join(missing, "\n  - "))
}
