package ctlog_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	ctclient "github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/google/trillian"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/services/ctlog"
	trillianservice "github.com/sigbox/sigbox/services/trillian"
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

// ca is a CA with an intermediate, as Fulcio's is.
type ca struct {
	t      testing.TB
	root   *x509.Certificate
	inter  *x509.Certificate
	signer crypto.Signer
}

func newCA(t testing.TB) *ca {
	t.Helper()
	rootKey, key := newKey(t), newKey(t)
	tmpl := func(name string) pki.Template {
		return pki.Template{Subject: pkix.Name{CommonName: name, Organization: []string{"test"}}, Now: time.Now(), Lifetime: time.Hour}
	}
	root, err := pki.NewRoot(rootKey, tmpl("root"))
	if err != nil {
		t.Fatal(err)
	}
	inter, err := pki.NewIntermediate(pki.Issuer{Certificate: root, Signer: rootKey}, key.Public(), tmpl("fulcio"))
	if err != nil {
		t.Fatal(err)
	}
	return &ca{t, root, inter, key}
}

var (
	poison = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: asn1.NullBytes}
	serial int64
)

// leaf is the DER of a new certificate.
func (c *ca) leaf(usage x509.ExtKeyUsage, ext ...pkix.Extension) []byte {
	c.t.Helper()
	serial++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now(), NotAfter: time.Now().Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		EmailAddresses: []string{"alice@example.com"}, ExtraExtensions: ext,
	}, c.inter, newKey(c.t).Public(), c.signer)
	if err != nil {
		c.t.Fatal(err)
	}
	return der
}

func (c *ca) chain(leaf []byte) [][]byte { return [][]byte{leaf, c.inter.Raw, c.root.Raw} }

