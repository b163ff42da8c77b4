// Package keys makes, keeps and loads private keys: PKCS#8 files, encrypted
// with a passphrase (RFC 5208, PBES2), which openssl can read too.
//
// The rest of the program sees a crypto.Signer, so that a PKCS#11 token or a
// KMS can take a file's place without anyone noticing.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/youmark/pkcs8"

	"github.com/sigbox/sigbox/internal/durable"
)

// PEM type of an encrypted PKCS#8 key (RFC 7468, section 11).
const pemType = "ENCRYPTED PRIVATE KEY"

// PBKDF2 iterations. A passphrase that a person chose is stretched as OWASP
// advises for HMAC-SHA-256; one of 256 random bits gains nothing by stretching,
// and a dozen keys must load within a second.
const (
	iterationsChosen    = 600_000
	iterationsGenerated = 4_096
)

// Passphrase protects key files. It never shows in logs.
type Passphrase struct {
	secret    []byte
	generated bool
}

// GeneratePassphrase makes one of 256 random bits.
func GeneratePassphrase() Passphrase {
	b := make([]byte, 32)
	rand.Read(b) // never fails, or the runtime ends the program
	return Passphrase{secret: []byte(base64.RawURLEncoding.EncodeToString(b)), generated: true}
}

// ReadPassphrase reads the first line of a file. The file must not be readable
// by others, and a chosen passphrase has 8 bytes or more.
func ReadPassphrase(path string) (Passphrase, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Passphrase{}, fmt.Errorf("reading passphrase: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return Passphrase{}, fmt.Errorf("passphrase file %s is open to every user (mode %04o): chmod 0600 it", path, info.Mode().Perm())
	}
	if info.Size() > 4096 {
		return Passphrase{}, fmt.Errorf("passphrase file %s is larger than 4096 bytes", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Passphrase{}, fmt.Errorf("reading passphrase: %w", err)
	}
	for i, c := range b {
		if c == '\n' || c == '\r' {
			b = b[:i]
			break
		}
	}
	if len(b) < 8 {
		return Passphrase{}, fmt.Errorf("passphrase in %s is shorter than 8 bytes", path)
	}
	return Passphrase{secret: b}, nil
}

// Reveal returns the passphrase itself, for another process that is to use it.
func (p Passphrase) Reveal() []byte { return append([]byte(nil), p.secret...) }

// ChosenPassphrase is one that ReadPassphrase read elsewhere.
func ChosenPassphrase(secret []byte) Passphrase { return Passphrase{secret: secret} }

// WriteFile stores the passphrase in a new file of mode 0600.
func (p Passphrase) WriteFile(path string) error {
	return durable.WriteNew(path, append(append([]byte(nil), p.secret...), '\n'), 0o600)
}

// LogValue implements slog.LogValuer.
func (Passphrase) LogValue() slog.Value { return slog.StringValue("[passphrase]") }

// String implements fmt.Stringer.
func (Passphrase) String() string { return "[passphrase]" }

// GoString implements fmt.GoStringer.
func (Passphrase) GoString() string { return "[passphrase]" }

// Generate makes an ECDSA key on P-256, which every Sigstore client verifies.
func Generate() (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// GenerateRSA makes an RSA key of 2048 bits, for tokens: RS256 is the one
// algorithm that OpenID Connect makes every client support (Core 1.0, section
// 15.1). Tokens live for minutes.
func GenerateRSA() (crypto.Signer, error) {
	return rsa.GenerateKey(rand.Reader, 2048)
}

// Write stores key, encrypted, in a new file of mode 0600. An existing file is
// an error and stays as it is.
func Write(path string, key crypto.Signer, p Passphrase) error {
	data, err := Encrypt(key, p)
	if err != nil {
		return err
	}
	if err := durable.WriteNew(path, data, 0o600); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("key file %s exists and is never overwritten: %w", path, err)
		}
		return fmt.Errorf("writing key: %w", err)
	}
	return nil
}

// Encrypt makes the contents of a key file.
func Encrypt(key crypto.Signer, p Passphrase) ([]byte, error) {
	if len(p.secret) == 0 {
		return nil, errors.New("no passphrase to encrypt the key with")
	}
	iterations := iterationsChosen
	if p.generated {
		iterations = iterationsGenerated
	}
	der, err := pkcs8.MarshalPrivateKey(key, p.secret, &pkcs8.Opts{
		Cipher:  pkcs8.AES256CBC,
		KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: iterations, HMACHash: crypto.SHA256},
	})
	if err != nil {
		return nil, fmt.Errorf("encrypting key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// Load reads a key that Write, or openssl, wrote. Keys that others may read
// and keys that are not encrypted are refused.
func Load(path string, p Passphrase) (crypto.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("loading key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %04o: chmod 0600 it", path, info.Mode().Perm())
	}
	if info.Size() > 64<<10 {
		return nil, fmt.Errorf("key file %s is larger than 64 KiB", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("loading key: %w", err)
	}
	return Decrypt(filepath.Base(path), b, p)
}

// Decrypt reads the contents of a key file. The name is for errors.
func Decrypt(name string, b []byte, p Passphrase) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("key file %s is not an encrypted PKCS#8 key in PEM", name)
	}
	key, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, p.secret)
	if err != nil {
		return nil, fmt.Errorf("decrypting key %s (is it the right passphrase?): %w", name, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key %s of type %T cannot sign", name, key)
	}
	return signer, nil
}
