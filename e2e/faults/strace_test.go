package faults

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// straced are the system calls that change what is on a disk, or tell the world:
// write is for sockets and small files, pwrite64 for databases, logs and records.
var straced = []string{"write", "pwrite64", "fsync", "fdatasync", "ftruncate", "renameat", "unlink", "unlinkat", "linkat"}

// failing are those of them that can fail for the disk's sake. Nearly every write
// is to a socket: one that fails there and stays open is no fault that occurs.
var failing = []string{"pwrite64", "fsync", "fdatasync", "ftruncate", "renameat", "unlink", "unlinkat", "linkat"}

// needStrace demands strace, and installs it where that is allowed.
func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err == nil {
		return
	}
	if os.Getuid() != 0 {
		t.Fatal("these tests need strace and are not root: apt-get install strace")
	}
	t.Log("installing strace with apt-get")
	for _, args := range [][]string{{"update"}, {"install", "-y", "--no-install-recommends", "strace"}} {
		if out, err := exec.Command("apt-get", args...).CombinedOutput(); err != nil {
			t.Fatalf("apt-get %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// calls is how often each system call was made in a run by the thread that made
// it most often: strace counts for each thread by itself.
type calls map[string]int

// record counts the system calls of one start and some load.
func (sc *scene) record(t *testing.T) calls {
	t.Helper()
	s := must(sc.stage(t.TempDir()))(t)
	trace := filepath.Join(t.TempDir(), "trace")
	s.before = []string{"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", trace, "-e", "signal=none", "-e", "trace=" + strings.Join(straced, ",") + ",renameat2,rename,link"}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	s.load(t.Context(), faultWorkers, faultLoad)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	f := must(os.Open(trace))(t)
	defer f.Close()
	byThread := map[string]int{}
	most, total := calls{}, calls{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		thread, rest, _ := strings.Cut(lines.Text(), " ")
		call, _, ok := strings.Cut(strings.TrimSpace(rest), "(")
		if !ok || strings.HasPrefix(call, "<") {
			continue
		}
		byThread[thread+call]++
		total[call]++
		most[call] = max(most[call], byThread[thread+call])
	}
	t.Logf("system calls of a recorded run: %v; the most of one thread: %v", total, most)
	for call := range total {
		known := false
		for _, s := range straced {
			known = known || s == call
		}
		if !known {
			t.Errorf("%s is called, and no fault is injected into it", call)
		}
	}
	return most
}

// injecting makes the next start run under strace with a fault at the nth call
// of a thread.
func (s *stage) injecting(call, fault, n string) {
	s.before = []string{
		"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "signal=none",
		"-e", "trace=" + call, "-e", fmt.Sprintf("inject=%s:%s:when=%s", call, fault, n),
	}
}
