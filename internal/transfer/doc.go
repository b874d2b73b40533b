// Package transfer brings a tree of files to another node: a sender and a receiver that
// speak over a pair of pipes, and OpenSSH's own program to make such pipes.
//
// One mechanism sends, resumes and refreshes. For a piece of a file the receiver says by
// their hashes which blocks it has; the sender sends those that differ, compressed. Every
// block is checked against its hash before it is written, every piece when it is complete.
// Whatever was cut short, the same again sends the rest. The receiver keeps no state but
// the files and the mark of an incomplete target.
package transfer
