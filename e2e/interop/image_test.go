package interop

import (
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

// What a client says when it refuses for the right reason.
var (
	saysIdentity  = []string{"none of the expected identities matched", "no matching CertificateIdentity", "identity"}
	saysNone      = []string{"no signatures found", "no matching signatures", "no matching attestations", "not signed", "no bundle", "no valid bundles", "no signature"}
	saysSignature = []string{"invalid signature", "signature", "verify"}
)

func TestImage(t *testing.T) {
	s := newStage(t)
	eachRegistry(t, func(t *testing.T, r *e2etest.Registry) {
		eachStock(t, s, func(t *testing.T, c *client) { signAndVerifyImage(t, s, r, c) })
		t.Run("sigbox", func(t *testing.T) { signAndVerifyImage(t, s, r, s.sigbox(t)) })
	})
}

func signAndVerifyImage(t *testing.T, s *stage, r *e2etest.Registry, c *client) {
	app := r.Push(t, "team/"+repository(c)+"/app", "signed "+c.name)
	c.ok(t, "sign", append(s.signing(t), app.Ref())...)
	c.ok(t, "verify", append(s.identity(), app.Ref())...)

	refuses := func(name string, words []string, ref string, identity ...string) {
		t.Run(name, func(t *testing.T) {
			t.Helper()
			c.refuses(t, words, "verify", append(identity, ref)...)
		})
	}
	refuses("wrong identity", saysIdentity, app.Ref(),
		"--certificate-identity", "mallory@example.com", "--certificate-oidc-issuer", s.issuer())
	refuses("identity as prefix of a regular expression", saysIdentity, app.Ref(),
		"--certificate-identity-regexp", "^release$", "--certificate-oidc-issuer", s.issuer())
	refuses("wrong issuer", append(saysIdentity, "issuer"), app.Ref(),
		"--certificate-identity", subject, "--certificate-oidc-issuer", s.URL+"/oidc")

	other := r.Push(t, "team/"+repository(c)+"/other", "never signed "+c.name)
	refuses("never signed", saysNone, other.Ref(), s.identity()...)

	keep := func(b []byte) []byte { return b }
	moved := r.CopySignatures(t, app, "mirror/"+repository(c), nil, keep)
	c.ok(t, "verify", append(s.identity(), moved.Ref())...)

	swapped := r.CopySignatures(t, app, "swapped/"+repository(c), &other, keep)
	refuses("wrong digest", append(saysNone, "digest", "subject", "signature"), swapped.Ref(), s.identity()...)

	tampered := r.CopySignatures(t, app, "tampered/"+repository(c), nil, flipSignature(t))
	refuses("tampered signature", saysSignature, tampered.Ref(), s.identity()...)

	t.Run("no identity", func(t *testing.T) { refusesWithoutIdentity(t, c, "verify", app.Ref()) })
}

// refusesWithoutIdentity is about usage: there is nothing to check against.
func refusesWithoutIdentity(t *testing.T, c *client, verb string, args ...string) {
	t.Helper()
	r := c.program.Refuses(t, []string{"identity"}, c.args(verb, args...)...)
	if c.name == "sigbox" && r.Code != 2 {
		t.Fatalf("a missing identity is a matter of usage, exit code 2: %v", r)
	}
}

const sbom = `{"bomFormat":"CycloneDX","specVersion":"1.6","version":1,
"metadata":{"component":{"type":"container","name":"app"}},
"components":[{"type":"file","name":"/hello","hashes":[{"alg":"SHA-256","content":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}]}]}`

func TestAttestation(t *testing.T) {
	s := newStage(t)
	eachRegistry(t, func(t *testing.T, r *e2etest.Registry) {
		eachStock(t, s, func(t *testing.T, c *client) {
			app := r.Push(t, "sbom/"+repository(c)+"/app", "described "+c.name)
			c.ok(t, "attest", append(s.signing(t), "--type", "cyclonedx", "--predicate", writeFile(t, sbom), app.Ref())...)
			check := []string{"--type", "cyclonedx"}
			c.ok(t, "verify-attestation", append(append(check, s.identity()...), app.Ref())...)

			refuses := func(name string, words []string, args ...string) {
				t.Run(name, func(t *testing.T) { c.refuses(t, words, "verify-attestation", args...) })
			}
			refuses("wrong identity", saysIdentity, "--type", "cyclonedx",
				"--certificate-identity", "mallory@example.com", "--certificate-oidc-issuer", s.issuer(), app.Ref())
			refuses("wrong issuer", append(saysIdentity, "issuer"), "--type", "cyclonedx",
				"--certificate-identity", subject, "--certificate-oidc-issuer", s.URL+"/oidc", app.Ref())
			refuses("another type", append(saysNone, "predicate"),
				append([]string{"--type", "slsaprovenance1"}, append(s.identity(), app.Ref())...)...)

			other := r.Push(t, "sbom/"+repository(c)+"/other", "never described "+c.name)
			swapped := r.CopySignatures(t, app, "sbom/swapped/"+repository(c), &other, func(b []byte) []byte { return b })
			refuses("wrong digest", append(saysNone, "digest", "subject"),
				append(append(check, s.identity()...), swapped.Ref())...)
			tampered := r.CopySignatures(t, app, "sbom/tampered/"+repository(c), nil, flipSignature(t))
			refuses("tampered signature", saysSignature, append(append(check, s.identity()...), tampered.Ref())...)
			t.Run("no identity", func(t *testing.T) {
				refusesWithoutIdentity(t, c, "verify-attestation", append(check, app.Ref())...)
			})
		})
	})
}

// TestImageAcrossClients has each client that writes bundles sign an image and
// every other verify it.
func TestImageAcrossClients(t *testing.T) {
	s := newStage(t)
	eachRegistry(t, func(t *testing.T, r *e2etest.Registry) {
		clients := []*client{s.cosign3(t), s.cosign2Bundles(t), s.sigbox(t)}
		for _, signer := range clients {
			app := r.Push(t, "across/"+repository(signer), "signed by "+signer.name)
			signer.ok(t, "sign", append(s.signing(t), app.Ref())...)
			for _, verifier := range clients {
				t.Run(signer.name+" to "+verifier.name, func(t *testing.T) {
					verifier.ok(t, "verify", append(s.identity(), app.Ref())...)
					verifier.refuses(t, saysIdentity, "verify",
						"--certificate-identity", "mallory@example.com", "--certificate-oidc-issuer", s.issuer(), app.Ref())
				})
			}
		}
	})
}
