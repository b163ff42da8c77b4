//go:build !linux

package folder

import (
	"errors"
	"os"
)

var errUnsupported = errors.New("folders can be taken on Linux only")

// Lock fails where nobody has checked how the system tells a network file system and what its fsync means.
func Lock(string) (*os.File, error) { return nil, errUnsupported }

// LockToRead fails for the same reason.
func LockToRead(string) (*os.File, error) { return nil, errUnsupported }

// Check fails for the same reason.
func Check(string) error { return errUnsupported }
