// Package client signs with a sigbox instance and verifies what was signed with
// one. It is the library under the sigbox command.
//
// Trust has one source: an instance that was pinned by its first TUF root (see
// Home.Init), or a trusted_root.json given by hand. There is no default
// instance, and nothing is trusted on first use.
//
// Verification fails closed. It always needs an identity and an issuer, a
// signed certificate timestamp, a log entry with its inclusion proof, and a
// time that a timestamp authority or the log vouches for. Whatever is read
// from a registry, a server or a file has a limit.
package client
