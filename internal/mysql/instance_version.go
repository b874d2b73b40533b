package mysql

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// versionTimeout bounds how long a server program may take to say its version.
const versionTimeout = 30 * time.Second

// programVersion is "/usr/sbin/mysqld  Ver 8.0.36-28 for Linux on x86_64 (Percona Server …)".
var programVersion = regexp.MustCompile(`(?m)\bVer (\S+)(.*)$`)

// upgrades asks the program for its version and tells whether it is newer than the data,
// as after a patch upgrade of the packages. Another series, or an older release, would
// fail the image for what is not its fault: refused. A program that does not say what it
// is will be heard when it starts.
func (img *image) upgrades(ctx context.Context, request InstanceRequest) (bool, error) {
	program := request.program()
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	// Our own environment may hold passwords, and the program runs as another user.
	argv := slices.Concat([]string{"env", "-i"}, program.Env, program.Argv, []string{"--no-defaults", "--version"})
	cmd := run.Cmd{Argv: argv, Dir: "/", Quiet: true, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(img.uid), Gid: uint32(img.gid)}
	}
	out, err := run.Local{Log: request.Log}.Run(ctx, cmd)
	said := programVersion.FindStringSubmatch(string(out.Stdout))
	if err != nil || said == nil {
		return false, nil
	}
	have, err := respaldo.ParseVersion(said[1], said[2])
	if err != nil {
		return false, nil
	}
	want, path := request.Manifest.Version, program.Argv[len(program.Argv)-1]
	switch {
	case have.Flavor != want.Flavor || have.Major != want.Major || have.Minor != want.Minor:
		return false, refused(fmt.Sprintf("the image is of %s, and %s is %s", want, path, have),
			fmt.Sprintf("a server of the same series is needed: install %d.%d, or restart the origin if its packages were upgraded and back it up again", want.Major, want.Minor))
	case have.Patch < want.Patch:
		return false, refused(fmt.Sprintf("the image is of %s, and %s is the older %s", want, path, have),
			"install "+want.String()+" or a later release of that series")
	}
	return have.Patch > want.Patch, nil
}
