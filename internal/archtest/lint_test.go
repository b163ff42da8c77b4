package archtest

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/e2e/stock"
)

// sources are the folders with Go of ours.
var sources = []string{"client", "cmd", "e2e", "internal", "scripts", "services", "tuf"}

func TestFormatted(t *testing.T) {
	root := stock.ModuleRoot(t)
	stock.Track(t, root)
	cmd := exec.Command(stock.Path(t, stock.Gofumpt), append([]string{"-l"}, sources...)...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("gofumpt: %v\n%s", err, out)
	}
	for file := range strings.Lines(string(out)) {
		t.Errorf("gofumpt would change %s", file)
	}
}

func TestStaticcheck(t *testing.T) {
	root := stock.ModuleRoot(t)
	stock.Track(t, root)
	cmd := exec.Command(stock.Path(t, stock.Staticcheck), "./...")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("staticcheck: %v\n%s", err, out)
	}
}
