package fulcio

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/fulcio/pkg/ca/baseca"
	"github.com/sigstore/fulcio/pkg/certificate"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/sigbox/sigbox/internal/pki"
)

const testIssuer = "https://accounts.example.com"

type draft struct {
	ca     *x509.Certificate
	signer *ecdsa.PrivateKey
	key    *ecdsa.PrivateKey
}

func newDraft(t *testing.T) draft {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	d := draft{signer: newKey(), key: newKey()}
	var err error
	d.ca, err = pki.NewRoot(d.signer, pki.Template{Subject: pkix.Name{CommonName: "ca", Organization: []string{"test"}}, Now: time.Now(), Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// template is what upstream drafts for an address.
func (d draft) template(t *testing.T) *x509.Certificate {
	t.Helper()
	serial, err := cryptoutils.GenerateSerialNumber()
	if err != nil {
		t.Fatal(err)
	}
	skid, err := cryptoutils.SKID(d.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	ext, err := certificate.Extensions{Issuer: testIssuer, Subject: "alice"}.Render()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:    serial,
		NotBefore:       now,
		NotAfter:        now.Add(lifetime),
		SubjectKeyId:    skid,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		EmailAddresses:  []string{"alice@example.com"},
		ExtraExtensions: append(ext, pkix.Extension{Id: baseca.OIDExtensionCTPoison, Critical: true, Value: asn1.NullBytes}),
	}
}

func (d draft) certificate(t *testing.T, tmpl *x509.Certificate) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, d.ca, d.key.Public(), d.signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLint(t *testing.T) {
	d := newDraft(t)
	l := newLinter(d.ca)
	if n := len(l.lints); n < 80 {
		t.Errorf("only %d lints of RFC 5280 are there", n)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	without := func(oids ...asn1.ObjectIdentifier) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			var kept []pkix.Extension
			for _, e := range c.ExtraExtensions {
				drop := false
				for _, oid := range oids {
					drop = drop || e.Id.Equal(oid)
				}
				if !drop {
					kept = append(kept, e)
				}
			}
			c.ExtraExtensions = kept
		}
	}
	add := func(oid asn1.ObjectIdentifier, critical bool, value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			without(oid)(c)
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: value})
		}
	}
	uri := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.EmailAddresses, c.URIs = nil, []*url.URL{u}
		}
	}
	for name, test := range map[string]struct {
		change func(*x509.Certificate)
		want   string // empty: passes
		claims bool   // the token's fault
	}{
		"as upstream drafts it": {},
		"URI without dots":      {change: uri("https://gitlab/group/project")},
		"SPIFFE":                {change: uri("spiffe://internal/ns/a")},

		"lives an hour": {func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Hour) }, "valid for", false},
		"lives two seconds more": {func(c *x509.Certificate) {
			c.NotAfter = c.NotBefore.Truncate(time.Second).Add(lifetime + 2*time.Second)
		}, "valid for", false},
		"backdated": {func(c *x509.Certificate) {
			c.NotBefore = c.NotBefore.Add(-2 * time.Minute)
			c.NotAfter = c.NotBefore.Add(lifetime)
		}, "before now", false},
		"in the future": {func(c *x509.Certificate) {
			c.NotBefore = c.NotBefore.Add(time.Minute)
			c.NotAfter = c.NotBefore.Add(lifetime)
		}, "before now", false},
		"is a CA":                 {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, "basic constraints", false},
		"signs certificates":      {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "key usage", false},
		"no key usage":            {func(c *x509.Certificate) { c.KeyUsage = 0 }, "key usage", false},
		"serves web sites":        {func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }, "extended key usage", false},
		"unknown usage":           {func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, "extended key usage", false},
		"no usage":                {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "extended key usage", false},
		"any usage":               {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, "extended key usage", false},
		"has a subject":           {func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "alice"} }, "subject is not empty", false},
		"small serial":            {func(c *x509.Certificate) { c.SerialNumber = big.NewInt(7) }, "serial number", false},
		"no name":                 {func(c *x509.Certificate) { c.EmailAddresses = nil }, "alternative name", true},
		"two names":               {func(c *x509.Certificate) { c.EmailAddresses = append(c.EmailAddresses, "bob@example.com") }, "exactly one", true},
		"name and host":           {func(c *x509.Certificate) { c.DNSNames = []string{"example.com"} }, "exactly one", true},
		"host":                    {func(c *x509.Certificate) { c.EmailAddresses = nil; c.DNSNames = []string{"example.com"} }, "kinds", true},
		"bad address":             {func(c *x509.Certificate) { c.EmailAddresses = []string{"<alice@example.com>"} }, "rfc822", true},
		"relative URI":            {uri("alice"), "uri", true},
		"issuers differ":          {add(oidIssuer, false, []byte("https://other.example.com")), "issuer extensions", false},
		"no first issuer":         {without(oidIssuer), "no issuer extension", false},
		"no second issuer":        {without(certificate.OIDIssuerV2), "second issuer", false},
		"second issuer unwrapped": {add(certificate.OIDIssuerV2, false, []byte(testIssuer)), "UTF-8", false},
		"no poison":               {without(baseca.OIDExtensionCTPoison), "poison", false},
		"poison not critical":     {add(baseca.OIDExtensionCTPoison, false, asn1.NullBytes), "poison", false},
		"SCT in precertificate":   {add(baseca.OIDExtensionCTSCT, false, []byte{4, 0}), "SCT", false},
		"extension of somebody":   {add(asn1.ObjectIdentifier{1, 2, 3}, false, asn1.NullBytes), "no place", false},
		"critical Fulcio":         {add(certificate.OIDTokenSubject, true, asn1.NullBytes), "no place", false},
		"name constraints":        {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"x"} }, "no place", false},
		"enormous":                {add(certificate.OIDTokenSubject, false, make([]byte, maxCertificate)), "bytes", true},
	} {
		tmpl := d.template(t)
		if test.change != nil {
			test.change(tmpl)
		}
		err := l.check(d.certificate(t, tmpl), subject{issuer: testIssuer, key: d.key.Public(), now: time.Now(), pre: true})
		var claims claimsError
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", name, err, test.want)
		case errors.As(err, &claims) != test.claims:
			t.Errorf("%s: blamed on the claims: %t", name, !test.claims)
		}
	}

	good := d.certificate(t, d.template(t))
	for name, s := range map[string]subject{
		"for another key":         {issuer: testIssuer, key: other.Public(), now: time.Now(), pre: true},
		"for another issuer":      {issuer: "https://other.example.com", key: d.key.Public(), now: time.Now(), pre: true},
		"as a final certificate":  {issuer: testIssuer, key: d.key.Public(), now: time.Now()},
		"long after it was drawn": {issuer: testIssuer, key: d.key.Public(), now: time.Now().Add(2 * time.Minute), pre: true},
	} {
		if err := l.check(good, s); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	// The issuer's own name and key identifier.
	if err := newLinter(newDraft(t).ca).check(good, subject{issuer: testIssuer, key: d.key.Public(), now: time.Now(), pre: true}); err == nil {
		t.Error("certificate of another CA passes")
	}
}

