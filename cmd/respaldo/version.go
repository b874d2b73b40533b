package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the release build: -ldflags "-X main.version=1.2.3".
var version string

type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Built    string `json:"built,omitempty"` // time of the commit
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// buildVersion reads what the linker and Go's own build information know.
func buildVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.time":
				v.Built = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
		if v.Version == "" && info.Main.Version != "(devel)" {
			v.Version = info.Main.Version
		}
	}
	if v.Version == "" {
		v.Version = "devel"
	}
	return v
}

func newVersionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which respaldo this is",
		Long:  "Say which respaldo this is: version, commit, Go release and platform.",
		Example: `  respaldo version
  respaldo version --json`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return a.show(v, func(p *page) {
				p.printf("respaldo %s\n", v.Version)
				t := newFields()
				t.field("commit", v.Commit)
				t.field("of", v.Built)
				t.field("built with", v.Go+" for "+v.Platform)
				p.table(t)
			})
		},
	}
}
