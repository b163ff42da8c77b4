// Package cosign2 builds cosign v2, which takes minutes once: apart from the
// tests that use it, so that none of them runs out of go test's time.
package cosign2

import (
	"os"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

func TestVersion(t *testing.T) {
	e2etest.HasVersion(t, stock.Cosign2, "github.com/sigstore/cosign/v2", "v2.6.5")
}
