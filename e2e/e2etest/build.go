package e2etest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sigbox/sigbox/e2e/stock"
)

// scratch holds what a test process keeps between its tests: the product's
// programs. Main removes it.
var scratch struct {
	sync.Mutex
	dir string
}

// scratchEnv lends the scratch folder to the run inside the air gap.
const scratchEnv = "SIGBOX_E2E_SCRATCH"

func scratchDir(t testing.TB) string {
	t.Helper()
	scratch.Lock()
	defer scratch.Unlock()
	if shared := os.Getenv(scratchEnv); shared != "" {
		return shared
	}
	if scratch.dir == "" {
		dir, err := os.MkdirTemp("", "sigbox-e2e-")
		if err != nil {
			t.Fatal(err)
		}
		scratch.dir = dir
	}
	return scratch.dir
}

func removeScratch() {
	if scratch.dir != "" {
		os.RemoveAll(scratch.dir)
	}
}

var building sync.Mutex

// Build compiles one of the product's programs as it is released (CGO off, no
// symbols; only paths are not trimmed, so that the compiler's cache is shared
// with go test's own builds) and returns its file. Running the built program is
// a test of its own: two upstream servers that claim the same flag panic at
// start.
func Build(t testing.TB, program string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	out := filepath.Join(scratchDir(t), program)
	if _, err := os.Stat(out); err == nil {
		return out
	}
	root := stock.ModuleRoot(t)
	stock.Track(t, root)
	// The go command does not link again what is up to date, so that the next
	// package of tests has it at once.
	kept := filepath.Join(stock.CacheDir(t), fmt.Sprintf("product-%x", sha256.Sum256([]byte(root)))[:24], program)
	lock := stock.LockBuilds(t)
	defer lock.Close()
	Compile(t, root, kept, "./cmd/"+program, "-ldflags=-s -w")
	// A copy: another run may build while this one's tests go on.
	data, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

// Compile compiles a program of the module at root.
func Compile(t testing.TB, root, out, pkg string, flags ...string) {
	t.Helper()
	args := append([]string{"build", "-o", out}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, said.Bytes())
	}
}
