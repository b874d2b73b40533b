package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/respaldo-backup/respaldo"
)

// document is the file as TOML sees it. The types of its fields check single values, so
// that the decoder can name the line; validate checks what concerns several.
type document struct {
	Format     int                      `toml:"format"`
	StateDir   absolute                 `toml:"state_dir"`
	RunDir     absolute                 `toml:"run_dir"`
	CacheDir   absolute                 `toml:"cache_dir"`
	LVMConfig  string                   `toml:"lvm_config"`
	Prometheus absolute                 `toml:"prometheus_file"`
	Repository *repositorySection       `toml:"repository"`
	Keep       *Keep                    `toml:"keep"`
	Snapshots  *Keep                    `toml:"keep_snapshots"`
	Thresholds thresholdSection         `toml:"thresholds"`
	Hooks      *hookSection             `toml:"hooks"`
	Server     map[string]serverSection `toml:"server"`
}

type repositorySection struct {
	URL          string   `toml:"url"`
	PasswordFile absolute `toml:"password_file"`
}

type thresholdSection struct {
	PoolData     float64 `toml:"pool_data"`
	PoolMetadata float64 `toml:"pool_metadata"`
	Warn         float64 `toml:"warn"`
}

type hookSection struct {
	Before    []string `toml:"before"`
	After     []string `toml:"after"`
	OnFailure []string `toml:"on_failure"`
	Timeout   duration `toml:"timeout"`
}

type serverSection struct {
	DefaultsFile absolute           `toml:"defaults_file"`
	Socket       absolute           `toml:"socket"`
	Host         string             `toml:"host"`
	Port         int                `toml:"port"`
	User         string             `toml:"user"`
	Lock         lockMode           `toml:"lock"`
	MaxLock      duration           `toml:"max_lock"`
	Patience     duration           `toml:"patience"`
	KillBlockers bool               `toml:"kill_blockers"`
	SnapshotSize snapshotSize       `toml:"snapshot_size"`
	Prove        proveLevel         `toml:"prove"`
	Mysqld       []string           `toml:"mysqld"`
	Stop         []string           `toml:"stop"`
	Start        []string           `toml:"start"`
	MaxAge       duration           `toml:"max_age"`
	Repository   *repositorySection `toml:"repository"`
	Keep         *Keep              `toml:"keep"`
	Snapshots    *Keep              `toml:"keep_snapshots"`
	Hooks        *hookSection       `toml:"hooks"`
}

type (
	absolute     string
	lockMode     respaldo.LockMode
	duration     time.Duration
	snapshotSize int64
	proveLevel   respaldo.ProveLevel
)

func (a *absolute) UnmarshalText(text []byte) error {
	if !filepath.IsAbs(string(text)) {
		return fmt.Errorf("%q is not an absolute path", text)
	}
	*a = absolute(filepath.Clean(string(text)))
	return nil
}

func (l *lockMode) UnmarshalText(text []byte) error {
	mode, err := ParseLock(string(text))
	*l = lockMode(mode)
	return err
}

func (p *proveLevel) UnmarshalText(text []byte) error {
	level, err := ParseProve(string(text))
	*p = proveLevel(level)
	return err
}

func (d *duration) UnmarshalText(text []byte) error {
	value, err := time.ParseDuration(string(text))
	if err != nil || value <= 0 {
		return fmt.Errorf(`%q is not a duration like "500ms" or "2s"`, text)
	}
	*d = duration(value)
	return nil
}

func (s *snapshotSize) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*s = 0
		return nil
	}
	size, err := ParseSize(string(text))
	*s = snapshotSize(size)
	return err
}

// ParseLock reads a lock mode as the user writes it.
func ParseLock(text string) (respaldo.LockMode, error) {
	return oneOf(text, respaldo.LockAuto, respaldo.LockNone, respaldo.LockBackup, respaldo.LockGlobal)
}

// ParseProve reads a prove level as the user writes it.
func ParseProve(text string) (respaldo.ProveLevel, error) {
	return oneOf(text, respaldo.ProveQuick, respaldo.ProveFull, respaldo.ProveNone)
}

