package keyless

import (
	"encoding/hex"
	"fmt"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// A Verifier checks signatures offline: certificate chain and identity, SCT,
// log entry with promise and inclusion proof, timestamp.
type Verifier struct {
	verifier *verify.Verifier
	identity verify.CertificateIdentity
}

// NewVerifier trusts what a trusted_root.json holds. Signatures must be by the
// identity given; timestamps is whether they must carry a TSA's.
func NewVerifier(trustedRoot []byte, identity, issuer string, timestamps bool) (*Verifier, error) {
	material, err := root.NewTrustedRootFromJSON(trustedRoot)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	options := []verify.VerifierOption{
		verify.WithSignedCertificateTimestamps(1),
		verify.WithTransparencyLog(1),
	}
	if timestamps {
		options = append(options, verify.WithSignedTimestamps(1))
	} else {
		options = append(options, verify.WithObserverTimestamps(1))
	}
	v, err := verify.NewVerifier(material, options...)
	if err != nil {
		return nil, err
	}
	id, err := verify.NewShortCertificateIdentity(issuer, "", identity, "")
	if err != nil {
		return nil, err
	}
	return &Verifier{verifier: v, identity: id}, nil
}

// Verify checks one signature.
func (v *Verifier) Verify(s *Signature) error {
	b, err := s.Bundle()
	if err != nil {
		return err
	}
	_, err = v.verifier.Verify(b, verify.NewPolicy(
		verify.WithArtifactDigest("sha256", s.Digest[:]),
		verify.WithCertificateIdentity(v.identity),
	))
	return err
}

// Bundle is the signature as a Sigstore bundle.
func (s *Signature) Bundle() (*bundle.Bundle, error) {
	entry, err := s.Entry.proto()
	if err != nil {
		return nil, err
	}
	material := &bundlepb.VerificationMaterial{
		Content:     &bundlepb.VerificationMaterial_Certificate{Certificate: &commonpb.X509Certificate{RawBytes: s.Certificate}},
		TlogEntries: []*rekorpb.TransparencyLogEntry{entry},
	}
	if s.Timestamp != nil {
		material.TimestampVerificationData = &bundlepb.TimestampVerificationData{
			Rfc3161Timestamps: []*commonpb.RFC3161SignedTimestamp{{SignedTimestamp: s.Timestamp}},
		}
	}
	return bundle.NewBundle(&bundlepb.Bundle{
		MediaType:            "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: material,
		Content: &bundlepb.Bundle_MessageSignature{MessageSignature: &commonpb.MessageSignature{
			MessageDigest: &commonpb.HashOutput{Algorithm: commonpb.HashAlgorithm_SHA2_256, Digest: s.Digest[:]},
			Signature:     s.Signature,
		}},
	})
}

func (e *LogEntry) proto() (*rekorpb.TransparencyLogEntry, error) {
	proof := e.Verification.InclusionProof
	logID, err := hex.DecodeString(e.LogID)
	if err != nil {
		return nil, fmt.Errorf("log id: %w", err)
	}
	rootHash, err := hex.DecodeString(proof.RootHash)
	if err != nil {
		return nil, fmt.Errorf("root hash: %w", err)
	}
	hashes := make([][]byte, len(proof.Hashes))
	for i, h := range proof.Hashes {
		if hashes[i], err = hex.DecodeString(h); err != nil {
			return nil, fmt.Errorf("proof: %w", err)
		}
	}
	return &rekorpb.TransparencyLogEntry{
		LogIndex:          e.LogIndex,
		LogId:             &commonpb.LogId{KeyId: logID},
		KindVersion:       &rekorpb.KindVersion{Kind: "hashedrekord", Version: "0.0.1"},
		IntegratedTime:    e.IntegratedTime,
		InclusionPromise:  &rekorpb.InclusionPromise{SignedEntryTimestamp: e.Verification.SET},
		CanonicalizedBody: e.Body,
		InclusionProof: &rekorpb.InclusionProof{
			LogIndex:   proof.LogIndex,
			TreeSize:   proof.TreeSize,
			RootHash:   rootHash,
			Hashes:     hashes,
			Checkpoint: &rekorpb.Checkpoint{Envelope: proof.Checkpoint},
		},
	}, nil
}
