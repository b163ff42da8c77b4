package fulcio_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/services/ctlog"
	"github.com/sigbox/sigbox/services/fulcio"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// idp is an OIDC issuer: an HTTP server with discovery and a key.
type idp struct {
	t      testing.TB
	key    *ecdsa.PrivateKey
	kid    string
	server *httptest.Server
	path   string

	mu     sync.Mutex
	hits   map[string]int
	change func(w http.ResponseWriter, r *http.Request) bool // true: answered
}

func newIDP(t testing.TB, start func(http.Handler) *httptest.Server) *idp {
	p := &idp{t: t, key: newKey(t), kid: "k1", hits: map[string]int{}}
	if start == nil {
		start = httptest.NewServer
	}
	p.server = start(p)
	t.Cleanup(p.server.Close)
	return p
}

func (p *idp) url() string { return p.server.URL + p.path }

func (p *idp) count(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits[path]
}

func (p *idp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.hits[r.URL.Path]++
	change := p.change
	p.mu.Unlock()
	if change != nil && change(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case p.path + "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.url(), "jwks_uri": p.url() + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "ES256", "HS256", "none"},
		})
	case p.path + "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid, Algorithm: "ES256", Use: "sig"}}})
	default:
		http.NotFound(w, r)
	}
}

type claims map[string]any

// claims of a token that is good for type email.
func (p *idp) claims(extra claims) claims {
	c := claims{
		"iss": p.url(), "aud": "sigstore", "sub": "alice", "email": "alice@example.com", "email_verified": true,
		"iat": time.Now().Unix(), "exp": time.Now().Add(5 * time.Minute).Unix(),
	}
	for k, v := range extra {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

func (p *idp) token(extra claims) string { return sign(p.t, p.key, p.kid, p.claims(extra)) }

func sign(t testing.TB, key crypto.PrivateKey, kid string, c claims) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// recorder is an audit record that can be made to fail; the rest is a real one.
type recorder struct {
	log *audit.Log

	mu     sync.Mutex
	err    error
	typ    string // that err is for; empty: all
	events []audit.Event
}

func newRecorder(t testing.TB) *recorder {
	t.Helper()
	o := audit.Options{Dir: t.TempDir(), Instance: "test"}
	if err := audit.Create(o); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &recorder{log: l}
}

func (r *recorder) append(ctx context.Context, e audit.Event) error {
	r.mu.Lock()
	err := r.err
	if r.typ != "" && e.Type != r.typ {
		err = nil
	}
	if err == nil {
		r.events = append(r.events, e)
	}
	r.mu.Unlock()
	if errors.Is(err, errHangs) {
		<-ctx.Done()
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return r.log.Append(ctx, e)
}

// fail makes events of a type, or all, fail with err; errHangs means that they
// get no answer.
func (r *recorder) fail(typ string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.typ, r.err = typ, err
}

func (r *recorder) count(typ string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Type == typ {
			n++
		}
	}
	return n
}

func (r *recorder) last(typ string) *audit.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.events) - 1; i >= 0; i-- {
		if r.events[i].Type == typ {
			return &r.events[i]
		}
	}
	return nil
}

// instance is a Fulcio with its CT log.
type instance struct {
	t       testing.TB
	url     string
	handler http.Handler
	chain   []*x509.Certificate
	ctKey   *ecdsa.PrivateKey
	ctLog   http.Handler
	audit   *recorder
	service *fulcio.Service
}

type option func(*fulcio.Config)

func withIssuers(issuers ...fulcio.Issuer) option {
	return func(c *fulcio.Config) { c.Issuers = issuers }
}

func (p *idp) issuer(typ string) fulcio.Issuer {
	return fulcio.Issuer{URL: p.url(), ClientID: "sigstore", Type: typ}
}

