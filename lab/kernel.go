package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo/lab/debian"
	"github.com/respaldo-backup/respaldo/lab/servers"
)

// kernelSuite is later than the guest's release: since Linux 6.16, user-mode Linux can run
// programs under a seccomp filter instead of ptrace, which makes system calls several times
// faster (seccomp=auto: where the host forbids such filters, it is ptrace all the same).
const kernelSuite = "sid"

// The kernel's program wants a later C library than the host may have. It is loaded at a
// fixed address and starts itself again, so calling it through a loader of our own confuses
// it: instead the loader that its header names is made one beside it. A relative path there
// is relative to the working directory.
const (
	stockLoader = "/lib64/ld-linux-x86-64.so.2\x00"
	ourLoader   = "./ld.so\x00"
)

// unpackKernel makes dir/kernel, with the kernel, its loader and its library, and puts its
// modules into the guest's root. The program must be run with its own folder as the working
// directory and in LD_LIBRARY_PATH. It returns the versions of the packages.
func unpackKernel(ctx context.Context, dir, root string) ([]string, error) {
	tmp := filepath.Join(dir, "kernel.tmp")
	files, err := debian.Fetch(ctx, debian.Request{
		State:    filepath.Join(servers.Cache(), "apt"),
		Suites:   []string{kernelSuite},
		Download: []string{"user-mode-linux", "libc6"},
		Dest:     filepath.Join(tmp, "debs"),
	})
	if err != nil {
		return nil, err
	}
	unpacked := filepath.Join(tmp, "root")
	if err := debian.Skeleton(unpacked); err != nil {
		return nil, err
	}
	var versions []string
	for _, f := range files {
		if err := debian.Unpack(ctx, f, unpacked, clutter...); err != nil {
			return nil, err
		}
		versions = append(versions, versionOf(f))
	}
	program, err := os.ReadFile(filepath.Join(unpacked, "usr/bin/linux.uml"))
	if err != nil {
		return nil, err
	}
	if bytes.Count(program, []byte(stockLoader)) != 1 {
		return nil, errors.New("the kernel names its loader in a way that is not known here")
	}
	loader := ourLoader + string(make([]byte, len(stockLoader)-len(ourLoader)))
	kernel := filepath.Join(dir, "kernel")
	if err := os.Mkdir(kernel, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(kernel, "linux"), bytes.Replace(program, []byte(stockLoader), []byte(loader), 1), 0o755); err != nil {
		return nil, err
	}
	for from, to := range map[string]string{
		"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": filepath.Join(kernel, "ld.so"),
		"usr/lib/x86_64-linux-gnu/libc.so.6":            filepath.Join(kernel, "libc.so.6"),
		"usr/lib/uml":                                   filepath.Join(root, "usr/lib/uml"),
	} {
		if err := os.Rename(filepath.Join(unpacked, from), to); err != nil {
			return nil, fmt.Errorf("%s: %w", kernelSuite, err)
		}
	}
	return versions, os.RemoveAll(tmp)
}