// logServer runs a real log server and returns a log in it.
func logServer(t testing.TB) (trillian.TrillianLogClient, int64) {
	t.Helper()
	dir := t.TempDir()
	cfg := trillianservice.Config{
		Dir: filepath.Join(dir, "logs"), AnchorDir: filepath.Join(dir, "anchor"), Instance: "instance",
		SocketDir: t.TempDir(), SequenceOnWrite: true, Logger: quiet,
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := trillianservice.Create(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	s, err := trillianservice.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.CreateLog(ctx, trillianservice.LogOptions{Name: "ct", MaxRootDuration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.Client(), id
}

type log struct {
	t   testing.TB
	url string
	key *ecdsa.PrivateKey
	*ctlog.Service
}

func newLog(t testing.TB, c *ca, server trillian.TrillianLogClient, id int64) *log {
	t.Helper()
	l := &log{t: t, key: newKey(t)}
	var err error
	l.Service, err = ctlog.New(context.Background(), ctlog.Config{
		TreeID: id, Signer: l.key, Roots: []*x509.Certificate{c.root}, Log: server, Dir: t.TempDir(), Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(l.Handler())
	t.Cleanup(srv.Close)
	l.url = srv.URL + ctlog.Prefix
	return l
}

func (l *log) client() *ctclient.LogClient {
	l.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(l.key.Public())
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := ctclient.New(l.url, http.DefaultClient, jsonclient.Options{PublicKeyDER: der})
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *log) post(path string, body []byte) (int, string, http.Header) {
	l.t.Helper()
	resp, err := http.Post(l.url+path, "application/json", bytes.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, string(out), resp.Header
}

func submission(chain ...[]byte) []byte {
	encoded := []string{}
	for _, der := range chain {
		encoded = append(encoded, base64.StdEncoding.EncodeToString(der))
	}
	out, err := json.Marshal(map[string]any{"chain": encoded})
	if err != nil {
		panic(err)
	}
	return out
}

func asn1Chain(chain [][]byte) []ct.ASN1Cert {
	var out []ct.ASN1Cert
	for _, der := range chain {
		out = append(out, ct.ASN1Cert{Data: der})
	}
	return out
}

// A promise is kept: what the log signed for is in the tree that it signs, and
// proves to be.
func TestLogs(t *testing.T) {
	c := newCA(t)
	server, id := logServer(t)
	l := newLog(t, c, server, id)
	client, ctx := l.client(), context.Background()

	pre := asn1Chain(c.chain(c.leaf(x509.ExtKeyUsageCodeSigning, poison)))
	sct, err := client.AddPreChain(ctx, pre) // verifies the signature
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.AddPreChain(ctx, pre)
	if err != nil {
		t.Fatal(err)
	}
	if again.Timestamp != sct.Timestamp {
		t.Error("the same certificate got two timestamps")
	}
	if _, err := client.AddChain(ctx, asn1Chain(c.chain(c.leaf(x509.ExtKeyUsageCodeSigning)))); err != nil {
		t.Fatal(err)
	}

	sth, err := client.GetSTH(ctx) // verifies the signature
	if err != nil {
		t.Fatal(err)
	}
	if sth.TreeSize != 2 {
		t.Fatalf("tree has %d entries", sth.TreeSize)
	}
	leaf, err := ct.MerkleTreeLeafFromRawChain(pre, ct.PrecertLogEntryType, sct.Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := ct.LeafHashForLeaf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	inclusion, err := client.GetProofByHash(ctx, hash[:], sth.TreeSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(inclusion.LeafIndex), sth.TreeSize, hash[:], inclusion.AuditPath, sth.SHA256RootHash[:]); err != nil {
		t.Error(err)
	}
	if _, err := client.GetSTHConsistency(ctx, 1, 2); err != nil {
		t.Error(err)
	}
	entries, err := client.GetEntries(ctx, 0, 1)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	roots, err := client.GetAcceptedRoots(ctx)
	if err != nil || len(roots) != 1 || !bytes.Equal(roots[0].Data, c.root.Raw) {
		t.Errorf("%d roots, %v", len(roots), err)
	}
}

func TestRefuses(t *testing.T) {
	c, stranger := newCA(t), newCA(t)
	server, id := logServer(t)
	l := newLog(t, c, server, id)
	good, pre := c.leaf(x509.ExtKeyUsageCodeSigning), c.leaf(x509.ExtKeyUsageCodeSigning, poison)
	damaged := bytes.Clone(pre)
	damaged[len(damaged)-1] ^= 1
	big := make([][]byte, 200)
	for i := range big {
		big[i] = c.root.Raw
	}
	for name, test := range map[string]struct {
		path   string
		body   []byte
		status int
	}{
		"nothing":                     {"add-pre-chain", nil, 400},
		"not JSON":                    {"add-pre-chain", []byte("hello"), 400},
		"truncated":                   {"add-pre-chain", submission(c.chain(pre)...)[:900], 400},
		"no chain":                    {"add-pre-chain", []byte("{}"), 400},
		"empty chain":                 {"add-chain", submission(), 400},
		"empty certificate":           {"add-chain", submission([]byte{}), 400},
		"garbage for a certificate":   {"add-chain", submission([]byte("hello")), 400},
		"not base64":                  {"add-chain", []byte(`{"chain":["!!!"]}`), 400},
		"precertificate as one":       {"add-chain", submission(c.chain(pre)...), 400},
		"certificate as precert":      {"add-pre-chain", submission(c.chain(good)...), 400},
		"another CA":                  {"add-chain", submission(stranger.chain(stranger.leaf(x509.ExtKeyUsageCodeSigning))...), 400},
		"another CA's intermediate":   {"add-chain", submission(good, stranger.inter.Raw, c.root.Raw), 400},
		"for a web server":            {"add-chain", submission(c.chain(c.leaf(x509.ExtKeyUsageServerAuth))...), 400},
		"bad signature":               {"add-pre-chain", submission(c.chain(damaged)...), 400},
		"out of order":                {"add-pre-chain", submission(pre, c.root.Raw, c.inter.Raw), 400},
		"no intermediate":             {"add-pre-chain", submission(pre, c.root.Raw), 400},
		"alone":                       {"add-pre-chain", submission(pre), 400},
		"the intermediate for itself": {"add-chain", submission(c.inter.Raw, c.root.Raw), 200},
		"endless chain":               {"add-pre-chain", submission(append(c.chain(pre), big...)...), 413},
		"oversized":                   {"add-chain", bytes.Repeat([]byte(" "), 1<<20), 413},
	} {
		status, out, _ := l.post("/ct/v1/"+test.path, test.body)
		if status != test.status {
			t.Errorf("%s: status %d, want %d: %.300s", name, status, test.status, out)
		}
	}
	for path, want := range map[string]int{
		"/ct/v1/add-chain": 405, "/ct/v1/nothing": 404, "/": 404,
		"/ct/v1/get-entries": 400, "/ct/v1/get-entries?start=-1&end=2": 400, "/ct/v1/get-entries?start=5&end=2": 400,
		"/ct/v1/get-proof-by-hash?hash=x&tree_size=1": 400, "/ct/v1/get-sth-consistency?first=9&second=3": 400,
		"/ct/v1/get-entry-and-proof?leaf_index=9&tree_size=3": 400,
	} {
		resp, err := http.Get(l.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: status %d, want %d", path, resp.StatusCode, want)
		}
	}
	if status, _, _ := l.post("/ct/v1/get-sth", nil); status != 405 {
		t.Errorf("POST get-sth: status %d", status)
	}
}

// faulty is a log server that goes wrong on the way in.
type faulty struct {
	trillian.TrillianLogClient
	queue func() error
}

func (f faulty) QueueLeaf(context.Context, *trillian.QueueLeafRequest, ...grpc.CallOption) (*trillian.QueueLeafResponse, error) {
	return nil, f.queue()
}

func TestLogServerGoesWrong(t *testing.T) {
	c := newCA(t)
	server, id := logServer(t)
	for name, test := range map[string]struct {
		fault  func() error
		status int
		retry  bool
	}{
		"away":      {func() error { return status.Error(codes.Unavailable, "disk full at /secret") }, 503, true},
		"busy":      {func() error { return status.Error(codes.ResourceExhausted, "later") }, 429, true},
		"slow":      {func() error { return status.Error(codes.DeadlineExceeded, "later") }, 504, false},
		"broken":    {func() error { return fmt.Errorf("sqlite: disk I/O error at /secret") }, 500, false},
		"panicking": {func() error { panic("/secret") }, 500, false},
	} {
		l := newLog(t, c, faulty{server, test.fault}, id)
		status, out, header := l.post("/ct/v1/add-pre-chain", submission(c.chain(c.leaf(x509.ExtKeyUsageCodeSigning, poison))...))
		if status != test.status || strings.Contains(out, "signature") {
			t.Errorf("%s: status %d, want %d: %s", name, status, test.status, out)
		}
		if (header.Get("Retry-After") != "") != test.retry {
			t.Errorf("%s: Retry-After %q", name, header.Get("Retry-After"))
		}
		if status == 500 && strings.Contains(out, "secret") {
			t.Errorf("%s: answer tells of the machine: %s", name, out)
		}
	}
}

func TestReady(t *testing.T) {
	c := newCA(t)
	server, id := logServer(t)
	l := newLog(t, c, server, id)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	select {
	case <-l.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A tree that is not there is an error, and never made.
	lost := newLog(t, c, server, id+1)
	if err := lost.Run(context.Background()); err == nil {
		t.Error("runs without its tree")
	}
	select {
	case <-lost.Ready():
		t.Error("ready without its tree")
	default:
	}
}

func TestNewRefuses(t *testing.T) {
	c := newCA(t)
	server, id := logServer(t)
	good := ctlog.Config{TreeID: id, Signer: newKey(t), Roots: []*x509.Certificate{c.root}, Log: server, Dir: t.TempDir(), Logger: quiet}
	for name, change := range map[string]func(*ctlog.Config){
		"no tree":   func(c *ctlog.Config) { c.TreeID = 0 },
		"no signer": func(c *ctlog.Config) { c.Signer = nil },
		"no roots":  func(c *ctlog.Config) { c.Roots = nil },
		"no server": func(c *ctlog.Config) { c.Log = nil },
		"no folder": func(c *ctlog.Config) { c.Dir = filepath.Join(c.Dir, "nothing") },
		"no logger": func(c *ctlog.Config) { c.Logger = nil },
	} {
		cfg := good
		change(&cfg)
		if _, err := ctlog.New(context.Background(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
