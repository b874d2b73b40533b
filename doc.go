// Package respaldo is the vocabulary of the program: the nouns that every other
// package speaks in, and nothing that does work.
//
// A Server's files lie in a Layout of places on volumes. Quiescing a server makes
// the coming Snapshot exact; a snapshot, opened read-only, is an Image; an image is
// saved into a Repository as a Backup, proved by starting a private Instance over a
// writable view of it. Coordinates say which binlog position an image corresponds to.
//
// It imports the standard library only. ARCHITECTURE.md maps the rest of the house.
package respaldo
