package guest

import "strings"

// What a guest finds on disks that an earlier one has written.

// OpenVolume activates and mounts a volume that NewVolume made, with the same spec, before
// the power was cut. Snapshots are activated with it, as they are when a machine boots.
// At the end of the test it is unmounted, and not destroyed.
func OpenVolume(t T, spec VolumeSpec) *Volume {
	t.Helper()
	v := describe(spec)
	if v.Group != "" {
		Run(t, "vgchange", "-qq", "--activate", "y", v.Group)
	}
	v.mount(t, spec.MountOptions)
	return v
}

// OpenFolder mounts what NewFolder made before the power was cut.
func OpenFolder(t T, disk int, path string) {
	t.Helper()
	(&Volume{Path: path, Device: Disk(disk), FSType: "ext4"}).mount(t, "")
}

// Rebooted is the State with the processes of this boot instead of those of an earlier one.
func (s State) Rebooted() State {
	fresh := State{}
	for item := range s {
		if !strings.HasPrefix(item, "process ") {
			fresh[item] = true
		}
	}
	for _, p := range processes() {
		fresh["process "+p] = true
	}
	return fresh
}
