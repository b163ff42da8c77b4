// Package tuf makes and renews the TUF repository that carries an instance's
// trust: which certificate authority, logs and timestamp authority are
// believed, and where they are.
//
// It is pure: signers, a time and the previous repository in, files out. Only
// Load and Save touch a disk. Root and targets are signed where their keys are
// (once, then at each ceremony); snapshot and timestamp are signed by Renew
// with keys that stay online, well before they expire.
//
// Everything follows the TUF specification 1.0 (consistent snapshots, so that
// a reader never sees half an update) with metadata of go-tuf/v2.
package tuf
