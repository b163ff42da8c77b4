package fulcio

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/sigbox/sigbox/internal/inproc"
)

const (
	// discoveryTimeout bounds one request to an issuer.
	discoveryTimeout = 10 * time.Second
	// discoveryPause is the time between attempts to discover an issuer that is
	// away, so that a burst of tokens does not become a burst of requests.
	discoveryPause = time.Second
	// refetchPause is how long an issuer's answer is good for. Keys are fetched
	// again for each token whose signature fits none, and anybody can send such
	// tokens.
	refetchPause = 5 * time.Second
	// maxIssuerAnswer bounds what is read from an issuer, in bytes.
	maxIssuerAnswer = 1 << 20
	// maxPatternIssuers is how many issuers that match a pattern are remembered.
	maxPatternIssuers = 256
)

var (
	errUnreachable = errors.New("the token's issuer cannot be reached")
	errSignature   = errors.New("signature does not verify")
)

// verifiers finds what verifies the tokens of an issuer. Discovery is lazy, so
// that an issuer that is away keeps nobody else from signing.
type verifiers struct {
	issuers  []*issuer
	fixed    map[string]*verifier
	matching *lru.TwoQueueCache[string, *verifier]
	mu       sync.Mutex // guards the step from a miss in matching to its entry
	logger   *slog.Logger
	metrics  *metrics
}

func newVerifiers(issuers []*issuer, logger *slog.Logger, m *metrics) (*verifiers, error) {
	cache, err := lru.New2Q[string, *verifier](maxPatternIssuers)
	if err != nil {
		return nil, err
	}
	v := &verifiers{issuers: issuers, fixed: map[string]*verifier{}, matching: cache, logger: logger, metrics: m}
	for _, i := range issuers {
		if i.pattern == nil {
			v.fixed[i.URL] = v.newVerifier(i, i.URL)
		}
	}
	return v, nil
}

// find returns the issuer called url. An exact name goes before patterns, and
// those in the order of the configuration.
func (v *verifiers) find(url string) (*issuer, *verifier, error) {
	if f, ok := v.fixed[url]; ok {
		return f.issuer, f, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if m, ok := v.matching.Get(url); ok {
		return m.issuer, m, nil
	}
	for _, i := range v.issuers {
		if i.pattern != nil && i.matches(url) {
			m := v.newVerifier(i, url)
			v.matching.Add(url, m)
			return i, m, nil
		}
	}
	return nil, nil, fmt.Errorf("issuer %q is not configured", bounded(url, 200))
}

// verifier verifies the tokens of one issuer.
type verifier struct {
	*verifiers
	issuer *issuer
	url    string
	client *http.Client
	flight singleflight.Group

	mu      sync.Mutex
	oidc    *oidc.IDTokenVerifier
	err     error
	retryAt time.Time
}

func (v *verifiers) newVerifier(i *issuer, url string) *verifier {
	return &verifier{
		verifiers: v,
		issuer:    i,
		url:       url,
		client: &http.Client{
			Timeout:   discoveryTimeout,
			Transport: &source{base: i.base, issuer: i.Issuer, url: url, answers: map[string]answer{}},
			// Neither the metadata nor the keys of an issuer are elsewhere than
			// where it says (CVE-2026-49478).
			CheckRedirect: func(req *http.Request, _ []*http.Request) error {
				return fmt.Errorf("redirect to %s is not followed", req.URL.Redacted())
			},
		},
	}
}

// verify checks signature, issuer, audience and time. Algorithms are those that
// the issuer announces, of the asymmetric ones; RS256 if it announces none.
func (v *verifier) verify(ctx context.Context, token string) (*oidc.IDToken, error) {
	verifier, err := v.discovered(ctx)
	if err != nil {
		return nil, err
	}
	t, err := verifier.Verify(ctx, token)
	switch {
	case err == nil:
		return t, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	// go-oidc has no errors of its own for these two, and formats what it wraps.
	case strings.Contains(err.Error(), "fetching keys"):
		v.failed(ctx, err)
		return nil, errUnreachable
	case strings.Contains(err.Error(), "failed to verify signature"):
		return nil, errSignature
	}
	return nil, err
}

// discovered returns the issuer's verifier, discovering it first if need be.
func (v *verifier) discovered(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	v.mu.Lock()
	known, err, wait := v.oidc, v.err, time.Now().Before(v.retryAt)
	v.mu.Unlock()
	if known != nil {
		return known, nil
	}
	if err != nil && wait {
		return nil, errUnreachable
	}
	// Detached from the request: others wait for the same answer.
	done := v.flight.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discoveryTimeout)
		defer cancel()
		return v.discover(ctx)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-done:
		if r.Err != nil {
			return nil, errUnreachable
		}
		return r.Val.(*oidc.IDTokenVerifier), nil
	}
}

