package e2etest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// AirGap runs the other tests of the package again, whole, in a network
// namespace of their own where only loopback exists: the appliance, the
// registry and the clients are all inside. Programs that the tests build must
// have been built by then: there is nothing to download from.
func AirGap(t *testing.T) {
	if os.Getenv(modeEnv) == modeAirGap {
		t.Fatal("already inside: the outer run excludes this test")
	}
	args := []string{"-test.v", "-test.failfast", "-test.skip=^" + t.Name() + "$"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(deadline.Add(-10*time.Second)).String())
	}
	run := func(flags uintptr) ([]byte, error) {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), modeEnv+"="+modeAirGap, scratchEnv+"="+scratchDir(t))
		cmd.SysProcAttr = namespaces(flags)
		return cmd.CombinedOutput()
	}
	out, err := run(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET)
	if refused(err) && os.Geteuid() == 0 {
		out, err = run(syscall.CLONE_NEWNET) // what root may do where users may not
	}
	if refused(err) {
		t.Fatalf("this machine lets nobody make a network namespace (%v), so that nothing dials out cannot be shown here; "+
			"allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0) or run as root with CAP_SYS_ADMIN", err)
	}
	if err != nil {
		t.Fatalf("with loopback only: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// refused tells whether the kernel would not make the namespace; a test that
// failed inside is an *exec.ExitError instead.
func refused(err error) bool {
	var exit *exec.ExitError
	return err != nil && !errors.As(err, &exit)
}

// namespaces asks for namespaces in which this user is root.
func namespaces(flags uintptr) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if flags&syscall.CLONE_NEWUSER != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// enterAirGap brings loopback up and shows that nothing else is there and that
// an attempt to leave is seen. The function it returns tells the attempts made
// since then.
func enterAirGap() (func() []string, error) {
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("bringing loopback up: %w", err)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	if len(interfaces) != 1 || interfaces[0].Flags&net.FlagLoopback == 0 {
		return nil, fmt.Errorf("interfaces other than loopback: %v", interfaces)
	}
	before, err := attempts()
	if err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("tcp", "192.0.2.1:443", time.Second); err == nil {
		c.Close()
		return nil, errors.New("192.0.2.1 answered")
	}
	base, err := attempts()
	if err != nil {
		return nil, err
	}
	if base["Ip OutNoRoutes"] == before["Ip OutNoRoutes"] {
		return nil, errors.New("the kernel does not count attempts to leave")
	}
	return func() []string {
		now, err := attempts()
		if err != nil {
			return []string{err.Error()}
		}
		var found []string
		for name, n := range now {
			if n != base[name] {
				found = append(found, fmt.Sprintf("%d times by the kernel's count %s", n-base[name], name))
			}
		}
		return found
	}, nil
}

// attempts reads the namespace's counters of packets that had nowhere to go:
// no route (any public address), or a port of loopback where nobody listens (a
// name server that the machine's configuration puts on 127.0.0.53).
func attempts() (map[string]uint64, error) {
	counts := map[string]uint64{}
	f, err := os.Open("/proc/self/net/snmp")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(names) == 0 || names[0] != fields[0] {
			names = fields
			continue
		}
		for i, name := range names {
			full := strings.TrimSuffix(fields[0], ":") + " " + name
			if full == "Ip OutNoRoutes" || full == "Udp NoPorts" {
				if counts[full], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(counts) != 2 {
		return nil, fmt.Errorf("/proc/self/net/snmp has only %v", counts)
	}
	six, err := os.ReadFile("/proc/self/net/snmp6")
	if errors.Is(err, os.ErrNotExist) {
		return counts, nil // a kernel without IPv6
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(six)) {
		if f := strings.Fields(line); len(f) == 2 && (f[0] == "Ip6OutNoRoutes" || f[0] == "Udp6NoPorts") {
			if counts[f[0]], err = strconv.ParseUint(f[1], 10, 64); err != nil {
				return nil, err
			}
		}
	}
	return counts, nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
