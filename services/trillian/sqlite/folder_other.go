//go:build !linux

package sqlite

import (
	"errors"
	"os"
)

// lockFolder fails where nobody has checked how the system tells a network file system and what its fsync means.
func lockFolder(string) (*os.File, error) {
	return nil, errors.New("storage in SQLite is supported on Linux only")
}
