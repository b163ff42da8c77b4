package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

// The machine's clock is nobody's to change, and a static program asks the
// kernel with nobody between. So the product is compiled once more, from the same
// source, with a standard library whose time.Now steps when it is told to.

// buildStepping compiles that sigboxd.
func buildStepping(t *testing.T) *e2etest.Program {
	t.Helper()
	root := stock.ModuleRoot(t)
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	std := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source := string(must(os.ReadFile(filepath.Join(std, "time.go")))(t))
	const asks = "\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(source, asks) != 1 {
		t.Fatalf("time.Now of this Go is not the one that can be made to step")
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, "time.go")
	source = strings.Replace(source, asks, asks+"\tsec = stepped(sec)\n", 1)
	overlay := filepath.Join(dir, "overlay.json")
	plan := must(json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(std, "time.go"): changed,
		filepath.Join(std, "step.go"): must(filepath.Abs(filepath.Join("testdata", "clock", "step.go.txt")))(t),
	}}))(t)
	for path, data := range map[string][]byte{changed: []byte(source), overlay: plan} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "sigboxd")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-o", program, "./cmd/sigboxd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("building with a clock that steps: %v\n%s", err, said.Bytes())
	}
	return e2etest.NewProgram(t, program)
}

// steps are jumps of the wall clock by ten minutes, while the process serves and
// while it is stopped.
func steps(stepping *e2etest.Program) func(int, *rand.Rand) []point {
	return func(n int, r *rand.Rand) (list []point) {
		for len(list) < n {
			for _, seconds := range []int{600, -600} {
				after := 300 + r.IntN(500)
				list = append(list, point{
					fault: fmt.Sprintf("clock steps by %+d s", seconds), where: fmt.Sprintf("%d ms after the start", after),
					strike: func(s *stage) error {
						program := *stepping
						program.Env = append(program.Env[:len(program.Env):len(program.Env)], fmt.Sprintf("SIGBOX_CLOCK_STEP=%d %d", seconds, after))
						s.program = &program
						err := s.open()
						if err != nil {
							return err
						}
						s.load(context.Background(), faultWorkers, 4*faultLoad)
						// What was made before the step is too old after it, or
						// not yet valid; that is the client's to be told.
						s.stepped, s.ledger.unexplained = true, nil
						s.program = nil // and when it starts again, the clock is right
						return nil
					},
				})
			}
		}
		return list
	}
}
