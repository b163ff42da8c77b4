package e2etest

import (
	"debug/buildinfo"
	"testing"

	"github.com/sigbox/sigbox/e2e/stock"
)

// HasVersion builds a stock program and demands that it is the version that the
// tests claim to be about, by what the linker recorded, and that it runs.
func HasVersion(t *testing.T, tool stock.Tool, module, version string) {
	t.Helper()
	path := stock.Path(t, tool)
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := info.Main; m.Path != module || m.Version != version || m.Replace != nil {
		t.Errorf("%s is %s %s (replaced by %v), not %s %s", path, m.Path, m.Version, m.Replace, module, version)
	}
	NewProgram(t, path).OK(t, "--help")
}
