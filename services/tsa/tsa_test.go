package tsa_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"

	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/services/tsa"
)

const artifact = "what was there"

func authority(t testing.TB, curve elliptic.Curve) (*httptest.Server, []*x509.Certificate) {
	t.Helper()
	rootKey, key := newKey(t, curve), newKey(t, curve)
	tmpl := func(name string) pki.Template {
		return pki.Template{Subject: pkix.Name{CommonName: name, Organization: []string{"test"}}, Now: time.Now(), Lifetime: time.Hour}
	}
	ca, err := pki.NewRoot(rootKey, tmpl("tsa root"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.NewTimestamping(pki.Issuer{Certificate: ca, Signer: rootKey}, key.Public(), tmpl("tsa"))
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{leaf, ca}
	s, err := tsa.New(context.Background(), tsa.Config{
		Signer: key, Chain: chain,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	return srv, chain
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func post(t testing.TB, srv *httptest.Server, contentType string, body []byte) (int, []byte, http.Header) {
	t.Helper()
	resp, err := http.Post(srv.URL+"/api/v1/timestamp", contentType, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, out, resp.Header
}

func query(t testing.TB, r timestamp.Request) []byte {
	t.Helper()
	der, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func digest(h crypto.Hash) []byte {
	w := h.New()
	w.Write([]byte(artifact))
	return w.Sum(nil)
}

// What clients verify with is the judge: sigstore-go's root and the timestamp
// authority's own library.
func TestStampsVerify(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		srv, chain := authority(t, curve)
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for _, withCert := range []bool{false, true} {
				nonce, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
				if err != nil {
					t.Fatal(err)
				}
				status, reply, header := post(t, srv, "application/timestamp-query",
					query(t, timestamp.Request{HashAlgorithm: h, HashedMessage: digest(h), Nonce: nonce, Certificates: withCert}))
				if status != http.StatusOK || header.Get("Content-Type") != "application/timestamp-reply" {
					t.Fatalf("%s: status %d, type %s: %s", h, status, header.Get("Content-Type"), reply)
				}
				stamp, err := verification.VerifyTimestampResponse(reply, strings.NewReader(artifact), verification.VerifyOpts{
					TSACertificate: chain[0], Roots: chain[1:], Nonce: nonce, OID: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2},
				})
				if err != nil {
					t.Fatalf("%s %s: %v", curve.Params().Name, h, err)
				}
				if got := len(stamp.Certificates) > 0; got != withCert {
					t.Errorf("certificate in the reply: %t, asked for: %t", got, withCert)
				}
				trusted := root.SigstoreTimestampingAuthority{Root: chain[1], Leaf: chain[0]}
				if _, err := trusted.Verify(reply, []byte(artifact)); err != nil {
					t.Errorf("sigstore-go: %v", err)
				}
				if _, err := trusted.Verify(reply, []byte("something else")); err == nil {
					t.Error("stamp verifies for something else")
				}
			}
		}
	}
}

func TestOpenSSLVerifies(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is needed to check the stamps against an implementation that is not Go's")
	}
	srv, chain := authority(t, elliptic.P256())
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	data, ca, leaf := file("data", []byte(artifact)), file("ca.pem", pki.Encode(chain[1])), file("leaf.pem", pki.Encode(chain[0]))
	tsq := filepath.Join(dir, "tsq")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("ts", "-query", "-data", data, "-sha512", "-cert", "-out", tsq)
	q, err := os.ReadFile(tsq)
	if err != nil {
		t.Fatal(err)
	}
	status, reply, _ := post(t, srv, "application/timestamp-query", q)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, reply)
	}
	tsr := file("tsr", reply)
	run("ts", "-verify", "-queryfile", tsq, "-in", tsr, "-CAfile", ca, "-untrusted", leaf)
	run("ts", "-verify", "-data", data, "-in", tsr, "-CAfile", ca, "-untrusted", leaf)
}

func TestJSONForm(t *testing.T) {
	srv, chain := authority(t, elliptic.P256())
	sum := sha512.Sum384([]byte(artifact))
	body, err := json.Marshal(map[string]any{
		"artifactHash": base64.StdEncoding.EncodeToString(sum[:]), "hashAlgorithm": "sha384", "nonce": 1123343434, "certificates": true,
		"tsaPolicyOID": "1.3.6.1.4.1.57264.2",
	})
	if err != nil {
		t.Fatal(err)
	}
	status, reply, _ := post(t, srv, "application/json", body)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, reply)
	}
	if _, err := verification.VerifyTimestampResponse(reply, strings.NewReader(artifact), verification.VerifyOpts{
		Roots: chain[1:], Nonce: big.NewInt(1123343434),
	}); err != nil {
		t.Error(err)
	}
}

