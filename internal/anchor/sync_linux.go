package anchor

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// fdatasync leaves out the file's times: the size never changes.
func fdatasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
