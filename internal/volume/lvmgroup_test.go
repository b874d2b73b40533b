package volume

import "testing"

func TestGroupLocks(t *testing.T) {
	for text, want := range map[string]string{
		"locking_dir=\"/run/lock/lvm\"\nwait_for_locks=1\nuse_lvmlockd=0\n": "/run/lock/lvm",
		"\tlocking_dir=\"/run/lock/lvm\"\n\twait_for_locks=0\n":             "", // it would fail, not wait
		"locking_dir=\"/run/lock/lvm\"\nwait_for_locks=1\nuse_lvmlockd=1\n": "", // another lock comes first
		"locking_dir=\"\"\nwait_for_locks=1\n":                              "",
		"":                                                                  "",
	} {
		if dir := parseGroupLocks(text); dir != want {
			t.Errorf("%q: %q, not %q", text, dir, want)
		}
	}
}

func TestFindLock(t *testing.T) {
	const locks = `1: FLOCK  ADVISORY  WRITE 1500 00:1f:85 0 EOF
1: -> FLOCK  ADVISORY  WRITE 1523 00:1f:85 0 EOF
2: POSIX  ADVISORY  WRITE 1561 00:19:85 0 EOF
3: FLOCK  ADVISORY  WRITE 1523 00:1f:86 0 EOF
`
	for _, c := range []struct {
		pid   int
		inode uint64
		waits bool
		want  bool
	}{
		{1523, 85, true, true},   // waits for it
		{1523, 85, false, false}, // and has it not
		{1523, 86, false, true},  // but the one that lets it wait first
		{1523, 86, true, false},
		{1500, 85, false, true},
		{1500, 85, true, false},
		{1561, 85, false, false}, // another kind of lock
		{152, 85, true, false},
		{1523, 5, true, false},
	} {
		if got := findLock(locks, c.pid, c.inode, c.waits); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
