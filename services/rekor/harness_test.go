package rekor

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
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	"github.com/sigstore/rekor/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	gocose "github.com/veraison/go-cose"

	"github.com/sigbox/sigbox/internal/audit"
)

// instance is a log that a test talks to over HTTP.
type instance struct {
	*Service
	t   testing.TB
	cfg Config
	url string

	mu     sync.Mutex
	events []audit.Event
}

// newConfig makes what a Service needs: a log, a key and an index.
func newConfig(t testing.TB) Config {
	t.Helper()
	return configFor(t, createLog(t, t.TempDir()))
}

func configFor(t testing.TB, log logServer) Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Create(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return Config{
		TreeID: log.tree, Signer: key, Hostname: "log.example.com",
		TrillianAddress: log.address, TrillianPort: log.port, Dir: dir,
		Audit:  func(context.Context, audit.Event) error { return nil },
		Logger: slog.New(slog.DiscardHandler),
	}
}

// start runs a Service until the test ends or stop is called.
func start(t testing.TB, cfg Config) *instance {
	t.Helper()
	i := &instance{t: t}
	inner := cfg.Audit
	cfg.Audit = func(ctx context.Context, e audit.Event) error {
		if err := inner(ctx, e); err != nil {
			return err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		i.events = append(i.events, e)
		return nil
	}
	i.cfg = cfg
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	i.Service = s
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-ran:
		t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready after 20 s")
	}
	server := httptest.NewServer(s.Handler())
	i.url = server.URL
	t.Cleanup(func() {
		server.Close()
		cancel()
		<-ran // a test that breaks the index knows what this says
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// stop closes the service before the test's end, as a restart does.
func (i *instance) stop() {
	i.t.Helper()
	if err := i.Close(); err != nil {
		i.t.Fatal(err)
	}
}

type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (i *instance) do(method, path, contentType string, body io.Reader) answer {
	i.t.Helper()
	req, err := http.NewRequestWithContext(i.t.Context(), method, i.url+path, body)
	if err != nil {
		i.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, data}
}

func (i *instance) get(path string) answer {
	i.t.Helper()
	return i.do(http.MethodGet, path, "", nil)
}

func (i *instance) post(path string, body any) answer {
	i.t.Helper()
	raw, ok := body.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			i.t.Fatal(err)
		}
	}
	return i.do(http.MethodPost, path, "application/json", bytes.NewReader(raw))
}

// create logs the entry and returns what was acknowledged.
func (i *instance) create(entry models.ProposedEntry) (id string, logged models.LogEntryAnon) {
	i.t.Helper()
	a := i.post(createPath, entry)
	if a.code != http.StatusCreated {
		i.t.Fatalf("create: %d %s", a.code, a.body)
	}
	return i.entry(a.body)
}

// entry decodes and verifies one log entry: inclusion, checkpoint, timestamp.
func (i *instance) entry(body []byte) (id string, logged models.LogEntryAnon) {
	i.t.Helper()
	var all models.LogEntry
	if err := json.Unmarshal(body, &all); err != nil {
		i.t.Fatalf("%v: %s", err, body)
	}
	if len(all) != 1 {
		i.t.Fatalf("%d entries in the answer, want 1", len(all))
	}
	verifier, err := signature.LoadVerifier(i.cfg.Signer.Public(), crypto.SHA256)
	if err != nil {
		i.t.Fatal(err)
	}
	for id, logged = range all {
		if err := verify.VerifyLogEntry(i.t.Context(), &logged, verifier); err != nil {
			i.t.Fatalf("entry %s does not verify: %v", id, err)
		}
		if *logged.LogID != i.LogID() {
			i.t.Errorf("log id %s, want %s", *logged.LogID, i.LogID())
		}
	}
	return id, logged
}

func (i *instance) search(query any) []string {
	i.t.Helper()
	a := i.post(indexPath, query)
	if a.code != http.StatusOK {
		i.t.Fatalf("search: %d %s", a.code, a.body)
	}
	var ids []string
	if err := json.Unmarshal(a.body, &ids); err != nil {
		i.t.Fatal(err)
	}
	return ids
}

func (i *instance) audited() []audit.Event {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]audit.Event(nil), i.events...)
}

// identity is a key and a certificate such as Fulcio issues.
type identity struct {
	key     *ecdsa.PrivateKey
	certPEM []byte
	email   string
	uri     string
}

func newIdentity(t testing.TB, email string) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri := "https://ci.example.com/Jobs/" + email
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:   big.NewInt(time.Now().UnixNano()),
		Subject:        pkix.Name{Organization: []string{"test"}},
		NotBefore:      time.Now().Add(-time.Minute),
		NotAfter:       time.Now().Add(10 * time.Minute),
		EmailAddresses: []string{email},
		URIs:           []*url.URL{u},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return identity{key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), email, uri}
}

func (id identity) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, id.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func propose(t testing.TB, kind, version string, props types.ArtifactProperties) models.ProposedEntry {
	t.Helper()
	entry, err := types.NewProposedEntry(t.Context(), kind, version, props)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func (id identity) hashedrekord(t testing.TB, artifact []byte) models.ProposedEntry {
	return propose(t, "hashedrekord", "0.0.1", types.ArtifactProperties{
		ArtifactHash: sha256Hex(artifact), SignatureBytes: id.sign(t, artifact),
		PublicKeyBytes: [][]byte{id.certPEM}, PKIFormat: "x509",
	})
}

// statement is an in-toto statement about the artifact.
func statement(artifact []byte) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://example.com/p","subject":[{"name":"a","digest":{"sha256":%q}}],"predicate":{}}`, sha256Hex(artifact))
}

func (id identity) envelope(t testing.TB, payload []byte) []byte {
	t.Helper()
	const payloadType = "application/vnd.in-toto+json"
	env, err := json.Marshal(dsse.Envelope{
		PayloadType: payloadType,
		Payload:     base64.StdEncoding.EncodeToString(payload),
		Signatures:  []dsse.Signature{{Sig: base64.StdEncoding.EncodeToString(id.sign(t, dsse.PAE(payloadType, payload)))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func (id identity) attestation(t testing.TB, kind, version string, artifact []byte) models.ProposedEntry {
	return propose(t, kind, version, types.ArtifactProperties{
		ArtifactBytes: id.envelope(t, statement(artifact)), PublicKeyBytes: [][]byte{id.certPEM},
	})
}

func (id identity) coseMessage(t testing.TB, payload []byte) []byte {
	t.Helper()
	signer, err := gocose.NewSigner(gocose.AlgorithmES256, id.key)
	if err != nil {
		t.Fatal(err)
	}
	m := gocose.NewSign1Message()
	m.Payload = payload
	m.Headers.Protected.SetAlgorithm(gocose.AlgorithmES256)
	m.Headers.Protected[gocose.HeaderLabelContentType] = "application/vnd.in-toto+json"
	if err := m.Sign(rand.Reader, []byte("aad"), signer); err != nil {
		t.Fatal(err)
	}
	raw, err := m.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (id identity) cose(t testing.TB, payload []byte) models.ProposedEntry {
	return propose(t, "cose", "0.0.1", types.ArtifactProperties{
		ArtifactBytes: id.coseMessage(t, payload), PublicKeyBytes: [][]byte{id.certPEM},
		AdditionalAuthenticatedData: []byte("aad"),
	})
}
