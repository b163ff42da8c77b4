// Package pki makes the certificates of an instance: the roots, Fulcio's
// intermediate and the timestamp authority's certificate. It keeps no state and
// reads no clock: signers and the time come in, certificates go out.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"
)

// Backdate is how long before Template.Now a certificate begins. A machine whose
// clock is stepped back by some minutes after the ceremony must go on issuing:
// a leaf may not begin before its issuer does.
const Backdate = time.Hour

// Template says what the caller decides about a certificate.
type Template struct {
	Subject pkix.Name
	// Now is the time of the ceremony. The certificate begins Backdate earlier.
	Now time.Time
	// Lifetime counts from Now and must be positive.
	Lifetime time.Duration
}

// Issuer is a certificate with the key that signs for it.
type Issuer struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

var (
	oidExtKeyUsage  = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidTimeStamping = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}
)

// NewRoot makes a self-signed CA certificate. It carries no extended key usage,
// so that what it certifies is decided by the certificates below it.
func NewRoot(signer crypto.Signer, t Template) (*x509.Certificate, error) {
	cert, err := t.certificate()
	if err != nil {
		return nil, err
	}
	ca(cert)
	return create(cert, Issuer{cert, signer}, signer.Public())
}

// NewIntermediate makes the certificate Fulcio issues with. It is confined to
// code signing, and to end-entity certificates: verifiers chain the extended
// key usage through it (RFC 5280 section 4.2.1.12 does not, Go and OpenSSL do).
func NewIntermediate(issuer Issuer, key crypto.PublicKey, t Template) (*x509.Certificate, error) {
	cert, err := t.certificate()
	if err != nil {
		return nil, err
	}
	ca(cert)
	cert.MaxPathLenZero = true
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	return create(cert, issuer, key)
}

// NewTimestamping makes the certificate of a timestamp authority: an end-entity
// certificate whose only, and critical, extended key usage is timeStamping
// (RFC 3161 section 2.3).
func NewTimestamping(issuer Issuer, key crypto.PublicKey, t Template) (*x509.Certificate, error) {
	cert, err := t.certificate()
	if err != nil {
		return nil, err
	}
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{oidTimeStamping})
	if err != nil {
		return nil, fmt.Errorf("encoding extended key usage: %w", err)
	}
	// Template.ExtKeyUsage would make the extension without the critical bit.
	cert.ExtraExtensions = []pkix.Extension{{Id: oidExtKeyUsage, Critical: true, Value: usage}}
	return create(cert, issuer, key)
}

func (t Template) certificate() (*x509.Certificate, error) {
	if t.Lifetime <= 0 {
		return nil, fmt.Errorf("lifetime %s is not positive", t.Lifetime)
	}
	if len(t.Subject.ToRDNSequence()) == 0 {
		return nil, errors.New("subject is empty")
	}
	now := t.Now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		// No SerialNumber: crypto/x509 draws 20 random octets.
		Subject:               t.Subject,
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(t.Lifetime),
		BasicConstraintsValid: true,
	}, nil
}

func ca(cert *x509.Certificate) {
	cert.IsCA = true
	cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
}

func create(cert *x509.Certificate, issuer Issuer, key crypto.PublicKey) (*x509.Certificate, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if err := checkKey(issuer.Signer.Public()); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	if issuer.Certificate != cert {
		if !issuer.Certificate.IsCA {
			return nil, fmt.Errorf("issuer %q is not a CA", issuer.Certificate.Subject)
		}
		if cert.NotBefore.Before(issuer.Certificate.NotBefore) {
			cert.NotBefore = issuer.Certificate.NotBefore
		}
		if cert.NotAfter.After(issuer.Certificate.NotAfter) {
			return nil, fmt.Errorf("lifetime ends %s, after its issuer's on %s",
				cert.NotAfter.Format(time.RFC3339), issuer.Certificate.NotAfter.Format(time.RFC3339))
		}
		if !cert.NotBefore.Before(cert.NotAfter) {
			return nil, fmt.Errorf("lifetime ends %s, before its issuer's begins", cert.NotAfter.Format(time.RFC3339))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, issuer.Certificate, key, issuer.Signer)
	if err != nil {
		return nil, fmt.Errorf("signing certificate of %q: %w", cert.Subject, err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing certificate of %q: %w", cert.Subject, err)
	}
	return made, nil
}

// checkKey admits the key types that every Sigstore client verifies and that
// stay cheap to verify: the CT log checks the whole chain on each submission.
func checkKey(key crypto.PublicKey) error {
	k, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("key type %T is not ECDSA", key)
	}
	if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
		return fmt.Errorf("curve %s is neither P-256 nor P-384", k.Curve.Params().Name)
	}
	return nil
}
