package fulcio

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/fulcio/pkg/ca/baseca"
	"github.com/sigstore/fulcio/pkg/certificate"
	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3/lint"
	_ "github.com/zmap/zlint/v3/lints/rfc" // registers the lints of RFC 5280 and its kin
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// lifetime is how long a certificate is valid. Upstream reads the clock for
	// each end of it, and seconds are cut, so it may come out a second longer.
	lifetime = 10 * time.Minute
	slack    = time.Second
	// maxAge is how long issuance may take: a certificate begins when its
	// precertificate is drafted, and waits for the log.
	maxAge = time.Minute
	// maxCertificate bounds a certificate, in bytes: its claims come from tokens.
	maxCertificate = 32 << 10
)

// notOurs are lints that do not fit certificates whose subject is whatever an
// issuer calls its users.
var notOurs = map[string]string{
	"e_ext_san_uri_host_not_fqdn_or_ip": "identities are names, not addresses: https://gitlab/group/project and spiffe://internal are good ones",
}

var (
	oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSKI      = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidSAN      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidAKI      = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidEKU      = asn1.ObjectIdentifier{2, 5, 29, 37}
	// oidFulcio is the arc of Fulcio's own extensions.
	oidFulcio = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}

	emptyName = []byte{0x30, 0x00}
)

// claimsError is a finding that comes from what the token claims.
type claimsError struct{ error }

// linter checks drafts against RFC 5280 (by way of zlint) and against the
// profile of Fulcio's certificates. It is safe for concurrent use.
type linter struct {
	issuer *x509.Certificate
	lints  []*lint.CertificateLint
	config lint.Configuration
}

func newLinter(issuer *x509.Certificate) *linter {
	l := &linter{issuer: issuer, config: lint.NewEmptyConfig()}
	for _, c := range lint.GlobalRegistry().CertificateLints().Lints() {
		if _, skip := notOurs[c.Name]; !skip && rfc(c.Source) {
			l.lints = append(l.lints, c)
		}
	}
	return l
}

// rfc leaves out the rules of the web's PKI and of the European trust lists,
// which other imports may have registered.
func rfc(s lint.LintSource) bool {
	return strings.HasPrefix(string(s), "RFC")
}

// subject is what a draft must be about.
type subject struct {
	issuer string // empty: whatever the certificate says
	key    crypto.PublicKey
	now    time.Time
	pre    bool // a precertificate
}

// check returns the first finding. One that the token's claims caused is a
// claimsError.
func (l *linter) check(cert *x509.Certificate, s subject) error {
	if len(cert.Raw) > maxCertificate {
		return claimsError{fmt.Errorf("certificate would have %d bytes, more than %d", len(cert.Raw), maxCertificate)}
	}
	if err := l.profile(cert, s); err != nil {
		return err
	}
	return l.rfc5280(cert)
}

func (l *linter) rfc5280(cert *x509.Certificate) error {
	z, err := zx509.ParseCertificate(cert.Raw)
	if err != nil {
		return claimsError{fmt.Errorf("certificate would not parse: %w", err)}
	}
	for _, c := range l.lints {
		if r := c.Execute(z, l.config); r.Status >= lint.Error {
			// The template is the same for everybody: it is the claims that vary.
			return claimsError{fmt.Errorf("certificate would break %s (%s): %s", c.Citation, c.Name, r.Details)}
		}
	}
	return nil
}

// profile checks what Fulcio's certificates look like, whoever asked:
// https://github.com/sigstore/fulcio/blob/main/docs/certificate-specification.md
func (l *linter) profile(cert *x509.Certificate, s subject) error {
	switch {
	case cert.Version != 3:
		return fmt.Errorf("version is %d", cert.Version)
	case cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() > 159 || cert.SerialNumber.BitLen() < 64:
		return fmt.Errorf("serial number has %d bits", cert.SerialNumber.BitLen())
	case !bytes.Equal(cert.RawIssuer, l.issuer.RawSubject):
		return errors.New("issuer is not the CA's subject")
	case !bytes.Equal(cert.RawSubject, emptyName):
		return errors.New("subject is not empty")
	case cert.IsCA || cert.BasicConstraintsValid:
		return errors.New("has basic constraints")
	case cert.KeyUsage != x509.KeyUsageDigitalSignature:
		return fmt.Errorf("key usage is %b", cert.KeyUsage)
	case len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning || len(cert.UnknownExtKeyUsage) != 0:
		return errors.New("extended key usage is not code signing alone")
	case len(cert.SubjectKeyId) == 0:
		return errors.New("has no subject key identifier")
	case !bytes.Equal(cert.AuthorityKeyId, l.issuer.SubjectKeyId):
		return errors.New("authority key identifier is not the CA's")
	}
	if err := checkValidity(cert, s.now); err != nil {
		return err
	}
	if err := checkKey(cert, s.key); err != nil {
		return err
	}
	if err := checkExtensions(cert, s.pre); err != nil {
		return err
	}
	if _, err := subjectName(cert); err != nil {
		return claimsError{err}
	}
	return checkIssuer(cert, s.issuer)
}

