package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// maxBundle bounds a bundle: a signature takes some 10 KB, an attestation as
// much as what it says.
const maxBundle = 32 << 20

// Verified is a signature that verified.
type Verified struct {
	Subject string `json:"certificate_identity"`
	Issuer  string `json:"certificate_oidc_issuer"`
	// Times at which the log or a timestamp authority saw the signature.
	Times []ObservedTime `json:"times"`
	// Log entries that hold the signature.
	LogEntries []LogEntry `json:"log_entries"`
	// PredicateType of the signed statement; empty for a blob's signature.
	PredicateType string `json:"predicate_type,omitempty"`
}

// ObservedTime is a time that somebody trusted vouches for.
type ObservedTime struct {
	Source string    `json:"source"` // "log" or "timestamp authority"
	URL    string    `json:"url,omitempty"`
	Time   time.Time `json:"time"`
}

// LogEntry is where in which log a signature is.
type LogEntry struct {
	LogID string `json:"log_id"` // SHA-256 of the log's key, in hexadecimal
	Index int64  `json:"index"`
}

// ReadBundle reads a bundle file.
func ReadBundle(path string) (*bundle.Bundle, error) {
	data, err := readFile(path, maxBundle)
	if err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	b, err := ParseBundle(data)
	if err != nil {
		return nil, cli.Hint(fmt.Errorf("%s: %w", path, err), "a bundle is made by `sigbox sign-blob --bundle` or `cosign sign-blob --bundle --new-bundle-format`")
	}
	return b, nil
}

// ParseBundle reads a bundle (format 0.1 to 0.3). One that is malformed proves
// nothing, which is a "no" (cli.No).
func ParseBundle(data []byte) (*bundle.Bundle, error) {
	b := new(bundle.Bundle)
	if err := b.UnmarshalJSON(data); err != nil {
		return nil, cli.No("not a Sigstore bundle: %w", err)
	}
	return b, nil
}

// VerifyBlob verifies that the bundle is the identity's signature of what the
// reader gives. A "no" has exit code 3 (cli.No); any other error means that it
// could not be told.
func (t *Trust) VerifyBlob(artifact io.Reader, b *bundle.Bundle, id Identity) (*Verified, error) {
	identity, err := id.policy()
	if err != nil {
		return nil, err
	}
	if b.GetMessageSignature() == nil {
		return nil, cli.No("the bundle holds an attestation, not a signature of a blob")
	}
	reader := &failing{Reader: artifact}
	v, err := t.verify(b, verify.WithArtifact(reader), verify.WithCertificateIdentity(identity))
	if reader.err != nil {
		return nil, fmt.Errorf("reading the artifact: %w", reader.err)
	}
	return v, err
}

// failing remembers an error of reading, which is no verdict.
type failing struct {
	io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// verify holds every check but whom the policy allows.
func (t *Trust) verify(b *bundle.Bundle, artifact verify.ArtifactPolicyOption, policy ...verify.PolicyOption) (*Verified, error) {
	verifier, err := verify.NewVerifier(t.Material,
		verify.WithSignedCertificateTimestamps(1),
		verify.WithTransparencyLog(1),
		verify.WithObserverTimestamps(1))
	if err != nil {
		return nil, err
	}
	// A promise to log is not enough: without the proof only the log's word says
	// that the entry is there.
	if !b.HasInclusionProof() {
		return nil, cli.No("the bundle has no proof that the log holds the signature")
	}
	result, err := verifier.Verify(b, verify.NewPolicy(artifact, policy...))
	if err != nil {
		return nil, cli.No("%w", err)
	}
	// The verifier is content with one good time. A wrong one beside it means
	// that the bundle was changed.
	if _, wrong, err := verify.VerifySignedTimestamp(b, t.Material); err != nil || len(wrong) > 0 {
		return nil, cli.No("a timestamp in the bundle does not verify: %w", errors.Join(append(wrong, err)...))
	}
	v := &Verified{}
	if result.Signature == nil || result.Signature.Certificate == nil {
		return nil, cli.No("the bundle has no certificate")
	}
	v.Subject = result.Signature.Certificate.SubjectAlternativeName
	v.Issuer = result.Signature.Certificate.Issuer
	for _, ts := range result.VerifiedTimestamps {
		source := "log"
		if ts.Type == "TimestampAuthority" {
			source = "timestamp authority"
		}
		v.Times = append(v.Times, ObservedTime{Source: source, URL: ts.URI, Time: ts.Timestamp.UTC()})
	}
	entries, err := b.TlogEntries()
	if err != nil {
		return nil, cli.No("%w", err)
	}
	for _, e := range entries {
		if _, trusted := t.Material.RekorLogs()[fmt.Sprintf("%x", e.LogKeyID())]; trusted {
			v.LogEntries = append(v.LogEntries, LogEntry{LogID: fmt.Sprintf("%x", e.LogKeyID()), Index: e.LogIndex()})
		}
	}
	if result.Statement != nil {
		v.PredicateType = result.Statement.GetPredicateType()
	}
	return v, nil
}

// marshalBundle writes a bundle the same way each time.
func marshalBundle(b *bundle.Bundle) ([]byte, error) {
	raw, err := b.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
