package volume

import (
	"slices"
	"testing"
)

func TestGroupLocks(t *testing.T) {
	for text, want := range map[string]string{
		"locking_dir=\"/run/lock/lvm\"\nwait_for_locks=1\nuse_lvmlockd=0\nlocking_type=1\n": "/run/lock/lvm",
		"\tlocking_dir=\"/run/lock/lvm\"\n\twait_for_locks=0\n\tlocking_type=1\n":           "", // it would fail, not wait
		"locking_dir=\"/run/lock/lvm\"\nwait_for_locks=1\nuse_lvmlockd=1\nlocking_type=1\n": "", // another lock comes first
		"locking_dir=\"/run/lock/lvm\"\nwait_for_locks=1\nuse_lvmlockd=0\nlocking_type=3\n": "", // clvmd
		"locking_dir=\"\"\nwait_for_locks=1\nlocking_type=1\n":                              "",
		"": "",
	} {
		if dir := parseGroupLocks(text); dir != want {
			t.Errorf("%q: %q, not %q", text, dir, want)
		}
	}
}

func TestLockers(t *testing.T) {
	const locks = `1: FLOCK  ADVISORY  WRITE 1500 00:1f:85 0 EOF
1: -> FLOCK  ADVISORY  WRITE 1523 00:1f:85 0 EOF
1: -> FLOCK  ADVISORY  WRITE 1524 00:1f:85 0 EOF
2: POSIX  ADVISORY  WRITE 1561 00:19:85 0 EOF
3: FLOCK  ADVISORY  WRITE 1523 00:1f:86 0 EOF
`
	for _, c := range []struct {
		inode uint64
		waits bool
		want  []int
	}{
		{85, true, []int{1523, 1524}},
		{85, false, []int{1500}}, // 1561 has another kind of lock
		{86, false, []int{1523}}, // the one that lets it wait first
		{86, true, nil},
		{5, true, nil},
	} {
		if got := lockers(locks, c.inode, c.waits); !slices.Equal(got, c.want) {
			t.Errorf("%d, %v: %v", c.inode, c.waits, got)
		}
	}
}
