package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-openapi/runtime"
	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	"github.com/sigbox/sigbox/internal/cli"
	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/rekor/pkg/generated/client"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// bundleMediaType is what is written: the format of cosign v3 and every current
// client.
const bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

const inTotoType = "application/vnd.in-toto+json"

// maxStalls bounds how often a signature is begun anew because the log was
// slower than the certificate lives.
const maxStalls = 2

// Signer signs with one instance in the name of a token's holder.
type Signer struct {
	trust     *Trust
	transport *transport
	endpoints Endpoints
	token     Token
}

// Signed is a signature that was verified after it was made.
type Signed struct {
	Verified
	// Bundle is the signature with all that proves it (bundle format 0.3).
	Bundle []byte `json:"-"`
	// Digest of what was signed, "sha256:…".
	Digest string `json:"digest"`
}

// Signer asks the instance for its current trust, since what it signs with now
// must verify, and signs with the services that the trust names.
func (p *Profile) Signer(ctx context.Context, token Token) (*Signer, error) {
	trust, err := p.Refresh(ctx)
	if err != nil {
		return nil, err
	}
	t, err := p.transport(ctx)
	if err != nil {
		return nil, err
	}
	endpoints, err := trust.Endpoints()
	if err != nil {
		return nil, err
	}
	return &Signer{trust, t, endpoints, token}, nil
}

// SignBlob signs what the reader gives, without keeping it in memory.
func (s *Signer) SignBlob(ctx context.Context, artifact io.Reader) (*Signed, error) {
	h := sha256.New()
	if _, err := io.Copy(h, artifact); err != nil {
		return nil, fmt.Errorf("reading the artifact: %w", err)
	}
	digest := h.Sum(nil)
	// PlainData only wraps the signature here: the digest stands for the data.
	return s.sign(ctx, digest, digest, &sign.PlainData{}, verify.WithArtifactDigest("sha256", digest))
}

// signStatement signs an in-toto statement about the artifact with this digest.
func (s *Signer) signStatement(ctx context.Context, statement, artifact []byte) (*Signed, error) {
	content := &sign.DSSEData{Data: statement, PayloadType: inTotoType}
	digest := sha256.Sum256(content.PreAuthEncoding())
	return s.sign(ctx, digest[:], artifact, content, verify.WithArtifactDigest("sha256", artifact))
}

func (s *Signer) sign(ctx context.Context, digest, artifact []byte, content sign.Content, policy verify.ArtifactPolicyOption) (*Signed, error) {
	var first error
	for range maxStalls {
		signed, err := s.once(ctx, digest, content, policy)
		if err == nil {
			signed.Digest = fmt.Sprintf("sha256:%x", artifact)
			return signed, nil
		}
		var stalled *stalledError
		if !errors.As(err, &stalled) {
			if first != nil {
				// The second try is refused where tokens work only once.
				err = fmt.Errorf("%w; a second try: %w", first, err)
			}
			return nil, err
		}
		first = err
	}
	return nil, first
}

// stalledError says that the log was too slow for the certificate.
type stalledError struct{ integrated, end time.Time }

func (e *stalledError) Error() string {
	return fmt.Sprintf("the log took the entry at %s, after the certificate's end at %s",
		e.integrated.Format(time.RFC3339), e.end.Format(time.RFC3339))
}

