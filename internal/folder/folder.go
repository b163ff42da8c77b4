// Package folder takes folders that hold what must not be lost: for one process alone, and only on file systems whose locks and whose
// fsync can be relied on.
package folder

import "errors"

// Reasons for which Lock refuses a folder. They are wrapped with its name.
var (
	// ErrLocked: another process has the folder.
	ErrLocked = errors.New("in use by another process")
	// ErrReadOnly: the folder can not be written.
	ErrReadOnly = errors.New("can not be written")
	// ErrNetwork: locks and fsync are another machine's or another process's word.
	ErrNetwork = errors.New("on a network or user-space file system")
)
