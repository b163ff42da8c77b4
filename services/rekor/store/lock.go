package store

import (
	"os"
	"syscall"
)

// flock takes the file for this process until it is closed. It is not SQLite's
// own lock, which the several connections here must share.
func flock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