func oneOf[T ~string](text string, choices ...T) (T, error) {
	var words []string
	for _, c := range choices {
		if text == string(c) {
			return c, nil
		}
		words = append(words, fmt.Sprintf("%q", c))
	}
	return "", fmt.Errorf("%q is none of %s", text, strings.Join(words, ", "))
}

// parse turns the file into a Config; an empty path is a file that does not exist.
func parse(path string, text []byte) (*Config, error) {
	var doc document
	if path != "" {
		if err := checkFormat(path, text); err != nil {
			return nil, err
		}
		decoder := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
		if err := decoder.Decode(&doc); err != nil {
			return nil, explain(path, text, err)
		}
		if err := doc.validate(path); err != nil {
			return nil, err
		}
	}
	c := defaults()
	c.Path = path
	override(&c.StateDir, doc.StateDir)
	override(&c.RunDir, doc.RunDir)
	override(&c.CacheDir, doc.CacheDir)
	override(&c.LVMConfig, doc.LVMConfig)
	override(&c.Thresholds.PoolData, doc.Thresholds.PoolData)
	override(&c.Thresholds.PoolMetadata, doc.Thresholds.PoolMetadata)
	override(&c.Thresholds.Warn, doc.Thresholds.Warn)
	override(&c.PrometheusFile, doc.Prometheus)
	c.Repository = doc.Repository.resolve(Repository{})
	if len(doc.Server) == 0 {
		doc.Server = map[string]serverSection{DefaultServer: {}}
	}
	c.servers = map[string]Server{}
	for name, s := range doc.Server {
		c.servers[name] = s.resolve(name, c.Repository, doc)
	}
	return &c, nil
}

// override assigns what was given; every zero value means "not given".
func override[T, U comparable](to *T, from U) {
	var zero U
	if from != zero {
		reflect.ValueOf(to).Elem().Set(reflect.ValueOf(from).Convert(reflect.TypeFor[T]()))
	}
}

func (r *repositorySection) resolve(common Repository) Repository {
	if r == nil {
		return common
	}
	return Repository{URL: r.URL, PasswordFile: string(r.PasswordFile)}
}

// resolve fills in what the document says for all servers.
func (s serverSection) resolve(name string, repository Repository, common document) Server {
	server := Server{
		Name:         name,
		DefaultsFile: string(s.DefaultsFile),
		Socket:       string(s.Socket),
		Host:         s.Host,
		Port:         s.Port,
		User:         s.User,
		Lock:         respaldo.LockAuto,
		MaxLock:      time.Second,
		Patience:     time.Minute,
		KillBlockers: s.KillBlockers,
		SnapshotSize: int64(s.SnapshotSize),
		Prove:        respaldo.ProveQuick,
		Mysqld:       s.Mysqld,
		Stop:         s.Stop,
		Start:        s.Start,
		MaxAge:       26 * time.Hour, // a night and a slow backup
		Repository:   s.Repository.resolve(repository),
	}
	override(&server.Lock, s.Lock)
	override(&server.MaxLock, s.MaxLock)
	override(&server.Patience, s.Patience)
	override(&server.Prove, s.Prove)
	override(&server.MaxAge, s.MaxAge)
	server.Keep, server.KeepSnapshots = s.Keep.resolve(common.Keep), s.Snapshots.resolve(common.Snapshots)
	server.Hooks = s.Hooks.resolve(common.Hooks)
	return server
}

func (k *Keep) resolve(common *Keep) Keep {
	if k == nil {
		k = common
	}
	if k == nil {
		return Keep{}
	}
	return *k
}

func (h *hookSection) resolve(common *hookSection) Hooks {
	if h == nil {
		h = common
	}
	hooks := Hooks{Timeout: 5 * time.Minute}
	if h != nil {
		hooks.Before, hooks.After, hooks.OnFailure = h.Before, h.After, h.OnFailure
		override(&hooks.Timeout, h.Timeout)
	}
	return hooks
}

