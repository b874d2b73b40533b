package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Profile is an AppArmor profile that confines the server's program.
type Profile struct {
	Name  string `json:"name"`  // as the kernel tells it
	File  string `json:"file"`  // below /etc/apparmor.d
	Local string `json:"local"` // the administrator's additions to it
}

const appArmorDir = "/etc/apparmor.d"

// Profile finds the profile that is enforced on mysqld or mariadbd, nil if there is none.
// One whose file does not include its local additions is refused: it cannot be told
// anything without editing what a package owns.
func (h *Host) Profile() (*Profile, error) {
	text, _ := os.ReadFile(h.path("/sys/kernel/security/apparmor/profiles"))
	for line := range strings.Lines(string(text)) {
		name, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		program := filepath.Base(name)
		if (program != "mysqld" && program != "mariadbd") || mode != "(enforce)" {
			continue
		}
		for _, file := range []string{strings.ReplaceAll(strings.Trim(name, "/"), "/", "."), "usr.sbin." + program} {
			p := &Profile{Name: name, File: filepath.Join(appArmorDir, file), Local: filepath.Join(appArmorDir, "local", file)}
			profile, err := os.ReadFile(h.path(p.File))
			if err == nil && strings.Contains(string(profile), "local/"+file) {
				return p, nil
			}
		}
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "AppArmor's profile " + name + " confines the server, and no file in " + appArmorDir + " includes local additions to it",
			Hint: "allow the new directory in the profile and include <local/…> in it, or take the profile out of enforcement: aa-complain " + name}
	}
	return nil, nil
}

// Rules are the lines that let the server work in a directory.
func (p *Profile) Rules(dir string) string {
	return fmt.Sprintf("  %q r,\n  %q rwk,\n", dir+"/", dir+"/**")
}

// Load makes the kernel read the profile again.
func (p *Profile) Load() []string { return []string{"apparmor_parser", "-r", p.File} }

// Allow lets the server work in a directory.
func (h *Host) Allow(ctx context.Context, p *Profile, dir string) error {
	if err := addBlock(h.path(p.Local), dir, p.Rules(dir)); err != nil {
		return err
	}
	_, err := h.Run.Run(ctx, run.Cmd{Argv: p.Load()})
	return err
}

// Disallow takes that back.
func (h *Host) Disallow(ctx context.Context, p *Profile, dir string) error {
	if err := removeBlock(h.path(p.Local), dir); err != nil {
		return err
	}
	_, err := h.Run.Run(ctx, run.Cmd{Argv: p.Load()})
	return err
}

// SELinux tells that it is in force here.
func (h *Host) SELinux() bool {
	text, err := os.ReadFile(h.path("/sys/fs/selinux/enforce"))
	return err == nil && strings.TrimSpace(string(text)) != ""
}

// LabelCommands tell SELinux what a directory is for, and label what is in it; UnlabelCommand
// makes it forget.
func LabelCommands(dir string) [][]string {
	return [][]string{
		{"semanage", "fcontext", "--add", "--type", "mysqld_db_t", dir + "(/.*)?"},
		{"restorecon", "-R", dir},
	}
}

// UnlabelCommand is documented at LabelCommands.
func UnlabelCommand(dir string) []string {
	return []string{"semanage", "fcontext", "--delete", dir + "(/.*)?"}
}
