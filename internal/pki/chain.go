package pki

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
)

// CheckChain says whether the first certificate of a chain has signer's key and
// leads to the last one, for a usage. It is judged at the time at which the
// youngest certificate began: an instance whose certificates have expired still
// starts, to serve what it holds. Whether they are valid now is asked before
// each signature.
func CheckChain(chain []*x509.Certificate, signer crypto.Signer, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return errors.New("chain is empty")
	}
	if signer == nil {
		return errors.New("there is no signer for the chain")
	}
	if key, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(signer.Public()) {
		return fmt.Errorf("the key does not belong to certificate %q", chain[0].Subject.CommonName)
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage},
	}
	opts.Roots.AddCert(chain[len(chain)-1])
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	for _, c := range chain {
		if c.NotBefore.After(opts.CurrentTime) {
			opts.CurrentTime = c.NotBefore
		}
	}
	_, err := chain[0].Verify(opts)
	return err
}

// IsExpired says whether err is about nothing but time.
func IsExpired(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}
