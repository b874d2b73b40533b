//go:build guest

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// Bad luck on one machine: each gives one clear error that says what to do, the
// documented exit code, and loses and leaves nothing. The last backup succeeds.
func TestBadLuck(t *testing.T) {
	s := newStand(t, "thick-ext4", "mariadb-10.11", standOptions{})
	s.foreseenPause("estimated")
	s.choosesLock(t)
	s.volumeTroubles(t)
	s.serverTroubles(t)
	s.repositoryTroubles(t)
	s.restoreTroubles(t)

	s.t = t
	made := s.backup()
	if !made.Backup.Manifest.Proof.OK {
		t.Error("after all that, a backup is not proved")
	}
	s.foreseenPause("measured at the last snapshot")
	if n := len(s.list()); n != 2 { // this one, and the one that prune had to keep
		t.Errorf("%d backups are listed, not the two that succeeded", n)
	}
	s.before.NothingLeft(t)
}

// foreseenPause checks that check says how long writers will be held and from where it
// knows, and names the option for a pause that the budget would not allow.
func (s *stand) foreseenPause(from string) {
	s.t.Helper()
	var o struct {
		Pause     float64  `json:"expected_pause_seconds"`
		PauseFrom string   `json:"expected_pause_from"`
		Warnings  []string `json:"warnings"`
	}
	s.into(&o, "check", "--max-lock", "1ms")
	if o.PauseFrom != from || o.Pause <= 0 {
		s.t.Errorf("a pause of %g s is expected, %s; not %s", o.Pause, o.PauseFrom, from)
	}
	if !strings.Contains(strings.Join(o.Warnings, "\n"), "give --max-lock") {
		s.t.Errorf("nothing warns of a budget of 1 ms: %q", o.Warnings)
	}
}

func (s *stand) list() []respaldo.Backup {
	s.t.Helper()
	var list []respaldo.Backup
	s.into(&list, "list")
	return list
}

// refuses runs respaldo, which must fail with the kind's exit code, say each of the words,
// give a hint, print the same as one JSON document, and leave nothing behind.
func (s *stand) refuses(t *testing.T, kind respaldo.Kind, words []string, args ...string) {
	t.Helper()
	s.t = t
	o := s.fails(int(kind), append(args, "--json")...)
	for _, word := range words {
		if !strings.Contains(o.stderr, word) {
			t.Errorf("respaldo %v does not say %q:\n%s", args, word, o.stderr)
		}
	}
	var doc errorDocument
	if err := json.Unmarshal([]byte(o.stdout), &doc); err != nil || doc.Error.Code != int(kind) || len(doc.Error.Hints) == 0 || doc.Error.Hints[0] == "" {
		t.Errorf("respaldo %v --json: no error with a hint (%v):\n%s", args, err, o.stdout)
	}
	s.before.NothingLeft(t)
}

func (s *stand) volumeTroubles(t *testing.T) {
	t.Run("no free space in the group", func(t *testing.T) {
		guest.Run(t, "lvcreate", "--yes", "--extents", "100%FREE", "--name", "filler", s.volume.Group)
		defer guest.Run(t, "lvremove", "--yes", s.volume.Group+"/filler")
		before := s.before
		s.before = guest.Look(t)
		defer func() { s.before = before }()
		s.refuses(t, respaldo.Refused, []string{"volume group " + s.volume.Group, "vgextend"}, "backup")
		if o := s.fails(int(respaldo.Refused), "check"); !strings.Contains(o.stdout+o.stderr, "vgextend") {
			t.Errorf("check does not say what to do:\n%s%s", o.stdout, o.stderr)
		}
	})
	t.Run("the snapshot overflows", func(t *testing.T) {
		// The group has just the room for the snapshot, which therefore cannot grow.
		guest.Run(t, "lvcreate", "--yes", "--extents", "100%FREE", "--name", "filler", s.volume.Group)
		guest.Run(t, "lvreduce", "--yes", "--force", "--size", "-32m", s.volume.Group+"/filler")
		defer guest.Run(t, "lvremove", "--yes", s.volume.Group+"/filler")
		before := s.before
		s.before = guest.Look(t)
		defer func() { s.before = before }()
		stop := s.overwrite(t, 96<<20)
		defer stop()
		s.refuses(t, respaldo.SnapshotLost, []string{"snapshot"}, "backup", "--snapshot-size", "32MiB")
	})
	t.Run("a snapshot that stays overflows", func(t *testing.T) {
		s.refuses(t, respaldo.Refused, []string{"would write into the snapshot", "--prove none"}, "backup", "--keep-snapshot")
		kept := s.backup("--keep-snapshot", "--prove", "none", "--snapshot-size", "32MiB").Kept
		bulk := filepath.Join(s.volume.Path, "bulk")
		s.change(bulk, 48<<20)
		defer os.Remove(bulk)
		if list := s.snapshots(); len(list) != 1 || list[0].Snapshot.Name != kept.Snapshot.Name || list[0].Fill.Valid {
			t.Errorf("after more was changed than it had room for: %+v", list)
		}
		s.goes(kept.Snapshot.Name, "overflowed")
		s.before.NothingLeft(t)
	})
	t.Run("the data directory is on no volume", func(t *testing.T) {
		other := guest.StartServer(t, guest.ServerSpec{Name: s.server.Name, DataDir: workDir(t) + "/mysql"})
		defer other.Kill()
		before := s.before
		s.before = guest.Look(t)
		defer func() { s.before = before }()
		config := strings.ReplaceAll(s.read(s.config), s.server.OptionFile, other.OptionFile)
		s.refuses(t, respaldo.Refused, []string{"overlay"}, "backup", "--config", s.other("elsewhere.toml", config))
	})
}

