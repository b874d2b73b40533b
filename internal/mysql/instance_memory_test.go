package mysql

import "testing"

// A large redo log is recovered with more memory, but not with the origin's.
func TestMemoryFollowsRedoLog(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		redo      map[string]string
		available int64
		want      int64
	}{
		{map[string]string{"innodb_log_file_size": "100663296"}, 32 << 30, 256 * mib},
		{map[string]string{"innodb_log_file_size": "4294967296", "innodb_log_files_in_group": "2"}, 32 << 30, 1024 * mib},
		{map[string]string{"innodb_redo_log_capacity": "17179869184", "innodb_log_file_size": "50331648", "innodb_log_files_in_group": "2"}, 32 << 30, 2048 * mib},
		{map[string]string{"innodb_redo_log_capacity": "137438953472"}, 128 << 30, 2048 * mib},
		{map[string]string{"innodb_redo_log_capacity": "17179869184"}, 2 << 30, 512 * mib},
		{map[string]string{"innodb_redo_log_capacity": "17179869184"}, 128 * mib, 256 * mib},
		{nil, 0, 256 * mib},
	} {
		if got := memoryFor(redoBytes(c.redo), c.available); got != c.want {
			t.Errorf("%v with %d available: %d, want %d", c.redo, c.available, got, c.want)
		}
	}
	if availableMemory() < 16*mib {
		t.Errorf("this machine is said to have %d bytes available", availableMemory())
	}
}
