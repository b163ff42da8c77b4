package fulcio

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	ct "github.com/google/certificate-transparency-go"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	upstreamca "github.com/sigstore/fulcio/pkg/ca"
	"github.com/sigstore/fulcio/pkg/ca/baseca"
	"github.com/sigstore/fulcio/pkg/identity"
	"google.golang.org/grpc/codes"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/pki"
)

// authority issues certificates: upstream's CA drafts each with a key that is
// made at start and thrown away, the draft is linted, and only then are the very
// same bytes signed with the real key. So the real key never signs what was not
// checked, precertificate or certificate.
type authority struct {
	drafts *baseca.BaseCA // issues in the real issuer's name, with the draft key
	draft  *upstreamca.SignerCerts
	chain  []*x509.Certificate // issuer first
	signer crypto.Signer
	hash   crypto.Hash
	lint   *linter
	logID  [sha256.Size]byte
	record audit.Func
	now    func() time.Time
}

func newAuthority(cfg Config) (*authority, error) {
	signer, chain := cfg.Signer, cfg.Chain
	err := pki.CheckChain(chain, signer, x509.ExtKeyUsageCodeSigning)
	if err == nil {
		err = upstreamca.VerifyCertChain(chain, signer)
	}
	if err != nil && !pki.IsExpired(err) {
		return nil, fmt.Errorf("fulcio certificate chain: %w", err)
	}
	key, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("fulcio key is a %T, not ECDSA", signer.Public())
	}
	var hash crypto.Hash
	switch key.Curve {
	case elliptic.P256():
		hash = crypto.SHA256
	case elliptic.P384():
		hash = crypto.SHA384
	default:
		return nil, fmt.Errorf("fulcio key has curve %s, neither P-256 nor P-384", key.Curve.Params().Name)
	}
	draftKey, err := ecdsa.GenerateKey(key.Curve, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making draft key: %w", err)
	}
	// crypto/x509 wants parent and signer to fit; everything else of the parent
	// (name, key identifier) is the real issuer's.
	parent := *chain[0]
	parent.PublicKey = draftKey.Public()
	draft := &upstreamca.SignerCerts{Signer: draftKey, Certs: []*x509.Certificate{&parent}}
	logKey, err := x509.MarshalPKIXPublicKey(cfg.CTLogKey)
	if err != nil {
		return nil, fmt.Errorf("encoding ct log key: %w", err)
	}
	return &authority{
		drafts: &baseca.BaseCA{SignerWithChain: draft},
		draft:  draft,
		chain:  chain,
		signer: signer,
		hash:   hash,
		lint:   newLinter(chain[0]),
		logID:  sha256.Sum256(logKey),
		record: cfg.Audit,
		now:    time.Now,
	}, nil
}

var (
	_ upstreamca.CertificateAuthority = (*authority)(nil)
	_ upstreamca.EmbeddedSCTCA        = (*authority)(nil)
)

// CreatePrecertificate implements upstream's EmbeddedSCTCA.
func (a *authority) CreatePrecertificate(ctx context.Context, principal identity.Principal, key crypto.PublicKey) (*upstreamca.CodeSigningPreCertificate, error) {
	req := requestFrom(ctx)
	v, ok := principal.(*vouched)
	if !ok || req == nil {
		return nil, errors.New("principal was not authenticated here")
	}
	draft, err := a.drafts.CreatePrecertificate(ctx, principal, key)
	if err != nil {
		return nil, req.fail(codes.InvalidArgument, reasonClaims, "the token's claims do not fit into a certificate", err)
	}
	if err := a.covers(draft.PreCert); err != nil {
		return nil, req.fail(codes.Unavailable, reasonInternal, "the certificate authority cannot issue at present", err)
	}
	if err := a.lint.check(draft.PreCert, subject{issuer: v.certifiedIssuer(), key: key, now: a.now(), pre: true}); err != nil {
		return nil, req.failLint(err)
	}
	switch err := v.redeem(ctx); {
	case errors.Is(err, ErrReplayed):
		return nil, req.fail(codes.InvalidArgument, reasonReplay, "this one-time token was used before: get a new one", err)
	case err != nil:
		return nil, req.fail(codes.Unavailable, reasonInternal, "the one-time token could not be redeemed", err)
	}
	pre, err := a.sign(draft.PreCert)
	if err != nil {
		return nil, req.fail(codes.Internal, reasonInternal, caError, err)
	}
	if err := a.intend(ctx, req, pre); err != nil {
		return nil, req.fail(codes.Unavailable, reasonAudit, "the certificate could not be put on record", err)
	}
	req.stage = stageLogging
	return &upstreamca.CodeSigningPreCertificate{PreCert: pre, CertChain: a.chain}, nil
}

