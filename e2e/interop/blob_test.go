package interop

import (
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestBlob(t *testing.T) {
	s := newStage(t)
	test := func(t *testing.T, c *client) {
		blob := writeFile(t, "signed by "+c.name)
		bundle := filepath.Join(t.TempDir(), "bundle.json")
		c.ok(t, "sign-blob", append(s.signing(t), "--bundle", bundle, blob)...)
		verify := append([]string{"--bundle", bundle}, s.identity()...)
		c.ok(t, "verify-blob", append(verify, blob)...)

		t.Run("wrong identity", func(t *testing.T) {
			c.refuses(t, saysIdentity, "verify-blob", "--bundle", bundle,
				"--certificate-identity", "mallory@example.com", "--certificate-oidc-issuer", s.issuer(), blob)
		})
		t.Run("wrong issuer", func(t *testing.T) {
			c.refuses(t, append(saysIdentity, "issuer"), "verify-blob", "--bundle", bundle,
				"--certificate-identity", subject, "--certificate-oidc-issuer", s.URL+"/oidc", blob)
		})
		t.Run("wrong digest", func(t *testing.T) {
			c.refuses(t, append(saysSignature, "digest", "hash"), "verify-blob", append(verify, writeFile(t, "another blob"))...)
		})
		t.Run("tampered signature", func(t *testing.T) {
			spoiled := writeFile(t, string(flipSignature(t)([]byte(readFile(t, bundle)))))
			c.refuses(t, saysSignature, "verify-blob",
				append(append([]string{"--bundle", spoiled}, s.identity()...), blob)...)
		})
		t.Run("no identity", func(t *testing.T) {
			refusesWithoutIdentity(t, c, "verify-blob", "--bundle", bundle, blob)
		})
	}
	eachStock(t, s, test)
	t.Run("sigbox", func(t *testing.T) { test(t, s.sigbox(t)) })
}

func TestBlobAcrossClients(t *testing.T) {
	s := newStage(t)
	clients := []*client{s.cosign3(t), s.cosign2Bundles(t), s.sigbox(t)}
	for _, signer := range clients {
		blob := writeFile(t, "signed by "+signer.name)
		bundle := filepath.Join(t.TempDir(), "bundle.json")
		signer.ok(t, "sign-blob", append(s.signing(t), "--bundle", bundle, blob)...)
		for _, verifier := range clients {
			t.Run(signer.name+" to "+verifier.name, func(t *testing.T) {
				verify := append([]string{"--bundle", bundle}, s.identity()...)
				verifier.ok(t, "verify-blob", append(verify, blob)...)
				verifier.refuses(t, append(saysSignature, "digest", "hash"), "verify-blob", append(verify, writeFile(t, "another"))...)
			})
		}
	}
}

// TestSpoiledBundle spoils one part of a bundle at a time. Each must make
// sigbox say no, whoever signed: a part that nobody checks proves nothing.
func TestSpoiledBundle(t *testing.T) {
	s := newStage(t)
	sigbox := s.sigbox(t)
	for _, signer := range []*client{s.cosign3(t), sigbox} {
		blob := writeFile(t, "signed by "+signer.name)
		bundle := filepath.Join(t.TempDir(), "bundle.json")
		signer.ok(t, "sign-blob", append(s.signing(t), "--bundle", bundle, blob)...)
		whole := readFile(t, bundle)
		for _, path := range bundleParts {
			t.Run(signer.name+"/"+path, func(t *testing.T) {
				spoiled := writeFile(t, spoil(t, whole, path))
				r := sigbox.program.Run(t, sigbox.args("verify-blob",
					append(append([]string{"--bundle", spoiled}, s.identity()...), blob)...)...)
				if r.Code != 3 {
					t.Errorf("exit code 3 is the answer to a bundle whose %s was changed: %v", path, r)
				}
			})
		}
	}
}

// TestVerifyWithNobodyToAsk verifies from a bundle and a trusted root alone,
// after the instance has been stopped.
func TestVerifyWithNobodyToAsk(t *testing.T) {
	s := newStage(t)
	blob := writeFile(t, "verified long after")
	bundle := filepath.Join(t.TempDir(), "bundle.json")
	s.sigbox(t).ok(t, "sign-blob", append(s.signing(t), "--bundle", bundle, blob)...)
	resp, err := http.Get(s.URL + "/trust/trusted_root.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	root, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	trusted := writeFile(t, string(root))
	s.Stop(t)
	for _, program := range []string{e2etest.Build(t, "sigbox"), stock.Path(t, stock.Cosign3)} {
		p := e2etest.NewProgram(t, program) // one that was never told of the instance
		verify := append([]string{"verify-blob", "--trusted-root", trusted, "--bundle", bundle}, s.identity()...)
		p.OK(t, append(verify, blob)...)
		p.Refuses(t, append(saysSignature, "digest", "hash"), append(verify, writeFile(t, "another"))...)
	}
}
