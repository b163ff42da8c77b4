// Package stock builds the programs that the end-to-end tests drive and that
// are not ours: cosign of both lines, rekor-cli, the distribution registry, the
// lint tools. Each is a module of its own under tools/, so that none of them
// has a say in the versions the product is built from.
//
// A cold build of cosign takes minutes on a small machine and go test gives a
// package ten. So a program is built once for each tools/*/go.sum and Go
// version and kept in the user's cache folder; one build runs at a time, because
// they share most of their dependencies through Go's build cache; and the
// compiler outlives a test that runs out of time, so that what it has done is
// not lost to the next one.
package stock

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// A Tool names a folder below tools/ and the program it pins.
type Tool struct {
	Module string // the folder below tools/
	Import string // the main package; empty where the module declares only one tool
}

// The programs.
var (
	Cosign3     = Tool{Module: "cosign3"}
	Cosign2     = Tool{Module: "cosign2"}
	RekorCLI    = Tool{Module: "rekor-cli"}
	Registry    = Tool{Module: "registry"}
	Staticcheck = Tool{Module: "lint", Import: "honnef.co/go/tools/cmd/staticcheck"}
	Gofumpt     = Tool{Module: "lint", Import: "mvdan.cc/gofumpt"}
)

func (t Tool) name() string {
	if t.Import != "" {
		return filepath.Base(t.Import)
	}
	return t.Module
}

// margin is what a test keeps of its time to say why it failed.
const margin = 20 * time.Second

// Path is the program's file, built first if that has not been done yet.
func Path(t testing.TB, tool Tool) string {
	t.Helper()
	root := ModuleRoot(t)
	Track(t, root)
	dir := filepath.Join(root, "tools", tool.Module)
	out := filepath.Join(CacheDir(t), tool.name()+"-"+fingerprint(t, dir), tool.name())
	if exists(out) {
		return out
	}
	target := tool.Import
	if target == "" {
		target = "tool"
	}
	fetch(t, dir, target)
	unlock := LockBuilds(t)
	defer unlock.Close()
	if exists(out) {
		return out
	}
	t.Logf("building %s, once; this can take minutes", tool.name())
	build(t, unlock, dir, out, target)
	return out
}

// fetch downloads what the program is made of, which needs no lock.
func fetch(t testing.TB, dir, target string) {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", "{{.Dir}}", target)
	cmd.Dir = dir
	cmd.Env = environ()
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("fetching the sources of %s: %v\n%s", target, err, said.Bytes())
	}
}

// environ has CGO off, as in the product: no compiler but Go's is asked of a
// machine.
func environ() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
}

// build runs the compiler and moves the finished program into place. The lock's
// file is the compiler's too: the lock lasts as long as the compiler does, even
// where this process is killed first.
func build(t testing.TB, lock *os.File, dir, out, target string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(out + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()

	cmd := exec.Command("go", "build", "-o", out+".new", target)
	cmd.Dir = dir
	cmd.Env = environ()
	cmd.Stdout, cmd.Stderr = log, log // a file, not a pipe: go test waits for pipes
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("building %s: %v\n%s", target, err, bytes.TrimSpace(said))
		}
	case <-expiry(t):
		t.Fatalf("building %s in %s goes on in the background and was not finished in time: run the test again", target, dir)
	}
	if err := os.Rename(out+".new", out); err != nil {
		t.Fatal(err)
	}
}

// LockBuilds makes the other builds of this user wait until the file is closed.
func LockBuilds(t testing.TB) *os.File {
	t.Helper()
	path := filepath.Join(CacheDir(t), "build.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	late := expiry(t)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			t.Fatalf("locking %s: %v", path, err)
		}
		select {
		case <-tick.C:
		case <-late:
			f.Close()
			t.Fatalf("another build still holds %s: run the test again", path)
		}
	}
}

// expiry fires shortly before the test's own deadline; never without one.
func expiry(t testing.TB) <-chan time.Time {
	d, ok := t.(interface{ Deadline() (time.Time, bool) })
	if !ok {
		return nil
	}
	deadline, ok := d.Deadline()
	if !ok {
		return nil
	}
	return time.After(time.Until(deadline) - margin)
}

func fingerprint(t testing.TB, dir string) string {
	t.Helper()
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(data)
	}
	fmt.Fprint(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// CacheDir is where built programs are kept from one run to the next.
func CacheDir(t testing.TB) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("a folder to keep built tools in: %v", err)
	}
	dir := filepath.Join(base, "sigbox-tools")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func exists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