func TestRefuses(t *testing.T) {
	srv, _ := authority(t, elliptic.P256())
	good := timestamp.Request{HashAlgorithm: crypto.SHA256, HashedMessage: digest(crypto.SHA256)}
	with := func(f func(*timestamp.Request)) []byte {
		r := good
		f(&r)
		return query(t, r)
	}
	const tsq = "application/timestamp-query"
	giant := make(asn1.ObjectIdentifier, 2000)
	copy(giant, []int{1, 3})
	for name, test := range map[string]struct {
		contentType string
		body        []byte
		status      int
	}{
		"nothing":       {tsq, nil, 400},
		"garbage":       {tsq, []byte("\x30\x82\xff\xff garbage"), 400},
		"truncated":     {tsq, query(t, good)[:20], 400},
		"trailing data": {tsq, append(query(t, good), 0), 400},
		"SHA-1":         {tsq, with(func(r *timestamp.Request) { r.HashAlgorithm = crypto.SHA1; r.HashedMessage = make([]byte, 20) }), 400},
		"short digest":  {tsq, with(func(r *timestamp.Request) { r.HashedMessage = r.HashedMessage[:31] }), 400},
		"long digest":   {tsq, with(func(r *timestamp.Request) { r.HashedMessage = make([]byte, 64) }), 400},
		"other policy":  {tsq, with(func(r *timestamp.Request) { r.TSAPolicyOID = asn1.ObjectIdentifier{1, 2, 3} }), 400},
		"giant OID":     {tsq, with(func(r *timestamp.Request) { r.TSAPolicyOID = giant }), 400},
		"extension": {tsq, with(func(r *timestamp.Request) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
		}), 400},
		"oversized":          {tsq, make([]byte, 1<<20), 413},
		"oversized OID":      {tsq, with(func(r *timestamp.Request) { r.TSAPolicyOID = append(giant, make([]int, 9000)...) }), 413},
		"no type":            {"", query(t, good), 415},
		"wrong type":         {"text/plain", query(t, good), 415},
		"giant type":         {tsq + ";x=" + strings.Repeat("application/", 5000), query(t, good), 415},
		"JSON as DER":        {tsq, []byte(`{"hashAlgorithm":"sha256"}`), 400},
		"JSON without hash":  {"application/json", []byte(`{"hashAlgorithm":"sha256"}`), 400},
		"JSON SHA-1":         {"application/json", []byte(`{"hashAlgorithm":"sha1","artifactHash":"AAAA"}`), 400},
		"JSON giant nonce":   {"application/json", []byte(`{"nonce":` + strings.Repeat("9", 1<<20) + `}`), 413},
		"JSON trailing data": {"application/json", []byte(`{"hashAlgorithm":"sha256","artifactHash":"` + base64.StdEncoding.EncodeToString(digest(crypto.SHA256)) + `"} {}`), 400},
	} {
		status, reply, _ := post(t, srv, test.contentType, test.body)
		var e struct{ Message string }
		if err := json.Unmarshal(reply, &e); status != test.status || err != nil || e.Message == "" {
			t.Errorf("%s: status %d, want %d: %s", name, status, test.status, reply)
		}
	}
	resp, err := http.Get(srv.URL + "/api/v1/timestamp")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: status %d", resp.StatusCode)
	}
}

func TestChain(t *testing.T) {
	srv, chain := authority(t, elliptic.P256())
	resp, err := http.Get(srv.URL + "/api/v1/timestamp/certchain")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pki.Parse(data)
	if err != nil || len(got) != 2 || !got[0].Equal(chain[0]) || !got[1].Equal(chain[1]) {
		t.Errorf("chain of %d, %v", len(got), err)
	}
}

func TestNewRefuses(t *testing.T) {
	_, chain := authority(t, elliptic.P256())
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	if _, err := tsa.New(context.Background(), tsa.Config{Signer: newKey(t, elliptic.P256()), Chain: chain, Logger: logger}); err == nil {
		t.Error("took a key that is not the certificate's")
	}
	if _, err := tsa.New(context.Background(), tsa.Config{Signer: newKey(t, elliptic.P256()), Chain: chain[1:], Logger: logger}); err == nil {
		t.Error("took a chain without a leaf")
	}
	if _, err := tsa.New(context.Background(), tsa.Config{Chain: chain, Logger: logger}); err == nil {
		t.Error("took no signer")
	}
}

func TestRunIsReady(t *testing.T) {
	k := newKey(t, elliptic.P256())
	ca, err := pki.NewRoot(k, pki.Template{Subject: pkix.Name{CommonName: "r"}, Now: time.Now(), Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.NewTimestamping(pki.Issuer{Certificate: ca, Signer: k}, k.Public(),
		pki.Template{Subject: pkix.Name{CommonName: "t"}, Now: time.Now(), Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s, err := tsa.New(context.Background(), tsa.Config{Signer: k, Chain: []*x509.Certificate{leaf, ca}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkStamp(b *testing.B) {
	srv, _ := authority(b, elliptic.P256())
	sum := sha256.Sum256([]byte(artifact))
	body := query(b, timestamp.Request{HashAlgorithm: crypto.SHA256, HashedMessage: sum[:]})
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/api/v1/timestamp", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/timestamp-query")
		w := httptest.NewRecorder()
		srv.Config.Handler.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}
