package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Volumes of their own, each a small memory file system, in a mount namespace
// that outlives the processes in it. Nobody else sees them, and no root is
// needed.

const (
	holderEnv   = "SIGBOX_FAULTS_VOLUMES" // folders, parted by colons
	volumeBytes = 96 << 20
)

// hold is the process that keeps the volumes until its standard input ends.
func hold(dirs []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	for _, dir := range dirs {
		old, err := os.MkdirTemp("", "volume-")
		if err != nil {
			return err
		}
		if err := copyTree(old, dir); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", volumeBytes)); err != nil {
			return fmt.Errorf("mounting a volume on %s: %w", dir, err)
		}
		if err := errors.Join(copyTree(dir, old), os.RemoveAll(old)); err != nil {
			return err
		}
	}
	fmt.Println("held")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// onVolumes makes the next starts see each of the folders on a volume of its
// own. release gives the volumes up; view is the way to their files.
func (s *stage) onVolumes(names ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var dirs []string
	for _, n := range names {
		dirs = append(dirs, s.path(n))
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), holderEnv+"="+strings.Join(dirs, ":"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	release := func() { stdin.Close(); cmd.Wait() }
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "held\n" {
		release()
		return fmt.Errorf("no volumes: %q: %w", line, err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	s.before = []string{"nsenter", "--target", pid, "--user", "--mount", "--preserve-credentials", "--"}
	s.inside = func(path string) string { return "/proc/" + pid + "/root" + path }
	s.release = release
	return nil
}

// spaces fills one volume under load: to below the reserve that the
// configuration keeps, and to the last byte, with no reserve.
func spaces(volumes []string) func(int, *rand.Rand) []point {
	return func(n int, r *rand.Rand) (list []point) {
		for len(list) < n {
			for _, volume := range volumes {
				for _, c := range []struct {
					name, config string
					leave        int64
				}{
					{"below the reserve", "", 8 << 20},
					{"to the last byte", "limits:\n  min_free_bytes: 1\n", 0},
					{"all but some pages", "limits:\n  min_free_bytes: 1\n", int64(1+r.IntN(64)) << 12},
				} {
					list = append(list, point{fault: "disk full, " + c.name, where: "volume " + volume, strike: func(s *stage) error {
						return s.fillUp(volume, c.config, c.leave)
					}})
				}
			}
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list
	}
}

func (s *stage) fillUp(volume, config string, leave int64) error {
	if err := s.onVolumes(volume); err != nil {
		return err
	}
	if err := s.configure(config); err != nil {
		return err
	}
	if err := s.open(); err != nil {
		return err
	}
	s.load(context.Background(), faultWorkers, 2)
	ballast := s.view(volume, "ballast")
	if err := fill(ballast, leave); err != nil {
		return err
	}
	s.load(context.Background(), faultWorkers, 4*faultLoad)
	defer s.kill()
	if !s.running() {
		if err := s.explained(&exited{s.process.ProcessState.ExitCode(), s.said()}); err != nil {
			return err
		}
		return os.Remove(ballast)
	}
	// With space again it must go on by itself, or say that it will not.
	if err := os.Remove(ballast); err != nil {
		return err
	}
	client := s.signer(1)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		last := client.sign(context.Background())
		switch {
		case last == nil:
			return nil
		case !s.running():
			return s.explained(&exited{s.process.ProcessState.ExitCode(), s.said()})
		case time.Now().Before(deadline):
			continue
		case s.ready(startLimit) == nil:
			return breaks(unexplained, "there is space again, it says it is ready and signs nothing: %v", last)
		default:
			return nil // it says that it has to be started anew
		}
	}
}

// fill writes a file until only so many bytes are left on its disk.
func fill(path string, leave int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
			return err
		}
		free := int64(st.Bavail) * st.Bsize
		if free <= leave {
			return nil
		}
		if _, err := f.Write(block[:min(int64(len(block)), free-leave)]); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
