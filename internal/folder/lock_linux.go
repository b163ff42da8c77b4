package folder

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// File systems whose locks or whose fsync are another machine's or another process's word.
var remoteFilesystems = map[int64]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xff534d42: "CIFS",
	0xfe534d42: "SMB2",
	0x01021997: "9P",
	0x65735546: "FUSE",
	0x5346414f: "AFS",
	0x6b414653: "AFS",
	0x00c36400: "Ceph",
	0x73757245: "Coda",
	0x7461636f: "OCFS2",
	0x01161970: "GFS2",
	0x0bd00bd0: "Lustre",
	0x47504653: "GPFS",
	0x19830326: "BeeGFS",
	0x786f4256: "vboxsf",
	0x564c:     "NCP",
}

// Lock takes the folder for this process, which may write to it. The lock is the kernel's: it goes with the process, however that
// ends. An error about a folder that is not there satisfies errors.Is(err, fs.ErrNotExist).
func Lock(dir string) (*os.File, error) { return lock(dir, true) }

// LockToRead takes the folder for this process, which only reads it.
func LockToRead(dir string) (*os.File, error) { return lock(dir, false) }

func lock(dir string, write bool) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := take(f, dir, write); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func take(f *os.File, dir string, write bool) error {
	if write {
		if err := Check(dir); err != nil {
			return err
		}
	}
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", dir, ErrLocked)
	} else if err != nil {
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	return nil
}

func checkFilesystem(magic int64) error {
	if name, ok := remoteFilesystems[magic]; ok {
		return fmt.Errorf("%w (%s)", ErrNetwork, name)
	}
	return nil
}

// Check tells whether Lock would take the folder if nobody had it.
func Check(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("reading the file system of %s: %w", dir, err)
	}
	if err := checkFilesystem(int64(uint32(st.Type))); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s: %w: %w", dir, ErrReadOnly, err)
	}
	return nil
}