// overwrite changes a file on the volume again and again once a snapshot is there.
func (s *stand) overwrite(t *testing.T, bytes int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	path := filepath.Join(s.volume.Path, "bulk")
	block := make([]byte, 1<<20)
	write := func() error {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		for range bytes / len(block) {
			if _, err := f.Write(block); err != nil {
				return err
			}
			block[0]++
		}
		return f.Sync()
	}
	if err := write(); err != nil { // the blocks must be allocated before the snapshot
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := write(); err != nil {
				t.Errorf("the origin got an error: %v", err)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
		os.Remove(path)
	}
}

func (s *stand) serverTroubles(t *testing.T) {
	t.Run("no privilege", func(t *testing.T) {
		s.server.Exec(t, "CREATE USER nobody@localhost IDENTIFIED BY 'secret-word'", "GRANT SELECT ON shop.* TO nobody@localhost")
		s.refuses(t, respaldo.Unreachable, []string{"GRANT"}, "backup", "--config", s.as(t, "nobody", "secret-word"))
	})
	t.Run("wrong password", func(t *testing.T) {
		s.refuses(t, respaldo.Unreachable, []string{"nobody"}, "backup", "--config", s.as(t, "nobody", "not-the-word"))
	})
	t.Run("a table is locked", func(t *testing.T) {
		ctx := context.Background()
		holder, err := s.server.DB.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Close()
		if _, err := holder.ExecContext(ctx, "LOCK TABLES shop.notes WRITE"); err != nil {
			t.Fatal(err)
		}
		s.refuses(t, respaldo.LockTimeout, []string{"LOCK TABLES", "shop.notes"}, "backup", "--max-lock", "500ms", "--patience", "1s")
		if _, err := holder.ExecContext(ctx, "UNLOCK TABLES"); err != nil {
			t.Error(err)
		}
	})
	t.Run("another operation is running", func(t *testing.T) {
		s.t = t
		running := s.command("backup")
		running.Env = append(running.Env, "RESPALDO_FAULT=hang:backup.save")
		if err := running.Start(); err != nil {
			t.Fatal(err)
		}
		guest.Eventually(t, testLimit, func() error { return s.snapshotIsThere() })
		o := s.fails(int(respaldo.Busy), "backup")
		if !strings.Contains(o.stderr, "backup") || !strings.Contains(o.stderr, "hint:") {
			t.Errorf("it does not say what is running:\n%s", o.stderr)
		}
		running.Process.Kill()
		running.Wait()
		// What it has left fills the group; check knows that a backup removes it first.
		guest.Run(t, "lvcreate", "--yes", "--extents", "100%FREE", "--name", "filler", s.volume.Group)
		if o := s.ok("check"); !strings.Contains(o.stdout, "the next backup first removes") || !strings.Contains(o.stdout, "A backup can be made") {
			t.Errorf("check in a group that a leftover fills:\n%s", o.stdout)
		}
		guest.Run(t, "lvremove", "--yes", s.volume.Group+"/filler")
		s.ok("cleanup")
		s.before.NothingLeft(t)
	})
	t.Run("the server is down", func(t *testing.T) {
		if err := s.server.Stop(); err != nil {
			t.Fatal(err)
		}
		s.before = guest.Look(t)
		s.refuses(t, respaldo.Unreachable, []string{"sock"}, "backup")
		s.server = guest.StartServer(s.whole, guest.ServerSpec{Name: s.server.Name, DataDir: s.server.DataDir})
		s.before = guest.Look(t)
	})
}

func (s *stand) repositoryTroubles(t *testing.T) {
	repository := s.dir + "/repository"
	elsewhere := func(url string) string {
		return s.other("repository.toml", strings.ReplaceAll(s.read(s.config), repository, url))
	}
	t.Run("wrong password", func(t *testing.T) {
		wrong := s.other("wrong", "not it\n")
		os.Chmod(wrong, 0o600)
		s.refuses(t, respaldo.RepoFailed, []string{"password"}, "backup", "--password-file", wrong)
	})
	t.Run("missing", func(t *testing.T) {
		s.refuses(t, respaldo.RepoFailed, []string{s.dir + "/nowhere"}, "backup", "--config", elsewhere(s.dir+"/nowhere"))
	})
	t.Run("full and read-only", func(t *testing.T) {
		small := s.dir + "/small"
		if err := os.Mkdir(small, 0o755); err != nil {
			t.Fatal(err)
		}
		guest.Run(t, "mount", "-t", "tmpfs", "-o", "size=512k", "small", small)
		defer guest.Run(t, "umount", small)
		before := s.before
		s.before = guest.Look(t)
		defer func() { s.before = before }()
		s.writeIn(t, s.server.DataDir+"/incompressible")
		defer os.Remove(s.server.DataDir + "/incompressible")
		config := elsewhere(small)
		s.t = t
		s.ok("init", "--config", config)
		s.refuses(t, respaldo.RepoFailed, []string{small, "space"}, "backup", "--config", config)
		guest.Run(t, "mount", "-o", "remount,ro", small)
		s.refuses(t, respaldo.RepoFailed, []string{small, "read-only"}, "backup", "--config", config)
	})
}

func (s *stand) restoreTroubles(t *testing.T) {
	s.t = t
	id := s.backup("--prove", "none").Backup.ID
	t.Run("the target is not empty", func(t *testing.T) {
		target := workDir(t)
		s.writeIn(t, target+"/precious")
		s.refuses(t, respaldo.Refused, []string{"not empty", "precious"}, "restore", id, "--to", target)
		if _, err := os.Stat(target + "/precious"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the target is a running server's", func(t *testing.T) {
		s.refuses(t, respaldo.Refused, []string{"in use"}, "restore", id, "--to", s.server.DataDir, "--force")
		if err := s.server.DB.Ping(); err != nil {
			t.Errorf("the server did not survive: %v", err)
		}
		s.server.Exec(t, "INSERT INTO shop.customers VALUES (100000, 'after')", "DELETE FROM shop.customers WHERE id = 100000")
	})
	t.Run("the disk is too small", func(t *testing.T) {
		small := workDir(t)
		guest.Run(t, "mount", "-t", "tmpfs", "-o", "size=4m", "small", small)
		defer guest.Run(t, "umount", small)
		before := s.before
		s.before = guest.Look(t)
		defer func() { s.before = before }()
		s.refuses(t, respaldo.Refused, []string{small}, "restore", id, "--to", small+"/mysql")
	})
	t.Run("no such backup", func(t *testing.T) {
		s.refuses(t, respaldo.NotFound, []string{"respaldo list"}, "restore", "feedbeef", "--to", workDir(t)+"/x")
	})
	t.Run("all may go but the newest proved", func(t *testing.T) {
		s.t = t
		proved := s.backup().Backup.ID
		config := s.other("keep.toml", s.read(s.config)+"\n[keep]\nlast = 1\n")
		before := len(s.list())
		s.ok("prune", "--dry-run", "--config", config)
		if n := len(s.list()); n != before {
			t.Errorf("prune --dry-run left %d backups of %d", n, before)
		}
		s.ok("prune", "--config", config)
		if list := s.list(); len(list) != 1 || list[0].ID != proved {
			t.Errorf("kept: %+v", list)
		}
		s.ok("verify", proved, "--start")
		s.before.NothingLeft(t)
	})
}

func (s *stand) snapshotIsThere() error {
	out, err := guest.Try("lvs", "--noheadings", "--options", "lv_name", "@respaldo")
	if err == nil && strings.TrimSpace(out) == "" {
		err = errors.New("there is no snapshot yet")
	}
	return err
}

// as writes a configuration that connects as another account.
func (s *stand) as(t *testing.T, user, password string) string {
	t.Helper()
	client := s.other(user+".cnf", "[client]\nsocket="+s.server.Spec().Socket+"\nuser="+user+"\npassword="+password+"\n")
	os.Chmod(client, 0o600)
	return s.other(user+".toml", strings.ReplaceAll(s.read(s.config), s.server.OptionFile, client))
}

func (s *stand) read(path string) string {
	s.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// other writes a file beside the configuration.
func (s *stand) other(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	s.write(path, 0o644, text)
	return path
}

// writeIn writes a file that nothing compresses.
func (s *stand) writeIn(t *testing.T, path string) {
	t.Helper()
	noise := make([]byte, 2<<20)
	rand.Read(noise)
	if err := os.WriteFile(path, noise, 0o600); err != nil {
		t.Fatal(err)
	}
}
