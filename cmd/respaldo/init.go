package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/config"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/repo"
)

// initialized is what init did.
type initialized struct {
	Repository   string `json:"repository"`
	Created      bool   `json:"created"`       // false: there was one, and the password fits
	PasswordFile string `json:"password_file"` // made by init; empty where there was one
	ConfigFile   string `json:"config_file"`   // likewise
}

func newInitCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "init",
		GroupID: groupCare,
		Short:   "Create the repository, or connect to an existing one",
		Long: `Creates an encrypted repository at the URL that --repository or the configuration names;
where there is one already, checks that the password opens it.

	/folder or file:///folder
	sftp://user@host[:port]/folder?key=FILE&known_hosts=FILE
	s3://bucket/prefix?endpoint=HOST:PORT&region=REGION

Where there is no configuration file yet, one is written with what was given; one that
names no repository, as the package's does not, gets it. Where the password file does not
exist, a new random password is put into it: keep a copy of that elsewhere, since without
it nobody can ever read the backups.`,
		Example: `  respaldo init --repository /srv/backup/respaldo --password-file /etc/respaldo/password
  respaldo init`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := initialize(cmd.Context(), a)
			if err != nil {
				return err
			}
			return a.show(done, func(p *page) { showInitialized(p, done) })
		},
	}
}

// initialize goes from what costs nothing to what costs most, and takes the configuration
// back when a later step fails. A new password stays: the repository may have been created
// with it before the failure, and the next init goes on with it.
func initialize(ctx context.Context, a *app) (done initialized, err error) {
	var written []string
	defer func() {
		if err != nil {
			for _, path := range written {
				os.Remove(path)
			}
		}
	}()
	if path := a.configPath(); a.flags.repository != "" && missing(path) {
		if err := writeNew(path, a.firstConfig(), 0o644); err != nil {
			return done, err
		}
		written, done.ConfigFile = append(written, path), path
	}
	where, err := a.repository()
	if err != nil {
		return done, err
	}
	if where.URL == "" {
		return done, usageError("no repository is given", "give --repository, or set url in [repository] of "+a.configPath())
	}
	if path := where.PasswordFile; path != "" && missing(path) && os.Getenv("RESPALDO_PASSWORD") == "" {
		if err := writeNew(path, newPassword()+"\n", 0o600); err != nil {
			return done, err
		}
		done.PasswordFile = path
	}
	if done.Repository, done.Created, err = a.createOrOpen(ctx, where); err == nil && done.ConfigFile == "" {
		done.ConfigFile, err = a.completeConfig()
	}
	return done, err
}

// completeConfig adds the repository to a configuration that has none, and returns the file;
// "" if there was nothing to add. It comes last, so that nothing need be taken back.
func (a *app) completeConfig() (string, error) {
	c, err := a.config()
	if err != nil || c.Path == "" || a.flags.repository == "" || c.Repository.URL != "" {
		return "", err
	}
	for _, name := range c.Names() {
		if s, err := c.Server(name); err != nil || s.Repository.URL != "" {
			return "", err
		}
	}
	fail := func(err error) (string, error) {
		return "", &respaldo.Error{Kind: respaldo.Failed, What: "the repository is there, but cannot be written into " + c.Path,
			Hint: "set url and password_file in [repository] yourself", Err: err}
	}
	text, err := os.ReadFile(c.Path)
	if err != nil {
		return fail(err)
	}
	whole := strings.TrimRight(string(text), "\n") + "\n\n" + a.repositorySection()
	if err := disk.Rewrite(c.Path, []byte(whole), 0o600); err != nil {
		return fail(err)
	}
	return c.Path, nil
}

// createOrOpen creates the repository, or opens the one that is there with our password.
func (a *app) createOrOpen(ctx context.Context, where config.Repository) (name string, created bool, err error) {
	password, err := a.password(where)
	if err != nil {
		return "", false, err
	}
	c, err := a.config()
	if err != nil {
		return "", false, err
	}
	r, err := repo.Create(ctx, repo.Config{URL: where.URL}, password, a.repoOptions(c))
	created = err == nil
	if errors.Is(err, repo.ErrExists) {
		r, err = a.open(ctx, where)
	}
	if err != nil {
		return "", false, err
	}
	return r.Name(), created, r.Close(ctx)
}

// configPath is the file that this run reads, or would.
func (a *app) configPath() string {
	for _, path := range []string{a.flags.config, os.Getenv("RESPALDO_CONFIG")} {
		if path != "" {
			return path
		}
	}
	return config.DefaultPath
}

// firstConfig is the least that a configuration needs.
func (a *app) firstConfig() string {
	var text strings.Builder
	fmt.Fprintf(&text, "# Written by respaldo init. All keys: respaldo's docs/configuration.md\nformat = 1\n\n%s", a.repositorySection())
	fmt.Fprintf(&text, "\n# What respaldo prune keeps.\n[keep]\nlast = 3\ndaily = 7\nweekly = 5\nmonthly = 12\n")
	return text.String()
}

func (a *app) repositorySection() string {
	text := fmt.Sprintf("[repository]\nurl = %q\n", absoluteURL(a.flags.repository))
	if a.flags.passwordFile != "" {
		text += fmt.Sprintf("password_file = %q\n", absolute(a.flags.passwordFile))
	}
	return text
}

func absoluteURL(url string) string {
	if strings.Contains(url, "://") {
		return url
	}
	return absolute(url)
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// newPassword has 240 bits.
func newPassword() string {
	b := make([]byte, 30)
	rand.Read(b) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b)
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// writeNew writes a file that must not exist yet, and returns when it is on disk: a
// password that a power cut takes away takes the backups with it.
func writeNew(path, text string, mode fs.FileMode) error {
	fail := func(err error) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: "cannot write " + path, Hint: "run respaldo init as root, or name other files", Err: err}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	if err := disk.Create(path, []byte(text), mode); err != nil {
		return fail(err)
	}
	return nil
}

func showInitialized(p *page, done initialized) {
	if done.Created {
		p.printf("Created the repository %s.\n", done.Repository)
	} else {
		p.printf("Connected to the repository %s, which was there already.\n", done.Repository)
	}
	if done.ConfigFile != "" {
		p.printf("Wrote the configuration to %s.\n", done.ConfigFile)
	}
	if done.PasswordFile != "" {
		p.printf("\nThe password in %s was made just now. Keep a copy of it elsewhere:\nwithout it nobody can ever read the backups, not even you.\n", done.PasswordFile)
	}
	p.printf("\nNext: respaldo check\n")
}
