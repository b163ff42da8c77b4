// Package interop shows that stock clients and our own agree: each line of
// cosign signs and verifies against an instance, sigbox does too, and each
// verifies what the others signed. All of it once more with loopback only.
package interop

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

// TestAirGap runs every other test of this package where nothing but loopback
// exists.
func TestAirGap(t *testing.T) { e2etest.AirGap(t) }

const subject = "release@example.com"

// A client is a program with cosign's verbs and the flags it needs for them.
type client struct {
	name    string
	program *e2etest.Program
	flags   map[string][]string // by verb
	bundles bool                // signs and reads Sigstore bundles
	attests bool
}

func (c *client) args(verb string, args ...string) []string {
	return append(append([]string{verb}, c.flags[verb]...), args...)
}

func (c *client) ok(t *testing.T, verb string, args ...string) e2etest.Result {
	t.Helper()
	return c.program.OK(t, c.args(verb, args...)...)
}

// refuses demands a no. Our own program promises exit code 3 for it; of the
// others, one of the words must say that the reason is the right one.
func (c *client) refuses(t *testing.T, words []string, verb string, args ...string) {
	t.Helper()
	r := c.program.Refuses(t, words, c.args(verb, args...)...)
	if c.name == "sigbox" && r.Code != 3 {
		t.Fatalf("a no is exit code 3: %v", r)
	}
}

// A stage is one instance, with clients that trust it.
type stage struct {
	*e2etest.Instance
}

func newStage(t *testing.T) *stage { return &stage{e2etest.Quickstart(t)} }

func (s *stage) issuer() string { return s.URL + "/ci" }

// identity is what a verifier pins of whatever the tests signed.
func (s *stage) identity() []string {
	return []string{"--certificate-identity", subject, "--certificate-oidc-issuer", s.issuer()}
}

// signing is what every signing command needs: a fresh token, because each
// buys one certificate.
func (s *stage) signing(t *testing.T) []string {
	t.Helper()
	return []string{"--identity-token", s.Token(t, subject), "--yes"}
}

func (s *stage) cosign(t *testing.T, tool stock.Tool) *e2etest.Program {
	t.Helper()
	p := e2etest.NewProgram(t, stock.Path(t, tool))
	p.OK(t, "initialize", "--mirror", s.URL+"/tuf", "--root", s.URL+"/tuf/1.root.json", "--root-checksum", s.RootSHA256)
	return p
}

func (s *stage) cosign3(t *testing.T) *client {
	t.Helper()
	return &client{name: "cosign v3", program: s.cosign(t, stock.Cosign3), bundles: true, attests: true}
}

// cosign2 is the second line as it was used before bundles: services by flag,
// signatures in tags. Left to its defaults it would send the token to a public
// instance.
func (s *stage) cosign2(t *testing.T) *client {
	t.Helper()
	sign := []string{"--fulcio-url", s.URL, "--rekor-url", s.URL}
	verify := []string{"--rekor-url", s.URL}
	return &client{
		name: "cosign v2", program: s.cosign(t, stock.Cosign2), attests: true,
		flags: map[string][]string{
			"sign": sign, "attest": sign, "sign-blob": sign,
			"verify": verify, "verify-attestation": verify, "verify-blob": verify,
		},
	}
}

// cosign2Bundles is the second line with the signing configuration and the
// bundles that the third has by default.
func (s *stage) cosign2Bundles(t *testing.T) *client {
	t.Helper()
	sign := []string{"--use-signing-config", "--new-bundle-format"}
	verify := []string{"--new-bundle-format"}
	return &client{
		name: "cosign v2 with bundles", program: s.cosign(t, stock.Cosign2), bundles: true, attests: true,
		flags: map[string][]string{
			"sign": sign, "attest": sign, "sign-blob": sign,
			"verify": verify, "verify-attestation": verify, "verify-blob": verify,
		},
	}
}

func (s *stage) sigbox(t *testing.T) *client {
	t.Helper()
	p := e2etest.NewProgram(t, e2etest.Build(t, "sigbox"))
	p.OK(t, "trust", "init", "--url", s.URL, "--root-checksum", s.RootSHA256)
	return &client{name: "sigbox", program: p, bundles: true}
}

// each runs a test for every stock client on an instance that they share.
func eachStock(t *testing.T, s *stage, test func(t *testing.T, c *client)) {
	t.Helper()
	for _, c := range []*client{s.cosign3(t), s.cosign2(t), s.cosign2Bundles(t)} {
		t.Run(c.name, func(t *testing.T) { test(t, c) })
	}
}

// registries are the two ways in which signatures hang on images.
func eachRegistry(t *testing.T, test func(t *testing.T, r *e2etest.Registry)) {
	t.Helper()
	t.Run("distribution", func(t *testing.T) { test(t, e2etest.Distribution(t)) })
	t.Run("referrers", func(t *testing.T) { test(t, e2etest.Referrers(t)) })
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
