package hostile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"testing"
)

// weakKey is a public key on a curve that no verifier takes.
func weakKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// requestForAnothersKey is a signing request for one key that another signed.
func requestForAnothersKey(t *testing.T, owner, asker *ecdsa.PrivateKey) []byte {
	t.Helper()
	request := func(key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	var parts struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(request(owner), &parts); err != nil {
		t.Fatal(err)
	}
	parts.Signature.Bytes = sign(t, asker, parts.TBS.FullBytes)
	parts.Signature.BitLength = 8 * len(parts.Signature.Bytes)
	der, err := asn1.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
