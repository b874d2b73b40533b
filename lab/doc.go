// Package lab boots user-mode Linux guests: a real kernel with real LVM, Btrfs and
// servers as an ordinary process, on machines without root, virtualisation or
// device-mapper. Tests of what needs root run inside, driven from outside by go test.
//
// A guest has one CPU, on which starting programs and system calls are many times slower
// than on the host; arithmetic and disk are nearly as fast. What runs inside should be
// one Go program, without shell loops and without polling.
//
// Inside, /cache is the host's cache folder with the servers, /opt/lab on the PATH holds
// the programs built for it, /src the module's source (all three read-only), /out the
// guest's own folder on the host. The disks are /dev/ubdb, /dev/ubdc and so on.
package lab
