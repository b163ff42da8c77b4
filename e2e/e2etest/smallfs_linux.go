package e2etest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	smallFSDir  = "SIGBOX_E2E_FS_DIR"
	smallFSSize = "SIGBOX_E2E_FS_OPTIONS"
	smallFSExec = "SIGBOX_E2E_FS_EXEC"
)

// OnSmallFS makes the instance's next starts happen with its folder's parent on
// a memory file system of its own, with mount(8) options such as "size=32m" or
// "ro". What lies in that folder is copied there first. The file system is in a
// mount namespace: nobody else sees it and no root is needed. It is gone with
// the process; Inside is the way to its files until then.
func (i *Instance) OnSmallFS(t testing.TB, options string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	i.server.Env = append(slices.Clip(i.server.Env),
		modeEnv+"="+modeSmallFS,
		smallFSDir+"="+filepath.Dir(i.Dir),
		smallFSSize+"="+options,
		smallFSExec+"="+i.sigboxd.Path)
	i.server.Path = self
	i.attr = namespaces(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS)
}

// Inside is the path by which the test reaches a file that the instance sees.
func (i *Instance) Inside(path string) string {
	return "/proc/" + strconv.Itoa(i.PID()) + "/root" + path
}

// enterSmallFS mounts the file system and becomes the program. It returns only
// if it cannot.
func enterSmallFS() error {
	dir, options, program := os.Getenv(smallFSDir), os.Getenv(smallFSSize), os.Getenv(smallFSExec)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// The old content stays reachable through this descriptor's path.
	old, err := os.MkdirTemp("", "old-")
	if err != nil {
		return err
	}
	defer os.Remove(old)
	if err := unix.Mount(dir, old, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("keeping %s: %w", dir, err)
	}
	data, readOnly := options, options == "ro"
	if readOnly {
		data = "size=256m"
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, data); err != nil {
		return fmt.Errorf("mounting a small file system: %w", err)
	}
	if err := copyTree(dir, old); err != nil {
		return fmt.Errorf("filling it: %w", err)
	}
	if err := unix.Unmount(old, unix.MNT_DETACH); err != nil {
		return err
	}
	if readOnly {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	if err := os.Remove(old); err != nil {
		return err
	}
	return unix.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}

// copyTree copies folders and files with their permissions, which os.CopyFS
// does not keep.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case rel == ".":
			return nil
		case d.IsDir():
			return os.Mkdir(target, info.Mode().Perm())
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(target, data, info.Mode().Perm())
		default:
			return nil // a socket that nobody serves any more
		}
	})
}