// checkFormat comes before everything else: a file of a newer format may well have keys
// that are unknown here, and the error should not be about those.
func checkFormat(path string, text []byte) error {
	var only struct {
		Format int `toml:"format"`
	}
	if err := toml.Unmarshal(text, &only); err != nil {
		return explain(path, text, err)
	}
	switch {
	case only.Format > Format:
		return usage(fmt.Sprintf("%s: format is %d, this respaldo knows %d", path, only.Format, Format), "use the newer respaldo that it was written for")
	case only.Format < 1:
		return usage(path+": format is missing", fmt.Sprintf("write `format = %d` at the top", Format))
	}
	return nil
}

// serverName fits into names of logical volumes, LVM tags and files.
var serverName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func (d *document) validate(path string) error {
	wrong := func(key, format string, args ...any) error {
		return usage(fmt.Sprintf("%s: %s: %s", path, key, fmt.Sprintf(format, args...)), "")
	}
	if err := d.Repository.validate(); err != nil {
		return wrong("[repository]", "%v", err)
	}
	if err := d.Keep.validate(); err != nil {
		return wrong("[keep]", "%v", err)
	}
	if err := d.Snapshots.validate(); err != nil {
		return wrong("[keep_snapshots]", "%v", err)
	}
	for key, value := range map[string]float64{"pool_data": d.Thresholds.PoolData, "pool_metadata": d.Thresholds.PoolMetadata, "warn": d.Thresholds.Warn} {
		if value < 0 || value > 1 {
			return wrong("[thresholds] "+key, "%v is not between 0 and 1", value)
		}
	}
	if err := d.Hooks.validate(); err != nil {
		return wrong("[hooks]", "%v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Server)) {
		section, s := "[server."+name+"]", d.Server[name]
		if !serverName.MatchString(name) {
			return wrong(section, "a server's name has 1 to 32 lower-case letters, digits and dashes, and does not begin with a dash")
		}
		if s.Socket != "" && s.Host != "" {
			return wrong(section, "give socket or host, not both")
		}
		if s.Port < 0 || s.Port > 65535 {
			return wrong(section+" port", "%d is no TCP port", s.Port)
		}
		if !isProgram(s.Mysqld) {
			return wrong(section+" mysqld", "it must begin with the absolute path of a program")
		}
		if (len(s.Stop) == 0) != (len(s.Start) == 0) {
			return wrong(section, "give stop and start, or neither")
		}
		if err := s.Repository.validate(); err != nil {
			return wrong("[server."+name+".repository]", "%v", err)
		}
		if err := s.Keep.validate(); err != nil {
			return wrong("[server."+name+".keep]", "%v", err)
		}
		if err := s.Snapshots.validate(); err != nil {
			return wrong("[server."+name+".keep_snapshots]", "%v", err)
		}
		if err := s.Hooks.validate(); err != nil {
			return wrong("[server."+name+".hooks]", "%v", err)
		}
	}
	return nil
}

func (r *repositorySection) validate() error {
	if r != nil && r.URL == "" {
		return errors.New("url is missing")
	}
	return nil
}

// isProgram tells that an argv, if given, names its program beyond doubt.
func isProgram(argv []string) bool {
	return argv == nil || len(argv) > 0 && filepath.IsAbs(argv[0])
}

func (h *hookSection) validate() error {
	if h == nil {
		return nil
	}
	for key, argv := range map[string][]string{"before": h.Before, "after": h.After, "on_failure": h.OnFailure} {
		if !isProgram(argv) {
			return fmt.Errorf("%s: it must begin with the absolute path of a program", key)
		}
	}
	return nil
}

func (k *Keep) validate() error {
	if k == nil {
		return nil
	}
	for key, value := range map[string]int{"last": k.Last, "hourly": k.Hourly, "daily": k.Daily, "weekly": k.Weekly, "monthly": k.Monthly} {
		if value < 0 {
			return fmt.Errorf("%s: %d is negative", key, value)
		}
	}
	if *k == (Keep{}) {
		return errors.New("it keeps nothing; leave the section out to keep everything")
	}
	return nil
}

func usage(what, hint string) error {
	return &respaldo.Error{Kind: respaldo.Usage, What: what, Hint: hint}
}
