package tuf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Names of the two targets that current clients read. The others are for
// clients that predate them; see Targets.
const (
	TrustedRootName   = "trusted_root.json"
	SigningConfigName = "signing_config.v0.2.json"
)

// Authority is a certificate authority (Fulcio) or a timestamp authority.
type Authority struct {
	// Chain is leaf-most first and ends with the self-signed root: for Fulcio
	// the intermediates and the root, for a timestamp authority its signing
	// certificate too.
	Chain []*x509.Certificate
	// URL is what clients talk to: Fulcio's origin, or the full endpoint of the
	// timestamp authority.
	URL string
	// Start and End bound the times at which its signatures are believed.
	// Zero End: still in use.
	Start, End time.Time
}

// Log is a certificate transparency log or a Rekor v1 log.
type Log struct {
	PublicKey crypto.PublicKey
	// URL is what clients talk to.
	URL string
	// Start and End bound the times at which its signatures are believed.
	// Zero End: still in use.
	Start, End time.Time
}

// TrustMaterial is everything that an instance vouches for. Each list holds
// the past ones too, oldest first, since signatures of theirs must go on
// verifying.
type TrustMaterial struct {
	Fulcio []Authority
	CTLogs []Log
	Rekor  []Log
	TSAs   []Authority
	// OIDCIssuers are where people sign in. One is the rule: clients choose
	// among several by themselves.
	OIDCIssuers []string
	// Operator names who runs the instance, as a URI without scheme such as
	// "sigstore.example.com" (protobuf-specs, Service.operator).
	Operator string
}

// Target is one file that the repository vouches for.
type Target struct {
	Name   string
	Data   []byte
	Custom json.RawMessage // "custom" in the targets metadata; may be nil
}

// TrustedRoot is trusted_root.json: the material to verify signatures with.
// The media type is v0.1, the one every client reads.
func (m *TrustMaterial) TrustedRoot() ([]byte, error) {
	pb := &trustroot.TrustedRoot{MediaType: root.TrustedRootMediaType01}
	var err error
	if pb.CertificateAuthorities, err = authorities("fulcio", m.Fulcio); err != nil {
		return nil, err
	}
	if pb.TimestampAuthorities, err = authorities("timestamp authority", m.TSAs); err != nil {
		return nil, err
	}
	if pb.Ctlogs, err = logs("ct log", m.CTLogs); err != nil {
		return nil, err
	}
	if pb.Tlogs, err = logs("rekor", m.Rekor); err != nil {
		return nil, err
	}
	data, err := marshal(pb)
	if err != nil {
		return nil, err
	}
	// What clients cannot read must not be signed.
	if _, err := root.NewTrustedRootFromJSON(data); err != nil {
		return nil, fmt.Errorf("trusted root does not read back: %w", err)
	}
	return data, nil
}

// SigningConfig is signing_config.v0.2.json: where to sign.
func (m *TrustMaterial) SigningConfig() ([]byte, error) {
	var issuers []endpoint
	start := time.Time{}
	for _, a := range m.Fulcio {
		if start.IsZero() || a.Start.Before(start) {
			start = a.Start
		}
	}
	for _, u := range m.OIDCIssuers {
		issuers = append(issuers, endpoint{URL: u, Start: start})
	}
	anyOf := func(n int) *trustroot.ServiceConfiguration {
		if n == 0 {
			return nil
		}
		return &trustroot.ServiceConfiguration{Selector: trustroot.ServiceSelector_ANY}
	}
	pb := &trustroot.SigningConfig{
		MediaType:       root.SigningConfigMediaType02,
		RekorTlogConfig: anyOf(len(m.Rekor)),
		TsaConfig:       anyOf(len(m.TSAs)),
	}
	var err error
	for _, s := range []struct {
		into *[]*trustroot.Service
		from []endpoint
	}{
		{&pb.CaUrls, authorityEndpoints(m.Fulcio)},
		{&pb.OidcUrls, issuers},
		{&pb.RekorTlogUrls, logEndpoints(m.Rekor)},
		{&pb.TsaUrls, authorityEndpoints(m.TSAs)},
	} {
		if *s.into, err = m.services(s.from); err != nil {
			return nil, err
		}
	}
	data, err := marshal(pb)
	if err != nil {
		return nil, err
	}
	if _, err := root.NewSigningConfigFromJSON(data); err != nil {
		return nil, fmt.Errorf("signing config does not read back: %w", err)
	}
	return data, nil
}

func authorities(what string, list []Authority) ([]*trustroot.CertificateAuthority, error) {
	var out []*trustroot.CertificateAuthority
	for _, a := range list {
		if err := checkChain(a.Chain); err != nil {
			return nil, fmt.Errorf("%s at %s: %w", what, a.URL, err)
		}
		validFor, err := timeRange(a.Start, a.End)
		if err != nil {
			return nil, fmt.Errorf("%s at %s: %w", what, a.URL, err)
		}
		top := a.Chain[len(a.Chain)-1].Subject
		pb := &trustroot.CertificateAuthority{
			Subject:   &common.DistinguishedName{Organization: strings.Join(top.Organization, " "), CommonName: top.CommonName},
			Uri:       a.URL,
			CertChain: &common.X509CertificateChain{},
			ValidFor:  validFor,
			// No operator: clients of the time before that field exists refuse a
			// file that has it.
		}
		for _, c := range a.Chain {
			pb.CertChain.Certificates = append(pb.CertChain.Certificates, &common.X509Certificate{RawBytes: c.Raw})
		}
		out = append(out, pb)
	}
	return out, nil
}