func checkValidity(cert *x509.Certificate, now time.Time) error {
	if d := cert.NotAfter.Sub(cert.NotBefore); d <= 0 || d > lifetime+slack {
		return fmt.Errorf("is valid for %s", d)
	}
	if age := now.Sub(cert.NotBefore); age < -slack || age > maxAge {
		return fmt.Errorf("begins %s before now", age)
	}
	return nil
}

// checkKey holds certificate and request together, and the key to the kinds
// that were allowed in.
func checkKey(cert *x509.Certificate, want crypto.PublicKey) error {
	var same bool
	switch key := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		same = key.Equal(want)
	case *rsa.PublicKey:
		same = key.Equal(want) && key.N.BitLen() >= 2048
	case ed25519.PublicKey:
		same = key.Equal(want)
	}
	if !same {
		return fmt.Errorf("key of type %T is not the request's", cert.PublicKey)
	}
	return nil
}

// checkExtensions admits known extensions only; crypto/x509 has made sure that
// each is there once.
func checkExtensions(cert *x509.Certificate, pre bool) error {
	var poison, sct bool
	for _, e := range cert.Extensions {
		switch {
		case e.Id.Equal(baseca.OIDExtensionCTPoison):
			poison = e.Critical && bytes.Equal(e.Value, asn1.NullBytes)
		case e.Id.Equal(baseca.OIDExtensionCTSCT):
			sct = !e.Critical && len(e.Value) > 0
		case e.Id.Equal(oidKeyUsage) && e.Critical, e.Id.Equal(oidSAN) && e.Critical, e.Id.Equal(oidEKU), e.Id.Equal(oidSKI), e.Id.Equal(oidAKI):
		case len(e.Id) == len(oidFulcio)+1 && slices.Equal(e.Id[:len(oidFulcio)], oidFulcio) && !e.Critical:
		default:
			return fmt.Errorf("extension %s has no place in it (critical %t)", e.Id, e.Critical)
		}
	}
	if poison != pre || sct == pre {
		return fmt.Errorf("poison is there: %t, SCT is there: %t (RFC 6962 section 3.1 and 3.3)", poison, sct)
	}
	return nil
}

// oidIssuer is the older of the two issuer extensions. Upstream still writes it,
// and cosign v2 still reads it.
//
//lint:ignore SA1019 what upstream writes is what must be checked
var oidIssuer = certificate.OIDIssuer

// checkIssuer compares both issuer extensions with the token's issuer.
func checkIssuer(cert *x509.Certificate, want string) error {
	v1, ok := extension(cert, oidIssuer)
	if !ok || len(v1) == 0 {
		return errors.New("has no issuer extension")
	}
	raw, ok := extension(cert, certificate.OIDIssuerV2)
	if !ok {
		return errors.New("has no second issuer extension")
	}
	var v2 string
	if rest, err := asn1.UnmarshalWithParams(raw, &v2, "utf8"); err != nil || len(rest) != 0 {
		return errors.New("second issuer extension is not a UTF-8 string")
	}
	if string(v1) != v2 || (want != "" && v2 != want) {
		return fmt.Errorf("issuer extensions say %q and %q, the token %q", v1, v2, want)
	}
	return nil
}

func extension(cert *x509.Certificate, oid asn1.ObjectIdentifier) ([]byte, bool) {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oid) {
			return e.Value, true
		}
	}
	return nil, false
}

// Tags of GeneralName (RFC 5280 section 4.2.1.6).
var (
	tagOtherName = cbasn1.Tag(0).ContextSpecific().Constructed()
	tagEmail     = cbasn1.Tag(1).ContextSpecific()
	tagURI       = cbasn1.Tag(6).ContextSpecific()
)

// subjectName returns the one subject alternative name: an address, a URI, or an
// otherName of Fulcio's.
func subjectName(cert *x509.Certificate) (string, error) {
	value, ok := extension(cert, oidSAN)
	if !ok {
		return "", errors.New("has no subject alternative name")
	}
	input := cryptobyte.String(value)
	var names, name cryptobyte.String
	var tag cbasn1.Tag
	if !input.ReadASN1(&names, cbasn1.SEQUENCE) || !input.Empty() || !names.ReadAnyASN1(&name, &tag) || !names.Empty() {
		return "", errors.New("does not have exactly one subject alternative name")
	}
	switch tag {
	case tagEmail, tagURI:
		if len(name) == 0 {
			return "", errors.New("subject alternative name is empty")
		}
		return string(name), nil
	case tagOtherName:
		var oid asn1.ObjectIdentifier
		var wrapped, text cryptobyte.String
		if name.ReadASN1ObjectIdentifier(&oid) && oid.Equal(certificate.OIDOtherName) &&
			name.ReadASN1(&wrapped, cbasn1.Tag(0).ContextSpecific().Constructed()) && name.Empty() &&
			wrapped.ReadASN1(&text, cbasn1.UTF8String) && wrapped.Empty() && len(text) > 0 {
			return string(text), nil
		}
	}
	return "", fmt.Errorf("subject alternative name has tag %d, not one of Fulcio's kinds", tag)
}