// IssueFinalCertificate implements upstream's EmbeddedSCTCA. The certificate is
// on record before it is returned.
func (a *authority) IssueFinalCertificate(ctx context.Context, pre *upstreamca.CodeSigningPreCertificate, sct *ct.SignedCertificateTimestamp) (*upstreamca.CodeSigningCertificate, error) {
	req := requestFrom(ctx)
	if req == nil || req.principal == nil {
		return nil, errors.New("principal was not authenticated here")
	}
	// The client has verified the signature; the name is not part of it.
	if sct.LogID.KeyID != a.logID {
		return nil, fmt.Errorf("SCT is of log %x, not %x", sct.LogID.KeyID, a.logID)
	}
	req.stage = stageIssuing
	// A copy, because upstream edits the certificate it is given.
	pc := *pre.PreCert
	draft, err := a.drafts.IssueFinalCertificate(ctx, &upstreamca.CodeSigningPreCertificate{
		PreCert: &pc, CertChain: a.draft.Certs, PrivateKey: a.draft.Signer,
	}, sct)
	if err != nil {
		return nil, req.fail(codes.Internal, reasonInternal, caError, err)
	}
	err = a.lint.check(draft.FinalCertificate, subject{issuer: req.principal.certifiedIssuer(), key: pc.PublicKey, now: a.now()})
	if err != nil {
		return nil, req.failLint(err)
	}
	cert, err := a.sign(draft.FinalCertificate)
	if err != nil {
		return nil, req.fail(codes.Internal, reasonInternal, caError, err)
	}
	csc, err := upstreamca.CreateCSCFromDER(cert.Raw, a.chain)
	if err != nil {
		return nil, req.fail(codes.Internal, reasonInternal, caError, err)
	}
	leaf, err := a.leafHash(req, sct)
	if err != nil {
		return nil, req.fail(codes.Internal, reasonInternal, caError, err)
	}
	if err := a.record(ctx, issued(cert, req.principal, sct, leaf)); err != nil {
		return nil, req.fail(codes.Unavailable, reasonAudit, "the certificate could not be put on record", err)
	}
	req.stage = stageIssued
	return csc, nil
}

// CreateCertificate implements upstream's CertificateAuthority. Without an SCT
// in it no certificate is issued.
func (a *authority) CreateCertificate(context.Context, identity.Principal, crypto.PublicKey) (*upstreamca.CodeSigningCertificate, error) {
	return nil, errors.New("certificates are issued with an embedded SCT only")
}

// TrustBundle implements upstream's CertificateAuthority.
func (a *authority) TrustBundle(context.Context) ([][]*x509.Certificate, error) {
	return [][]*x509.Certificate{a.chain}, nil
}

// Close implements upstream's CertificateAuthority.
func (a *authority) Close() error { return nil }