// once makes one signature: certificate, then timestamp and log entry at the
// same time, then the check that all of it verifies. The timestamp comes after
// the certificate, since it must lie within its life.
func (s *Signer) once(ctx context.Context, digest []byte, content sign.Content, policy verify.ArtifactPolicyOption) (*Signed, error) {
	key, err := newKeypair()
	if err != nil {
		return nil, err
	}
	signature, err := ecdsa.SignASN1(rand.Reader, key.key, digest)
	if err != nil {
		return nil, err
	}
	fulcio := sign.NewFulcio(&sign.FulcioOptions{BaseURL: s.endpoints.Fulcio, Transport: s.transport})
	der, err := fulcio.GetCertificate(ctx, key, &sign.CertificateProviderOptions{IDToken: s.token.raw})
	if err != nil {
		return nil, fmt.Errorf("getting a certificate: %w", cause(err))
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("getting a certificate: %w", err)
	}
	if !key.key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("getting a certificate: it is for another key")
	}
	pb := &bundlepb.Bundle{
		MediaType: bundleMediaType,
		VerificationMaterial: &bundlepb.VerificationMaterial{
			Content: &bundlepb.VerificationMaterial_Certificate{Certificate: &common.X509Certificate{RawBytes: der}},
		},
	}
	content.Bundle(pb, signature, digest, common.HashAlgorithm_SHA2_256)

	type stamped struct {
		response []byte
		err      error
	}
	stamp := make(chan stamped, 1)
	go func() {
		tsa := sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: s.endpoints.TSA, Transport: s.transport})
		response, err := tsa.GetTimestamp(ctx, signature)
		stamp <- stamped{response, err}
	}()
	logErr := s.log(ctx, der, pb)
	ts := <-stamp
	if logErr != nil {
		return nil, fmt.Errorf("logging the signature: %w", cause(logErr))
	}
	if ts.err != nil {
		return nil, fmt.Errorf("getting a timestamp: %w", cause(ts.err))
	}
	pb.VerificationMaterial.TimestampVerificationData = &bundlepb.TimestampVerificationData{
		Rfc3161Timestamps: []*common.RFC3161SignedTimestamp{{SignedTimestamp: ts.response}},
	}

	b, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, fmt.Errorf("the services' answers make no bundle: %w", err)
	}
	for _, e := range pb.VerificationMaterial.TlogEntries {
		if at := time.Unix(e.GetIntegratedTime(), 0); e.GetIntegratedTime() > 0 && at.After(cert.NotAfter) {
			return nil, &stalledError{at.UTC(), cert.NotAfter.UTC()}
		}
	}
	// Whoever the certificate names holds the token, which is all that is known
	// here; everything else must hold as for anyone who verifies.
	v, err := s.trust.verify(b, policy, verify.WithoutIdentitiesUnsafe())
	if err != nil {
		// A "no" here is a failure of the instance, not a verdict on somebody's
		// signature.
		return nil, &cli.Error{
			Code: cli.ExitFailed, Hint: "sigbox trust show tells what is trusted here; the instance's `sigboxd status` what it signs with",
			Err: fmt.Errorf("what the instance signed does not verify: %w", err),
		}
	}
	data, err := marshalBundle(b)
	if err != nil {
		return nil, err
	}
	return &Signed{Verified: *v, Bundle: data}, nil
}

// log puts the signature into Rekor and its proof into the bundle.
func (s *Signer) log(ctx context.Context, der []byte, pb *bundlepb.Bundle) error {
	u, err := url.Parse(s.endpoints.Rekor)
	if err != nil {
		return err
	}
	base := u.Path
	if base == "" {
		base = rekor.DefaultBasePath
	}
	c := s.transport.client()
	c.Transport = jsonOnly{c.Transport}
	rt := httptransport.NewWithClient(u.Host, base, []string{u.Scheme}, c)
	rt.Consumers["application/json"] = runtime.JSONConsumer()
	rt.Producers["application/json"] = runtime.JSONProducer()
	log := sign.NewRekor(&sign.RekorOptions{
		BaseURL: s.endpoints.Rekor,
		Client:  rekor.New(rt, strfmt.Default).Entries,
		Version: 1,
	})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return log.GetTransparencyLogEntry(ctx, certPEM, pb)
}

// jsonOnly reports refusals in plain text, such as a proxy's, which Rekor's
// client cannot read.
type jsonOnly struct{ http.RoundTripper }

func (j jsonOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := j.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode < 400 || strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return resp, err
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	_ = resp.Body.Close()
	return nil, fmt.Errorf("%s answered %s: %s", req.URL.Host, resp.Status, strings.TrimSpace(string(text)))
}

// cause strips what net/http adds around the transport's own errors.
func cause(err error) error {
	var u *url.Error
	if errors.As(err, &u) && errors.As(u.Err, new(*busyError)) {
		return cli.Hint(u.Err, "the instance is overloaded or starting: try again")
	}
	return err
}

// keypair is a key for one signature. Unlike sigstore-go's it signs a digest
// that was made elsewhere, so that an artifact need not be in memory.
type keypair struct{ key *ecdsa.PrivateKey }

func newKeypair() (keypair, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return keypair{k}, err
}

func (keypair) GetHashAlgorithm() common.HashAlgorithm { return common.HashAlgorithm_SHA2_256 }
func (keypair) GetSigningAlgorithm() common.PublicKeyDetails {
	return common.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256
}
func (keypair) GetHint() []byte                  { return nil }
func (keypair) GetKeyAlgorithm() string          { return "ECDSA" }
func (k keypair) GetPublicKey() crypto.PublicKey { return k.key.Public() }
func (k keypair) GetPublicKeyPem() (string, error) {
	b, err := cryptoutils.MarshalPublicKeyToPEM(k.key.Public())
	return string(b), err
}

func (k keypair) SignData(_ context.Context, data []byte) (signature, digest []byte, err error) {
	sum := sha256.Sum256(data)
	signature, err = ecdsa.SignASN1(rand.Reader, k.key, sum[:])
	return signature, sum[:], err
}

var (
	_ sign.Keypair      = keypair{}
	_ http.RoundTripper = (*transport)(nil)
)