// The real key signs what was linted, byte for byte.
func TestSignsTheDraft(t *testing.T) {
	d := newDraft(t)
	a := &authority{chain: []*x509.Certificate{d.ca}, signer: d.signer, hash: 5}
	draftKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent := *d.ca
	parent.PublicKey = draftKey.Public()
	drawn := draft{ca: &parent, signer: draftKey, key: d.key}.certificate(t, d.template(t))
	if err := drawn.CheckSignatureFrom(d.ca); err == nil {
		t.Fatal("draft verifies")
	}
	signed, err := a.sign(drawn)
	if err != nil {
		t.Fatal(err)
	}
	if string(signed.RawTBSCertificate) != string(drawn.RawTBSCertificate) {
		t.Error("what was signed is not what was linted")
	}
	if err := signed.CheckSignatureFrom(d.ca); err != nil {
		t.Error(err)
	}
	// A signer that is not the certificate's is found out before anything leaves.
	a.signer = draftKey
	if _, err := a.sign(drawn); err == nil {
		t.Error("took a signature that does not verify")
	}
}

func BenchmarkLint(b *testing.B) {
	t := &testing.T{}
	d := newDraft(t)
	l := newLinter(d.ca)
	cert := d.certificate(t, d.template(t))
	s := subject{issuer: testIssuer, key: d.key.Public(), now: time.Now(), pre: true}
	for b.Loop() {
		if err := l.check(cert, s); err != nil {
			b.Fatal(err)
		}
	}
}