// covers checks that no certificate of the chain ends before, or begins after,
// the one to issue: verifiers check the chain at the time of the signature.
func (a *authority) covers(leaf *x509.Certificate) error {
	for _, c := range a.chain {
		if leaf.NotBefore.Before(c.NotBefore) || leaf.NotAfter.After(c.NotAfter) {
			return fmt.Errorf("certificate would be valid from %s to %s, beyond %q: from %s to %s",
				leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), c.Subject,
				c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}

// signed is a certificate as RFC 5280 section 4.1 has it.
type signed struct {
	TBS       asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

// sign puts the real key's signature where the draft key's is.
func (a *authority) sign(draft *x509.Certificate) (*x509.Certificate, error) {
	var cert signed
	if rest, err := asn1.Unmarshal(draft.Raw, &cert); err != nil {
		return nil, fmt.Errorf("reading draft: %w", err)
	} else if len(rest) != 0 {
		return nil, errors.New("draft has trailing data")
	}
	h := a.hash.New()
	h.Write(draft.RawTBSCertificate)
	sig, err := a.signer.Sign(rand.Reader, h.Sum(nil), a.hash)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	cert.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	der, err := asn1.Marshal(cert)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	// A faulty signature may leak the key, and would go into the log.
	if err := out.CheckSignatureFrom(a.chain[0]); err != nil {
		return nil, fmt.Errorf("checking signature: %w", err)
	}
	return out, nil
}

// intend puts a precertificate on record before the log is given it. So whatever
// is in the log and was made here has a record, even if the process dies before
// the log answers; a precertificate in the log without one was made elsewhere.
func (a *authority) intend(ctx context.Context, req *request, pre *x509.Certificate) error {
	// What the log will hold: the precertificate without its poison (RFC 6962
	// section 3.2).
	tbs, err := ctx509.BuildPrecertTBS(pre.RawTBSCertificate, nil)
	if err != nil {
		return fmt.Errorf("reading precertificate: %w", err)
	}
	sum := sha256.Sum256(tbs)
	err = a.record(ctx, audit.Event{Type: audit.Intended, Service: service, Fields: map[string]any{
		"serial":     pre.SerialNumber.Text(16),
		"tbs_sha256": hex.EncodeToString(sum[:]),
	}})
	if err == nil {
		req.serial, req.tbs = pre.SerialNumber.Text(16), tbs
	}
	return err
}

// leafHash is the hash of the log's entry that the SCT promises.
func (a *authority) leafHash(req *request, sct *ct.SignedCertificateTimestamp) ([sha256.Size]byte, error) {
	return ct.LeafHashForLeaf(&ct.MerkleTreeLeaf{
		Version: ct.V1, LeafType: ct.TimestampedEntryLeafType,
		TimestampedEntry: &ct.TimestampedEntry{
			Timestamp: sct.Timestamp, EntryType: ct.PrecertLogEntryType, Extensions: sct.Extensions,
			PrecertEntry: &ct.PreCert{IssuerKeyHash: sha256.Sum256(a.chain[0].RawSubjectPublicKeyInfo), TBSCertificate: req.tbs},
		},
	})
}

// issued is the record of a certificate.
func issued(cert *x509.Certificate, v *vouched, sct *ct.SignedCertificateTimestamp, leaf [sha256.Size]byte) audit.Event {
	sum := sha256.Sum256(cert.Raw)
	san, _ := subjectName(cert)
	issuer, _ := extension(cert, oidIssuer)
	fields := map[string]any{
		"serial":        cert.SerialNumber.Text(16),
		"sha256":        hex.EncodeToString(sum[:]),
		"san":           bounded(san, maxRecorded),
		"issuer":        bounded(string(issuer), maxRecorded),
		"not_before":    cert.NotBefore.UTC(),
		"not_after":     cert.NotAfter.UTC(),
		"ct_leaf_hash":  hex.EncodeToString(leaf[:]), // RFC 6962 section 4.5 finds the entry by it
		"sct_timestamp": sct.Timestamp,
	}
	if v.token.Issuer != string(issuer) {
		fields["token_issuer"] = bounded(v.token.Issuer, maxRecorded)
	}
	return audit.Event{Type: audit.Issued, Service: service, Fields: fields}
}