// newChain makes a CA whose intermediate lasts for the time given.
func newChain(t testing.TB, lasts time.Duration) (crypto.Signer, []*x509.Certificate) {
	t.Helper()
	rootKey, key := newKey(t), newKey(t)
	tmpl := func(name string, lasts time.Duration) pki.Template {
		return pki.Template{Subject: pkix.Name{CommonName: name, Organization: []string{"test"}}, Now: time.Now(), Lifetime: lasts}
	}
	root, err := pki.NewRoot(rootKey, tmpl("root", 24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.NewIntermediate(pki.Issuer{Certificate: root, Signer: rootKey}, key.Public(), tmpl("fulcio", lasts))
	if err != nil {
		t.Fatal(err)
	}
	return key, []*x509.Certificate{ca, root}
}

func newInstance(t testing.TB, opts ...option) *instance {
	t.Helper()
	in, err := tryInstance(t, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func tryInstance(t testing.TB, opts ...option) (*instance, error) {
	t.Helper()
	signer, chain := newChain(t, 12*time.Hour)
	in := &instance{t: t, ctKey: newKey(t), audit: newRecorder(t)}
	cfg := fulcio.Config{Signer: signer, Chain: chain, CTLogKey: in.ctKey.Public(), Audit: in.audit.append, Logger: quiet, Metrics: prometheus.NewRegistry()}
	for _, o := range opts {
		o(&cfg)
	}
	in.chain = cfg.Chain
	if cfg.CTLog == nil {
		tree := newTree(t)
		log, err := ctlog.New(context.Background(), ctlog.Config{
			TreeID: tree.id, Signer: in.ctKey, Roots: in.chain[len(in.chain)-1:], Log: tree.client, Dir: t.TempDir(), Logger: quiet,
		})
		if err != nil {
			t.Fatal(err)
		}
		cfg.CTLog = log.Handler()
	}
	in.ctLog = cfg.CTLog
	s, err := fulcio.New(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	in.service, in.handler = s, s.Handler()
	srv := httptest.NewServer(in.handler)
	t.Cleanup(srv.Close)
	in.url = srv.URL
	return in, nil
}

// csr is a request body of the second API with a signing request.
func csr(t testing.TB, token string, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ignored"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return body(t, map[string]any{
		"credentials":               map[string]any{"oidcIdentityToken": token},
		"certificateSigningRequest": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	})
}

// possession is a request body of the second API with a key and the signature
// over the subject that proves its possession.
func possession(t testing.TB, token string, key, prover *ecdsa.PrivateKey, subject string) []byte {
	t.Helper()
	sum := sha256.Sum256([]byte(subject))
	sig, err := ecdsa.SignASN1(rand.Reader, prover, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return body(t, map[string]any{
		"credentials": map[string]any{"oidcIdentityToken": token},
		"publicKeyRequest": map[string]any{
			"publicKey":         map[string]any{"algorithm": "ECDSA", "content": publicPEM(t, key)},
			"proofOfPossession": base64.StdEncoding.EncodeToString(sig),
		},
	})
}

func publicPEM(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func body(t testing.TB, v any) []byte {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (in *instance) post(path, authorization string, body []byte) (int, string, http.Header) {
	in.t.Helper()
	req, err := http.NewRequest(http.MethodPost, in.url+path, bytes.NewReader(body))
	if err != nil {
		in.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	return resp.StatusCode, string(out), resp.Header
}

// sign asks for a certificate by CSR.
func (in *instance) sign(token string) (int, string) {
	in.t.Helper()
	status, out, _ := in.post("/api/v2/signingCert", "", csr(in.t, token, newKey(in.t)))
	return status, out
}

// issue is sign where it must work.
func (in *instance) issue(token string) *x509.Certificate {
	in.t.Helper()
	status, out := in.sign(token)
	if status != http.StatusOK {
		in.t.Fatalf("status %d: %s", status, out)
	}
	return leaf(in.t, out)
}

func leaf(t testing.TB, answer string) *x509.Certificate {
	t.Helper()
	var resp struct {
		Embedded struct {
			Chain struct{ Certificates []string }
		} `json:"signedCertificateEmbeddedSct"`
	}
	if err := json.Unmarshal([]byte(answer), &resp); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	certs, err := pki.Parse([]byte(strings.Join(resp.Embedded.Chain.Certificates, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// refused asserts a status and that the answer says why.
func (in *instance) refused(what, token string, status int, why string) {
	in.t.Helper()
	got, out := in.sign(token)
	if got != status || !strings.Contains(out, why) {
		in.t.Errorf("%s: status %d, want %d with %q: %s", what, got, status, why, out)
	}
}

var (
	errDisk  = errors.New("no space left on device")
	errHangs = errors.New("hangs")
)
