package e2etest

import (
	"bytes"
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

// Build compiles one of the product's programs as it is released (CGO off,
// paths trimmed) and returns its file. Running the built program is a test of
// its own: two upstream servers that claim the same flag panic at start.
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
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "./cmd/"+program)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("building %s: %v\n%s", program, err, said.Bytes())
	}
	return out
}
