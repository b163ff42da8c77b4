package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

// TestPrintedCommands runs what the quickstart printed, as it stands there, in
// a shell, with an image of the reader's filled in.
func TestPrintedCommands(t *testing.T) {
	i := e2etest.Quickstart(t)
	app := e2etest.Distribution(t).Push(t, "team/app", "as printed")

	bin := t.TempDir()
	for name, path := range map[string]string{
		"cosign": stock.Path(t, stock.Cosign3), "rekor-cli": stock.Path(t, stock.RekorCLI), "sigbox": e2etest.Build(t, "sigbox"),
	} {
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	shell := e2etest.NewProgram(t, "/bin/sh", "PATH="+bin+":"+os.Getenv("PATH"))

	ran := map[string]int{}
	for line := range strings.Lines(i.Said(t)) {
		command, indented := strings.CutPrefix(strings.TrimRight(line, "\n"), "    ")
		name, _, _ := strings.Cut(command, " ")
		if !indented || name != "cosign" && name != "rekor-cli" && name != "sigbox" {
			continue
		}
		command = strings.ReplaceAll(command, "sha256:…", app.Digest.String())
		command = strings.ReplaceAll(command, "IMAGE", app.Ref())
		shell.OK(t, "-ec", command)
		ran[name]++
	}
	if ran["cosign"] < 3 || ran["rekor-cli"] < 1 || ran["sigbox"] < 4 {
		t.Errorf("too few commands in what it printed: %v\n%s", ran, i.Said(t))
	}
}
