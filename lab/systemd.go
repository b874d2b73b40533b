package lab

import "strings"

// A guest whose Spec says Systemd boots Debian's systemd and udevd. Here is what their
// packages' maintainer scripts would have set up, and what is left out because a guest has no
// use for it: starting a program takes a guest long, and every unit starts some.

// jobUnit is what systemd is told to bring up.
const jobUnit = "lab-job.service"

// masked units have nothing to do in a guest: no keyboard, no sessions, no encrypted disks, no
// D-Bus, and labinit has made what they make. With them it would take three times as long.
var masked = strings.Fields(`
cryptsetup.target dev-hugepages.mount dev-mqueue.mount getty.target integritysetup.target kmod-static-nodes.service
proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount
sys-kernel-tracing.mount systemd-ask-password-console.path systemd-ask-password-wall.path systemd-binfmt.service
systemd-firstboot.service systemd-initctl.socket systemd-journal-flush.service systemd-journald-audit.socket
systemd-logind.service systemd-machine-id-commit.service systemd-modules-load.service systemd-pcrphase.service
systemd-pcrphase-sysinit.service systemd-random-seed.service systemd-remount-fs.service systemd-repart.service
systemd-sysctl.service systemd-sysusers.service systemd-tmpfiles-clean.timer systemd-tmpfiles-setup-dev.service
systemd-tmpfiles-setup.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
systemd-user-sessions.service veritysetup.target`)

// systemdFiles are the files, by their path without the leading slash.
func systemdFiles() map[string]string {
	return map[string]string{
		"etc/machine-id":     "6c61622d6c61622d6c61622d6c61622d\n", // else every boot is the first one
		"etc/selinux/config": "SELINUX=disabled\n",
		// The journal stays in memory, and does not flood the console.
		"etc/systemd/journald.conf":            "[Journal]\nStorage=volatile\nForwardToSyslog=no\nForwardToWall=no\n",
		"etc/systemd/system/" + jobUnit:        service("What this guest was booted for", "job", "After=multi-user.target\nWants=multi-user.target\n"),
		"etc/systemd/system/emergency.service": service("Says that the guest did not come up", "emergency", "DefaultDependencies=no\n"),
	}
}

func service(description, argument, dependencies string) string {
	return "[Unit]\nDescription=" + description + "\n" + dependencies + "\n[Service]\nExecStart=/opt/lab/labinit " + argument + "\n"
}

// systemdLinks are the symbolic links and where they lead.
func systemdLinks() map[string]string {
	links := map[string]string{
		"etc/systemd/system/sysinit.target.wants/blk-availability.service": "/lib/systemd/system/blk-availability.service",
		"etc/systemd/system/sysinit.target.wants/lvm2-monitor.service":     "/lib/systemd/system/lvm2-monitor.service",
		"etc/systemd/system/sysinit.target.wants/lvm2-lvmpolld.socket":     "/lib/systemd/system/lvm2-lvmpolld.socket",
		"etc/systemd/system/sockets.target.wants/dm-event.socket":          "/lib/systemd/system/dm-event.socket",
	}
	for _, unit := range masked {
		links["etc/systemd/system/"+unit] = "/dev/null"
	}
	return links
}
