package rekor

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"
)

// signerScheme is how upstream's configuration names a key that this process
// holds: signerScheme + tree id. Each tree has its own, so that shards which are
// no longer written to can keep the keys they were signed with.
const signerScheme = "sigbox-rekor://"

// provideSigners lets upstream find the signers, by their references.
func provideSigners(signers map[string]crypto.Signer) {
	kms.AddProvider(signerScheme, func(_ context.Context, ref string, _ crypto.Hash, _ ...signature.RPCOption) (kms.SignerVerifier, error) {
		signer, ok := signers[ref]
		if !ok {
			return nil, fmt.Errorf("no signer is named %q", ref)
		}
		verifier, err := signature.LoadVerifier(signer.Public(), crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("loading the public key of %q: %w", ref, err)
		}
		return &keySigner{Verifier: verifier, signer: signer}, nil
	})
}

// keySigner is any crypto.Signer in the form upstream asks for.
type keySigner struct {
	signature.Verifier
	signer crypto.Signer
}

var _ kms.SignerVerifier = (*keySigner)(nil)

var sha256Only = []crypto.Hash{crypto.SHA256}

func (k *keySigner) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	digest, hash, err := signature.ComputeDigestForSigning(message, crypto.SHA256, sha256Only, opts...)
	if err != nil {
		return nil, err
	}
	return k.signer.Sign(rand.Reader, digest, hash)
}

func (k *keySigner) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return k.signer, crypto.SHA256, nil
}

func (k *keySigner) CreateKey(context.Context, string) (crypto.PublicKey, error) {
	return nil, errors.New("the log's key is made by init")
}

func (k *keySigner) SupportedAlgorithms() []string { return []string{k.DefaultAlgorithm()} }
func (k *keySigner) DefaultAlgorithm() string      { return "ecdsa-p256-sha256" }

// keyID is the log's id that a key gives (the sigstore transparency log's
// logID.keyId, RFC 6962 section 3.2).
func keyID(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}
