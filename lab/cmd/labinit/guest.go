package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo/lab/job"
)

// guest is the whole life of a guest: it sets the system up, runs the job, writes down
// how that ended, and turns the power off.
func guest() {
	exit := job.Exit{Code: 1}
	if err := setUp(os.Getenv(job.DirArg), os.Getenv(job.RootArg)); err != nil {
		exit.Problem = "the guest could not be set up: " + err.Error()
	} else if j, err := job.Read("/out"); err != nil {
		exit.Problem = "the guest cannot read its job: " + err.Error()
	} else if err := configure(j); err != nil {
		exit.Problem = "the guest could not be configured: " + err.Error()
	} else if j.Systemd {
		exit.Problem = "systemd could not be started: " + unix.Exec("/lib/systemd/systemd", []string{"systemd"}, os.Environ()).Error()
	} else {
		exit = run(j)
	}
	if exit.Problem != "" {
		fmt.Println("lab:", exit.Problem)
	}
	if err := job.WriteExit("/out", exit); err != nil {
		fmt.Println("lab:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
	}
	return nil
}

func mountAll(mounts ...mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// setUp leaves the initial root for the image under an overlay, in memory unless a disk is
// given for it: one image serves many guests and a power cut cannot hurt it.
func setUp(dir, disk string) error {
	written := mount{"rw", "/rw", "tmpfs", 0, "mode=755"}
	if disk != "" {
		written = mount{disk, "/rw", "ext4", 0, ""}
	}
	err := mountAll(
		mount{"proc", "/proc", "proc", 0, ""},
		mount{"dev", "/dev", "devtmpfs", 0, ""},
		mount{"/dev/ubda", "/image", "ext4", unix.MS_RDONLY, ""},
		written,
	)
	if err != nil {
		return err
	}
	if err := loadModules("/image", "overlay", "dm-mod", "dm-snapshot", "dm-thin-pool"); err != nil {
		return err
	}
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	err = mountAll( // redirect_dir: without it, the image's directories could not be renamed
		mount{"overlay", "/new", "overlay", 0, "lowerdir=/image,upperdir=/rw/upper,workdir=/rw/work,redirect_dir=on"},
		mount{"/dev", "/new/dev", "", unix.MS_MOVE, ""},
		mount{"/proc", "/new/proc", "", unix.MS_MOVE, ""},
	)
	if err != nil {
		return err
	}
	if err := os.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return mountAll(
		mount{"sys", "/sys", "sysfs", 0, ""},
		mount{"devpts", "/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666"},
		mount{"shm", "/dev/shm", "tmpfs", 0, "mode=1777"},
		mount{"run", "/run", "tmpfs", 0, "mode=755"},
		mount{"tmp", "/tmp", "tmpfs", 0, "mode=1777"},
		mount{"out", "/out", "hostfs", 0, dir},
	)
}

const lvmConfig = `activation { udev_sync=0 udev_rules=0 monitoring=0 reserved_memory=0 reserved_stack=0 }
devices { obtain_device_list_from_udev=0 use_devicesfile=0 multipath_component_detection=0 md_component_detection=0
  global_filter=["r|/dev/ubda$|","a|/dev/ubd.*|","a|/dev/mapper/pv.*|","r|.*|"] }
global { use_lvmpolld=0 event_activation=0 }
`

func configure(j job.Job) error {
	for _, m := range j.Mounts {
		flags := uintptr(0)
		if !m.Writable {
			flags = unix.MS_RDONLY
		}
		if err := (mount{filepath.Base(m.Host), m.Guest, "hostfs", flags, m.Host}).do(); err != nil {
			return err
		}
	}
	for _, d := range []string{"/run/lock/lvm", "/run/lvm", "/run/mysqld", "/run/sshd"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	links := map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"}
	for path, target := range links {
		if err := os.Symlink(target, path); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if !j.StockLVM {
		if err := os.WriteFile("/etc/lvm/lvm.conf", []byte(lvmConfig), 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chown("/run/mysqld", 102, 102), unix.Sethostname([]byte(j.Name)), up("lo", "")); err != nil {
		return err
	}
	if j.Address != "" {
		return up("vec0", j.Address)
	}
	return nil
}

// run starts the job and reaps whatever ends until it does. Orphans come to the first
// process, so nothing else here may wait for a child.
func run(j job.Job) job.Exit {
	tty, err := os.OpenFile("/dev/tty0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return job.Exit{Code: 1, Problem: err.Error()}
	}
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return job.Exit{Code: 1, Problem: err.Error()}
	}
	attr := &syscall.ProcAttr{
		Dir: j.Dir,
		Env: append([]string{"PATH=/opt/lab:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LC_ALL=C.UTF-8",
			"LVM_SUPPRESS_FD_WARNINGS=1", "RESPALDO_CACHE=/cache"}, j.Env...),
		Files: []uintptr{stdin.Fd(), tty.Fd(), tty.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if !j.Systemd {
		attr.Env = append(attr.Env, "DM_DISABLE_UDEV=1")
	}
	if j.Terminal {
		attr.Files[0] = tty.Fd()
		attr.Sys.Setctty = true
		attr.Env = append(attr.Env, "TERM="+j.Term)
		resize(tty, j.Rows, j.Cols)
		go followSize(tty)
	} else if err := plain(tty); err != nil {
		return job.Exit{Code: 1, Problem: err.Error()}
	}
	program := j.Argv[0]
	pid, err := syscall.ForkExec(program, j.Argv, attr)
	if err != nil {
		return job.Exit{Code: 1, Problem: fmt.Sprintf("start %s: %v", program, err)}
	}
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return job.Exit{Code: 1, Problem: err.Error()}
		}
		if ended != pid {
			continue
		}
		if status.Signaled() {
			return job.Exit{Code: 128 + int(status.Signal()), Problem: fmt.Sprintf("%s was ended by %s", program, status.Signal())}
		}
		return job.Exit{Code: status.ExitStatus()}
	}
}

// plain switches the console's newline translation and echo off: the host reads lines.
func plain(tty *os.File) error {
	t, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO
	return unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, t)
}

func resize(tty *os.File, rows, cols uint16) {
	if rows > 0 && cols > 0 {
		unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
}

// followSize reads the size of the host's terminal from the second console, a line for
// every change.
func followSize(tty *os.File) {
	sizes, err := os.Open("/dev/tty1")
	if err != nil {
		return
	}
	lines := bufio.NewScanner(sizes)
	for lines.Scan() {
		var rows, cols uint16
		if n, _ := fmt.Sscan(lines.Text(), &rows, &cols); n == 2 {
			resize(tty, rows, cols)
		}
	}
}

// up activates a network interface, with an address if there is one.
func up(name, address string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if address != "" {
		if err := setAddress(fd, ifr, address); err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("activate %s: %w", name, err)
	}
	return nil
}

func setAddress(fd int, ifr *unix.Ifreq, address string) error {
	var a, b, c, d, bits int
	if _, err := fmt.Sscanf(address, "%d.%d.%d.%d/%d", &a, &b, &c, &d, &bits); err != nil {
		return fmt.Errorf("%q: %w", address, err)
	}
	if err := ifr.SetInet4Addr([]byte{byte(a), byte(b), byte(c), byte(d)}); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr); err != nil {
		return err
	}
	mask := ^uint32(0) << (32 - bits)
	if err := ifr.SetInet4Addr([]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, ifr)
}

// loadModules loads kernel modules of the image with what they depend on.
func loadModules(root string, names ...string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	dir := filepath.Join(root, "usr/lib/uml/modules", unix.ByteSliceToString(u.Release[:]))
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	files := map[string][]string{} // by module: its own file, then its dependencies
	for _, line := range strings.Split(string(text), "\n") {
		file, deps, ok := strings.Cut(line, ":")
		if ok {
			files[strings.TrimSuffix(filepath.Base(file), ".ko")] = append([]string{file}, strings.Fields(deps)...)
		}
	}
	for _, name := range names {
		list := files[name]
		if len(list) == 0 {
			return fmt.Errorf("the guest's kernel has no module %s", name)
		}
		for i := len(list) - 1; i >= 0; i-- {
			if err := loadModule(filepath.Join(dir, list[i])); err != nil {
				return fmt.Errorf("load %s: %w", list[i], err)
			}
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
