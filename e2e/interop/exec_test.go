package interop

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

// TestExec runs stock clients through sigbox, with no flag that names the
// instance: it is sigbox that sets them up.
func TestExec(t *testing.T) {
	s := newStage(t)
	sigbox := s.sigbox(t)
	r := e2etest.Distribution(t)
	for _, tool := range []struct {
		name string
		tool stock.Tool
	}{{"cosign v3", stock.Cosign3}, {"cosign v2", stock.Cosign2}} {
		t.Run(tool.name, func(t *testing.T) {
			// sigbox looks at the name of what it runs.
			cosign := filepath.Join(t.TempDir(), "cosign")
			if err := os.Symlink(stock.Path(t, tool.tool), cosign); err != nil {
				t.Fatal(err)
			}
			app := r.Push(t, "exec/"+tool.tool.Module, tool.name)
			exec := func(args ...string) []string { return append([]string{"exec", "--", cosign}, args...) }
			sigbox.program.OK(t, exec(append([]string{"sign"}, append(s.signing(t), app.Ref())...)...)...)
			sigbox.program.OK(t, exec(append([]string{"verify"}, append(s.identity(), app.Ref())...)...)...)
			sigbox.program.Refuses(t, saysIdentity, exec("verify",
				"--certificate-identity", "mallory@example.com", "--certificate-oidc-issuer", s.issuer(), app.Ref())...)
		})
	}
	t.Run("rekor-cli", func(t *testing.T) {
		sigbox.program.OK(t, "exec", "--", stock.Path(t, stock.RekorCLI), "loginfo")
	})
	t.Run("exit code of the command", func(t *testing.T) {
		if r := sigbox.program.Run(t, "exec", "--", "sh", "-c", "exit 7"); r.Code != 7 {
			t.Fatalf("want the command's own exit code 7: %v", r)
		}
	})
}
