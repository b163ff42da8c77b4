package pki_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	fulcioca "github.com/sigstore/fulcio/pkg/ca"
	tsx509 "github.com/sigstore/timestamp-authority/v2/pkg/x509"

	"github.com/sigbox/sigbox/internal/pki"
)

var now = time.Now()

func key(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func template(name string, lifetime time.Duration) pki.Template {
	return pki.Template{
		Subject:  pkix.Name{CommonName: name, Organization: []string{"sigbox"}},
		Now:      now,
		Lifetime: lifetime,
	}
}

func root(t *testing.T, c elliptic.Curve) pki.Issuer {
	t.Helper()
	k := key(t, c)
	cert, err := pki.NewRoot(k, template("root", 10*365*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return pki.Issuer{Certificate: cert, Signer: k}
}

// The chains must please the very checks upstream's servers and clients make.
func TestFulcioChainPleasesFulcio(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		r, k := root(t, curve), key(t, curve)
		ca, err := pki.NewIntermediate(r, k.Public(), template("fulcio", 24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if err := fulcioca.VerifyCertChain([]*x509.Certificate{ca, r.Certificate}, k); err != nil {
			t.Errorf("%s: %v", curve.Params().Name, err)
		}
		if ca.MaxPathLen != 0 || !ca.MaxPathLenZero {
			t.Errorf("intermediate has path length %d", ca.MaxPathLen)
		}
		if bits := ca.SerialNumber.BitLen(); bits < 64 || bits > 159 {
			t.Errorf("serial has %d bits", bits)
		}
	}
}

func TestTimestampingChainPleasesTimestampAuthority(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		r, k := root(t, curve), key(t, curve)
		leaf, err := pki.NewTimestamping(r, k.Public(), template("tsa", 24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if err := tsx509.VerifyCertChain([]*x509.Certificate{leaf, r.Certificate}, k, true); err != nil {
			t.Errorf("%s: %v", curve.Params().Name, err)
		}
	}
}

func TestNeverOutlivesItsIssuer(t *testing.T) {
	k := key(t, elliptic.P256())
	cert, err := pki.NewRoot(k, template("root", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r := pki.Issuer{Certificate: cert, Signer: k}
	if _, err := pki.NewIntermediate(r, k.Public(), template("fulcio", 2*time.Hour)); err == nil {
		t.Error("intermediate outlives its root")
	}
	late := template("fulcio", time.Minute)
	late.Now = now.Add(-3 * time.Hour)
	if _, err := pki.NewIntermediate(r, k.Public(), late); err == nil {
		t.Error("intermediate ends before its root begins")
	}
}

func TestRefuses(t *testing.T) {
	k, other := key(t, elliptic.P256()), key(t, elliptic.P256())
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := root(t, elliptic.P256())
	leaf, err := pki.NewTimestamping(r, k.Public(), template("tsa", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() (*x509.Certificate, error){
		"no lifetime": func() (*x509.Certificate, error) { return pki.NewRoot(k, template("root", 0)) },
		"no subject":  func() (*x509.Certificate, error) { return pki.NewRoot(k, pki.Template{Now: now, Lifetime: time.Hour}) },
		"P-521": func() (*x509.Certificate, error) {
			return pki.NewRoot(key(t, elliptic.P521()), template("r", time.Hour))
		},
		"Ed25519": func() (*x509.Certificate, error) { return pki.NewRoot(ed, template("r", time.Hour)) },
		"key of another": func() (*x509.Certificate, error) {
			return issue(pki.Issuer{Certificate: r.Certificate, Signer: other}, k.Public())
		},
		"issuer is not a CA": func() (*x509.Certificate, error) { return issue(pki.Issuer{Certificate: leaf, Signer: k}, k.Public()) },
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func issue(i pki.Issuer, key crypto.PublicKey) (*x509.Certificate, error) {
	return pki.NewIntermediate(i, key, template("fulcio", time.Hour))
}

func TestPEM(t *testing.T) {
	a, b := root(t, elliptic.P256()).Certificate, root(t, elliptic.P256()).Certificate
	got, err := pki.Parse(pki.Encode(a, b))
	if err != nil || len(got) != 2 || !got[0].Equal(a) || !got[1].Equal(b) {
		t.Fatalf("parsed %d certificates, %v", len(got), err)
	}
	for name, data := range map[string][]byte{
		"nothing":   nil,
		"text":      []byte("hello"),
		"key":       []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"truncated": pki.Encode(a, b)[:len(pki.Encode(a))+100],
		"garbled":   bytes.Replace(pki.Encode(a), []byte("\nM"), []byte("\nA"), 1),
		"oversized": []byte(strings.Repeat("#", 1<<20+1)),
	} {
		if _, err := pki.Parse(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
