// Package rekorcli builds rekor-cli, which takes a while once: apart from the
// tests that use it, so that none of them runs out of go test's time.
package rekorcli

import (
	"os"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

func TestVersion(t *testing.T) {
	e2etest.HasVersion(t, stock.RekorCLI, "github.com/sigstore/rekor", "v1.5.4")
}
