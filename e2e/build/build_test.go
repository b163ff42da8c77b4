// Package build holds what is promised of the programs themselves: they build
// without C, come out the same twice, and the client is small. It is also the
// first to build them, apart from the tests that need them running.
package build

import (
	"crypto/sha256"
	"debug/buildinfo"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

func TestPrograms(t *testing.T) {
	for _, program := range []string{"sigboxd", "sigbox"} {
		t.Run(program, func(t *testing.T) {
			path := e2etest.Build(t, program)
			info, err := buildinfo.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range info.Settings {
				if s.Key == "CGO_ENABLED" && s.Value != "0" {
					t.Errorf("built with CGO_ENABLED=%s", s.Value)
				}
			}
			p := e2etest.NewProgram(t, path)
			p.OK(t, "version")
			if r := p.OK(t, "--help"); !strings.Contains(r.Stdout, "Usage:") {
				t.Errorf("no help on standard output: %v", r)
			}
			if r := p.Run(t); r.Code != 2 {
				t.Errorf("without arguments, want exit code 2: %v", r)
			}
		})
	}
}

// TestSmallClient: a key holder's laptop carries it alone.
func TestSmallClient(t *testing.T) {
	info, err := os.Stat(e2etest.Build(t, "sigbox"))
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(40_000_000); info.Size() > most {
		t.Errorf("sigbox has %d bytes, more than %d", info.Size(), most)
	}
}

// TestReproducible builds the client in two places and compares the bytes.
func TestReproducible(t *testing.T) {
	root := stock.ModuleRoot(t)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Symlink(root, elsewhere); err != nil {
		t.Fatal(err)
	}
	var sums [][sha256.Size]byte
	for _, dir := range []string{root, elsewhere} {
		out := filepath.Join(t.TempDir(), "sigbox")
		e2etest.Compile(t, dir, out, "./cmd/sigbox", "-trimpath")
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sha256.Sum256(data))
	}
	if sums[0] != sums[1] {
		t.Error("two builds of sigbox differ")
	}
}
