// Package fulcio runs Fulcio, the certificate authority of keyless signing, in
// this process: for a token of an issuer it trusts it certifies a key for ten
// minutes, with proof that the certificate is in the certificate transparency
// log.
//
// Upstream's server takes requests, checks keys and drives issuance; its types
// of issuers turn tokens into identities; its CA drafts certificates. What is
// ours is around and between: verification of tokens with issuers that may be
// away or in this process, the lint before the signature, and the record.
package fulcio

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	ctclient "github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sigstore/fulcio/pkg/identity"
	"github.com/sigstore/fulcio/pkg/server"
	v1 "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/inproc"
)

const service = "fulcio"

// permitted are the keys that clients may have certified: upstream's defaults.
var permitted = []v1.PublicKeyDetails{
	v1.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
	v1.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384,
	v1.PublicKeyDetails_PKIX_ECDSA_P521_SHA_512,
	v1.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256,
	v1.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256,
	v1.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256,
	v1.PublicKeyDetails_PKIX_ED25519,
}

// Config says whose tokens are taken and what is issued with.
type Config struct {
	// Signer is the key of Chain's first certificate, ECDSA P-256 or P-384.
	Signer crypto.Signer
	// Chain is the issuing certificate first, the root last.
	Chain []*x509.Certificate
	// Issuers may be empty: then nobody gets a certificate.
	Issuers []Issuer
	// CIProviders are what issuers of type ci-provider refer to.
	CIProviders map[string]CIProvider
	// CTLog serves the log below CTLogPath.
	CTLog http.Handler
	// CTLogPath is the path of the log; empty means /ctlog.
	CTLogPath string
	// CTLogKey verifies what the log promises.
	CTLogKey crypto.PublicKey
	// Audit records each precertificate before the log is given it, each
	// certificate before it leaves, and refusals. An error keeps the answer in.
	Audit   audit.Func
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Service is one certificate authority.
type Service struct {
	handler   http.Handler
	log       *ctclient.LogClient
	verifiers *verifiers
	refusals  *refusals
	logger    *slog.Logger
	ready     chan struct{}
	once      sync.Once
}

// New checks the configuration. It reaches for no issuer: Run does.
func New(ctx context.Context, cfg Config) (*Service, error) {
	switch {
	case cfg.Signer == nil || len(cfg.Chain) == 0:
		return nil, errors.New("fulcio: no signer or no certificate chain")
	case cfg.CTLog == nil || cfg.CTLogKey == nil:
		return nil, errors.New("fulcio: no certificate transparency log")
	case cfg.Audit == nil:
		return nil, errors.New("fulcio: no audit record")
	case cfg.Logger == nil:
		return nil, errors.New("fulcio: no logger")
	}
	issuers, upstream, err := newIssuers(cfg.Issuers, cfg.CIProviders)
	if err != nil {
		return nil, fmt.Errorf("fulcio: %w", err)
	}
	ca, err := newAuthority(cfg)
	if err != nil {
		return nil, err
	}
	log, err := newLogClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("fulcio: ct log: %w", err)
	}
	algorithms, err := signature.NewAlgorithmRegistryConfig(permitted)
	if err != nil {
		return nil, fmt.Errorf("fulcio: permitted keys: %w", err)
	}
	m, err := newMetrics(cfg.Metrics, cfg.Chain)
	if err != nil {
		return nil, fmt.Errorf("fulcio: metrics: %w", err)
	}
	v, err := newVerifiers(issuers, cfg.Logger, m)
	if err != nil {
		return nil, fmt.Errorf("fulcio: issuers: %w", err)
	}
	routeLogs(cfg.Logger)
	refusals := newRefusals(cfg.Audit)
	handler, err := newHandler(ctx, &caServer{
		GRPCCAServer: server.NewGRPCCAServer(log, ca, algorithms, identity.IssuerPool{&authenticator{v}}),
		config:       upstream,
		refusals:     refusals,
		logger:       cfg.Logger,
		metrics:      m,
	})
	if err != nil {
		return nil, err
	}
	return &Service{
		handler:   handler,
		log:       log,
		verifiers: v,
		refusals:  refusals,
		logger:    cfg.Logger,
		ready:     make(chan struct{}),
	}, nil
}

// newLogClient makes a client that checks the log's signature on every promise.
func newLogClient(cfg Config) (*ctclient.LogClient, error) {
	der, err := x509.MarshalPKIXPublicKey(cfg.CTLogKey)
	if err != nil {
		return nil, err
	}
	path := cfg.CTLogPath
	if path == "" {
		path = "/ctlog"
	}
	return ctclient.New("http://ctlog.invalid"+path,
		&http.Client{Transport: inproc.Transport{Handler: cfg.CTLog}},
		jsonclient.Options{PublicKeyDER: der, Logger: clientLog{cfg.Logger}})
}

// Handler serves /api/v1/{signingCert,rootCert} and
// /api/v2/{signingCert,trustBundle,configuration}.
func (s *Service) Handler() http.Handler { return s.handler }

// Ready is closed when the log answers and every issuer of this process is
// known. Issuers elsewhere are not waited for.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run reaches for the issuers, so that the first signature does not have to,
// and then puts refusals on record until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	var local sync.WaitGroup
	for _, v := range s.verifiers.fixed {
		if v.issuer.Local == nil {
			// A failure is logged and counted; the next token tries again.
			go func() { _, _ = v.discovered(ctx) }()
			continue
		}
		local.Go(func() { until(ctx, func() error { _, err := v.discovered(ctx); return err }) })
	}
	local.Go(func() { until(ctx, func() error { return s.logAnswers(ctx) }) })
	local.Wait()
	if ctx.Err() == nil {
		s.once.Do(func() { close(s.ready) })
	}
	s.refusals.run(ctx, func(err error) { s.logger.ErrorContext(ctx, "refusals are not on record", "error", err) })
	return nil
}

// logAnswers asks for a tree head, whose signature the client verifies. A log
// that is there and signs nothing at present is an answer too: certificates are
// refused then, one by one.
func (s *Service) logAnswers(ctx context.Context) error {
	_, err := s.log.GetSTH(ctx)
	var refused jsonclient.RspError
	if errors.As(err, &refused) && refused.StatusCode == http.StatusServiceUnavailable {
		return nil
	}
	return err
}

// until tries every 50 ms until it works or ctx is done.
func until(ctx context.Context, try func() error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for try() != nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
