package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/term"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/config"
)

// app is what every command receives: the global flags and what follows from them. There
// is no other state that commands share.
type app struct {
	flags struct {
		config       string
		server       string
		repository   string
		passwordFile string
		json         bool
		quiet        bool
		verbose      bool
		noColor      bool
		logFormat    string
	}
	stdout  io.Writer
	console *console     // stderr, never blocking
	log     *slog.Logger // to the console
	began   bool         // a command runs: errors are no longer about the command line
	shown   bool         // the result is on stdout: an error after it goes to stderr alone

	secrets *redactor
	signals *interruptions
	loaded  *config.Config
	report  *progress
}

func newApp(stdout, stderr io.Writer) *app {
	a := &app{stdout: stdout, secrets: &redactor{}}
	a.console = newConsole(stderr)
	a.log = slog.New(slog.DiscardHandler)
	return a
}

// begin is called when the flags are known.
func (a *app) begin() error {
	a.console.style(a.flags.noColor)
	level := slog.LevelInfo
	switch {
	case a.flags.verbose:
		level = slog.LevelDebug
	case a.flags.quiet:
		level = slog.LevelWarn
	}
	options := &slog.HandlerOptions{Level: level}
	to := &redactingWriter{to: a.console, secrets: a.secrets}
	switch a.flags.logFormat {
	case "text":
		a.log = slog.New(slog.NewTextHandler(to, options))
	case "json":
		a.log = slog.New(slog.NewJSONHandler(to, options))
	default:
		return usageError("--log-format is text or json, not "+a.flags.logFormat, "")
	}
	return nil
}

// close writes out what is still to be said.
func (a *app) close() {
	if a.report != nil {
		a.report.end()
	}
	a.console.close()
}

// config reads the configuration file, once.
func (a *app) config() (*config.Config, error) {
	if a.loaded == nil {
		c, err := config.Load(a.flags.config)
		if err != nil {
			return nil, err
		}
		a.loaded = c
	}
	return a.loaded, nil
}

// serverOf returns the settings of a server. The repository given on the command line or in
// the environment takes precedence.
func (a *app) serverOf(name string) (config.Server, error) {
	c, err := a.config()
	if err != nil {
		return config.Server{}, err
	}
	s, err := c.Server(name)
	if err != nil {
		return config.Server{}, err
	}
	s.Repository = a.override(s.Repository)
	return s, nil
}

// servers are the names of those that a command about all of them is for: all that are
// configured, or the one that --server names.
func (a *app) servers(c *config.Config) []string {
	if a.flags.server != "" {
		return []string{a.flags.server}
	}
	return c.Names()
}

// repository returns the repository of the server that --server names, or where there is
// none the common one: listing another host's backups needs no server.
func (a *app) repository() (config.Repository, error) {
	c, err := a.config()
	if err != nil {
		return config.Repository{}, err
	}
	r := c.Repository
	if a.flags.server != "" {
		if s, err := c.Server(a.flags.server); err == nil {
			r = s.Repository
		}
	}
	return a.override(r), nil
}

func (a *app) override(r config.Repository) config.Repository {
	if url := os.Getenv("RESPALDO_REPOSITORY"); url != "" {
		r.URL = url
	}
	if a.flags.repository != "" {
		r.URL = a.flags.repository
	}
	if a.flags.passwordFile != "" {
		r.PasswordFile = a.flags.passwordFile
	}
	return r
}

// password finds the repository's password and keeps it out of the log. A repository
// without a URL is an error here, so that all commands word it alike.
func (a *app) password(r config.Repository) (string, error) {
	if r.URL == "" {
		return "", usageError("no repository is given", "set url in [repository] of "+config.DefaultPath+", or give --repository")
	}
	password, err := r.Password()
	a.secrets.add(password)
	return password, err
}

// progress is where a command's story reports its steps.
func (a *app) progress() *progress {
	if a.report == nil {
		a.report = newProgress(a.console, a.log, a.flags.quiet)
	}
	return a.report
}

// ask puts a question on the terminal and waits for a line.
func (a *app) ask(ctx context.Context, question string) (string, error) {
	a.console.printf("%s", question)
	a.console.flush()
	answer := make(chan string, 1)
	go func() { // a read of the terminal cannot be cancelled
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		return line, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// show prints a command's result to stdout: with --json the value as one document, else
// whatever human writes.
func (a *app) show(value any, human func(p *page)) error {
	if a.report != nil {
		a.report.end()
	}
	a.console.flush() // stdout and stderr may be the same terminal
	a.shown = true
	var text bytes.Buffer
	if a.flags.json {
		if err := encodeJSON(&text, value); err != nil {
			return err
		}
	} else {
		human(&page{Writer: &text, width: widthOf(a.stdout)})
	}
	if _, err := a.stdout.Write(text.Bytes()); err != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot write the result", Err: err}
	}
	return nil
}

func encodeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// widthOf is a terminal's width in columns, 0 for anything else.
func widthOf(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return 0
}

// redactor knows the secrets of this run.
type redactor struct {
	mu    sync.Mutex
	words []string
}

// add remembers a secret, also the way the log would quote it.
func (r *redactor) add(secret string) {
	if secret == "" {
		return
	}
	quoted, _ := json.Marshal(secret)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, word := range []string{secret, strings.Trim(string(quoted), `"`)} {
		if !slices.Contains(r.words, word) {
			r.words = append(r.words, word)
		}
	}
}

func (r *redactor) redact(text string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, word := range r.words {
		text = strings.ReplaceAll(text, word, "***")
	}
	return text
}

// redactingWriter is the last thing between a log record, which is one Write, and the
// world. Nobody should log a secret in the first place.
type redactingWriter struct {
	to      io.Writer
	secrets *redactor
}

func (w *redactingWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.to, w.secrets.redact(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