// checkChain refuses a chain that clients would not be able to build: each
// certificate must be issued by the next, the last by itself.
func checkChain(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate chain")
	}
	for i, c := range chain {
		issuer := chain[min(i+1, len(chain)-1)]
		if err := c.CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("certificate %q is not issued by %q: %w", c.Subject, issuer.Subject, err)
		}
	}
	return nil
}

func logs(what string, list []Log) ([]*trustroot.TransparencyLogInstance, error) {
	var out []*trustroot.TransparencyLogInstance
	for _, l := range list {
		validFor, err := timeRange(l.Start, l.End)
		if err != nil {
			return nil, fmt.Errorf("%s at %s: %w", what, l.URL, err)
		}
		der, err := x509.MarshalPKIXPublicKey(l.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("%s at %s: %w", what, l.URL, err)
		}
		details, err := keyDetails(l.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("%s at %s: %w", what, l.URL, err)
		}
		id := sha256.Sum256(der) // RFC 6962 §3.2, and Rekor v1's log ID alike
		for _, other := range out {
			if bytes.Equal(other.GetLogId().GetKeyId(), id[:]) {
				return nil, fmt.Errorf("%s at %s: its key is listed twice", what, l.URL)
			}
		}
		out = append(out, &trustroot.TransparencyLogInstance{
			BaseUrl:       l.URL,
			HashAlgorithm: common.HashAlgorithm_SHA2_256,
			PublicKey:     &common.PublicKey{RawBytes: der, KeyDetails: details, ValidFor: validFor},
			LogId:         &common.LogId{KeyId: id[:]},
		})
	}
	return out, nil
}

func keyDetails(pub crypto.PublicKey) (common.PublicKeyDetails, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return common.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, nil
		case elliptic.P384():
			return common.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384, nil
		}
	case *rsa.PublicKey:
		switch k.Size() * 8 {
		case 2048:
			return common.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256, nil
		case 3072:
			return common.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256, nil
		case 4096:
			return common.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256, nil
		}
	case ed25519.PublicKey:
		return common.PublicKeyDetails_PKIX_ED25519, nil
	}
	return 0, fmt.Errorf("unsupported kind of log key: %T", pub)
}

// endpoint is one URL and when it serves.
type endpoint struct {
	URL        string
	Start, End time.Time
}

func authorityEndpoints(list []Authority) []endpoint {
	var out []endpoint
	for _, a := range list {
		out = append(out, endpoint{a.URL, a.Start, a.End})
	}
	return out
}

func logEndpoints(list []Log) []endpoint {
	var out []endpoint
	for _, l := range list {
		out = append(out, endpoint{l.URL, l.Start, l.End})
	}
	return out
}

// services lists each URL once, newest first as the specification of the
// signing config asks. Where keys changed behind a URL, the URL serves from
// the first one's start to the last one's end.
func (m *TrustMaterial) services(list []endpoint) ([]*trustroot.Service, error) {
	var merged []endpoint
	for _, e := range list {
		u, err := url.Parse(e.URL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("signing config: %q is not an http or https URL", e.URL)
		}
		i := slices.IndexFunc(merged, func(o endpoint) bool { return o.URL == e.URL })
		if i < 0 {
			merged = append(merged, e)
			continue
		}
		o := &merged[i]
		if e.Start.Before(o.Start) {
			o.Start = e.Start
		}
		if e.End.IsZero() || (!o.End.IsZero() && e.End.After(o.End)) {
			o.End = e.End
		}
	}
	slices.SortStableFunc(merged, func(a, b endpoint) int { return b.Start.Compare(a.Start) })
	var out []*trustroot.Service
	for _, e := range merged {
		validFor, err := timeRange(e.Start, e.End)
		if err != nil {
			return nil, fmt.Errorf("signing config: %s: %w", e.URL, err)
		}
		// Every service here speaks version 1 of its API. Clients take the highest
		// version listed, so nothing else may be.
		out = append(out, &trustroot.Service{Url: e.URL, MajorApiVersion: 1, ValidFor: validFor, Operator: m.Operator})
	}
	return out, nil
}

func timeRange(start, end time.Time) (*common.TimeRange, error) {
	if start.IsZero() {
		return nil, errors.New("no start of validity")
	}
	r := &common.TimeRange{Start: timestamppb.New(start.Truncate(time.Second))}
	if !end.IsZero() {
		if end.Before(start) {
			return nil, fmt.Errorf("validity ends (%s) before it starts (%s)", end.Format(time.RFC3339), start.Format(time.RFC3339))
		}
		r.End = timestamppb.New(end.Truncate(time.Second))
	}
	return r, nil
}

// marshal gives the same bytes each time, which protojson on purpose does not.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}