func (v *verifier) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, v.client), v.url)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.err, v.retryAt = err, time.Now().Add(discoveryPause)
		v.failed(ctx, err)
		return nil, err
	}
	v.oidc, v.err = provider.Verifier(&oidc.Config{ClientID: v.issuer.ClientID}), nil
	return v.oidc, nil
}

func (v *verifier) failed(ctx context.Context, err error) {
	v.metrics.unreachable.WithLabelValues(v.issuer.name()).Inc()
	v.logger.WarnContext(ctx, "issuer cannot be reached", "issuer", v.url, "error", err)
}

// source is how an issuer is read. It buffers each answer, within bounds, and
// gives the same one again for a while.
type source struct {
	base   http.RoundTripper
	issuer Issuer
	url    string

	mu      sync.Mutex
	answers map[string]answer
}

type answer struct {
	at     time.Time
	status int
	header http.Header
	body   []byte
}

func (s *source) RoundTrip(req *http.Request) (*http.Response, error) {
	home, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	if home.Scheme == "https" && req.URL.Scheme != "https" {
		return nil, fmt.Errorf("issuer points to %s, without TLS", req.URL.Redacted())
	}
	key := req.Method + " " + req.URL.String()
	s.mu.Lock()
	defer s.mu.Unlock() // requests to one issuer one at a time: there are two a key rotation
	if a, ok := s.answers[key]; ok && s.issuer.Local == nil && time.Since(a.at) < refetchPause {
		return a.response(req), nil
	}
	a, err := s.ask(req, home)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusOK {
		if len(s.answers) > 8 {
			clear(s.answers)
		}
		s.answers[key] = a
	}
	return a.response(req), nil
}

func (s *source) ask(req *http.Request, home *url.URL) (a answer, err error) {
	if s.issuer.Local != nil {
		if req.URL.Scheme != home.Scheme || req.URL.Host != home.Host {
			return answer{}, fmt.Errorf("issuer in this process points to %s, which is not here", req.URL.Redacted())
		}
		// The keys are fetched on a goroutine of go-oidc's: a panic there would
		// be the end of the process.
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("issuer in this process panicked: %v", p)
			}
		}()
	}
	if s.issuer.TokenFile != "" && req.URL.Host == home.Host {
		token, err := os.ReadFile(s.issuer.TokenFile)
		if err != nil {
			return answer{}, fmt.Errorf("reading token for issuer: %w", err)
		}
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	}
	resp, err := s.base.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxIssuerAnswer+1))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return answer{}, err
	}
	if len(body) > maxIssuerAnswer {
		return answer{}, fmt.Errorf("issuer's answer is larger than %d bytes", maxIssuerAnswer)
	}
	return answer{at: time.Now(), status: resp.StatusCode, header: resp.Header, body: body}, nil
}

func (a answer) response(req *http.Request) *http.Response {
	return &http.Response{
		Status:        strconv.Itoa(a.status) + " " + http.StatusText(a.status),
		StatusCode:    a.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        a.header.Clone(),
		Body:          io.NopCloser(bytes.NewReader(a.body)),
		ContentLength: int64(len(a.body)),
		Request:       req,
	}
}

// transport is the way to an issuer.
func transport(in Issuer) (http.RoundTripper, error) {
	if in.Local != nil {
		if in.CAFile != "" || in.TokenFile != "" {
			return nil, errors.New("is in this process: it has no CA and needs no token")
		}
		return inproc.Transport{Handler: in.Local}, nil
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if in.CAFile != "" {
		pool, err := caPool(in.CAFile)
		if err != nil {
			return nil, err
		}
		tlsConfig.RootCAs = pool
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    discoveryTimeout,
		ResponseHeaderTimeout:  discoveryTimeout,
		IdleConnTimeout:        time.Minute,
		MaxIdleConns:           2,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}, nil
}
