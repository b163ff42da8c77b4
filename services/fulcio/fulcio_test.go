package fulcio_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/sigstore/fulcio/pkg/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/services/fulcio"
)

// verifies has sigstore-go, the clients' library, judge chain and SCT.
func (in *instance) verifies(cert *x509.Certificate) {
	in.t.Helper()
	ca := &root.FulcioCertificateAuthority{Root: in.chain[1], Intermediates: in.chain[:1], ValidityPeriodStart: in.chain[1].NotBefore}
	der, err := x509.MarshalPKIXPublicKey(in.ctKey.Public())
	if err != nil {
		in.t.Fatal(err)
	}
	id := sha256.Sum256(der)
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, []root.CertificateAuthority{ca},
		map[string]*root.TransparencyLog{hex.EncodeToString(id[:]): {
			ID: id[:], PublicKey: in.ctKey.Public(), ValidityPeriodStart: in.chain[1].NotBefore,
		}}, nil, nil)
	if err != nil {
		in.t.Fatal(err)
	}
	// As sigstore-go does before it gets here: crypto/x509 does not know a SAN
	// that is an otherName, and the name is matched by sigstore-go itself.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, func(oid asn1.ObjectIdentifier) bool {
		return oid.Equal(cryptoutils.SANOID)
	})
	chains, err := verify.VerifyLeafCertificate(cert.NotBefore, cert, trusted)
	if err != nil {
		in.t.Fatalf("chain: %v", err)
	}
	if err := verify.VerifySignedCertificateTimestamp(chains, 1, trusted); err != nil {
		in.t.Errorf("SCT: %v", err)
	}
}

func TestCertificate(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	key := newKey(t)
	status, out, _ := in.post("/api/v2/signingCert", "", csr(t, p.token(nil), key))
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, out)
	}
	cert := leaf(t, out)
	in.verifies(cert)
	if !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("certificate is for another key")
	}
	if d := cert.NotAfter.Sub(cert.NotBefore); d > 10*time.Minute+time.Second {
		t.Errorf("is valid for %s", d)
	}
	e := in.audit.last(audit.Issued)
	if e == nil {
		t.Fatal("is not on record")
	}
	sum := sha256.Sum256(cert.Raw)
	for field, want := range map[string]any{
		"serial": cert.SerialNumber.Text(16), "sha256": hex.EncodeToString(sum[:]), "san": "alice@example.com", "issuer": p.url(),
		"not_before": cert.NotBefore.UTC(), "not_after": cert.NotAfter.UTC(),
	} {
		if e.Fields[field] != want {
			t.Errorf("record has %s %v, want %v", field, e.Fields[field], want)
		}
	}
	if line, err := json.Marshal(e); err != nil || bytes.Contains(line, []byte("eyJ")) {
		t.Errorf("record holds a token, or %v: %s", err, line)
	}
}

// Every way to ask: both APIs, token in body and header, request and proof.
func TestWaysToAsk(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	key, token := newKey(t), p.token(nil)

	status, out, _ := in.post("/api/v2/signingCert", "", possession(t, token, key, key, "alice@example.com"))
	if status != http.StatusOK {
		t.Fatalf("proof of possession: status %d: %s", status, out)
	}
	in.verifies(leaf(t, out))

	var request map[string]any
	if err := json.Unmarshal(possession(t, "", key, key, "alice@example.com"), &request); err != nil {
		t.Fatal(err)
	}
	delete(request, "credentials")
	status, out, _ = in.post("/api/v2/signingCert", "Bearer "+token, body(t, request))
	if status != http.StatusOK {
		t.Fatalf("token in header: status %d: %s", status, out)
	}

	var v2 struct {
		PublicKeyRequest struct {
			ProofOfPossession string
		}
	}
	if err := json.Unmarshal(possession(t, "", key, key, "alice@example.com"), &v2); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	status, out, header := in.post("/api/v1/signingCert", "Bearer "+token, body(t, map[string]any{
		"publicKey":          map[string]any{"algorithm": "ecdsa", "content": der},
		"signedEmailAddress": v2.PublicKeyRequest.ProofOfPossession,
	}))
	if status != http.StatusCreated || header.Get("Content-Type") != "application/pem-certificate-chain" {
		t.Fatalf("first API: status %d: %s", status, out)
	}
	certs, err := pki.Parse([]byte(out))
	if err != nil || len(certs) != 3 {
		t.Fatalf("first API: %d certificates, %v", len(certs), err)
	}
	in.verifies(certs[0])
}

func TestPublicMaterial(t *testing.T) {
	p := newIDP(t, nil)
	pattern := fulcio.Issuer{Pattern: "https://oidc.eks.*.example.com/id/*", ClientID: "sigstore", Type: "kubernetes"}
	in := newInstance(t, withIssuers(p.issuer("email"), pattern))
	get := func(path string) string {
		resp, err := http.Get(in.url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: status %d, %v", path, resp.StatusCode, err)
		}
		return string(out)
	}
	certs, err := pki.Parse([]byte(get("/api/v1/rootCert")))
	if err != nil || len(certs) != 2 || !certs[0].Equal(in.chain[0]) || !certs[1].Equal(in.chain[1]) {
		t.Errorf("root certificates: %d, %v", len(certs), err)
	}
	if out := get("/api/v2/trustBundle"); strings.Count(out, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("trust bundle: %s", out)
	}
	out := get("/api/v2/configuration")
	for _, want := range []string{p.url(), "https://oidc.eks.*.example.com/id/*", `"challengeClaim":"email"`, `"audience":"sigstore"`} {
		if !strings.Contains(out, want) {
			t.Errorf("configuration lacks %q: %s", want, out)
		}
	}
}

// Each type of issuer that upstream knows yields the name it is known for.
func TestTypesOfIssuers(t *testing.T) {
	workflow := claims{
		"job_workflow_ref": "org/repo/.github/workflows/w.yml@refs/heads/main", "sha": "s", "event_name": "push", "repository": "org/repo",
		"workflow": "w", "ref": "refs/heads/main", "job_workflow_sha": "s", "runner_environment": "github-hosted", "repository_id": "1",
		"repository_owner": "org", "repository_owner_id": "2", "repository_visibility": "public", "workflow_ref": "org/repo/w@main",
		"workflow_sha": "s", "run_id": "3", "run_attempt": "1",
	}
	providers := map[string]fulcio.CIProvider{"forge": {
		Defaults:        map[string]string{"base": "https://forge.internal"},
		Extensions:      map[string]string{"source-repository-uri": "{{ .base }}/{{ .repository }}", "source-repository-digest": "sha"},
		SubjectTemplate: "{{ .base }}/{{ .repository }}/run/{{ .run }}",
	}}
	for typ, test := range map[string]struct {
		issuer fulcio.Issuer
		claims claims
		san    string
	}{
		"email":    {san: "alice@example.com"},
		"username": {fulcio.Issuer{SubjectDomain: "127.0.0.1"}, claims{"sub": "alice"}, "alice!127.0.0.1"},
		"uri":      {fulcio.Issuer{SubjectDomain: "http://127.0.0.1"}, claims{"sub": "http://127.0.0.1/users/1"}, "http://127.0.0.1/users/1"},
		"spiffe":   {fulcio.Issuer{SPIFFETrustDomain: "internal"}, claims{"sub": "spiffe://internal/ns/a/sa/b"}, "spiffe://internal/ns/a/sa/b"},
		"kubernetes": {
			claims: claims{"kubernetes.io": map[string]any{"namespace": "ns", "serviceaccount": map[string]any{"name": "sa"}}},
			san:    "https://kubernetes.io/namespaces/ns/serviceaccounts/sa",
		},
		"github-workflow": {claims: workflow, san: "https://github.com/org/repo/.github/workflows/w.yml@refs/heads/main"},
		"gitlab-pipeline": {
			claims: claims{
				"project_path": "g/p", "project_id": "1", "pipeline_source": "push", "pipeline_id": "2",
				"ci_config_ref_uri": "gitlab.com/g/p//.gitlab-ci.yml@refs/heads/main", "ci_config_sha": "s", "namespace_path": "g", "namespace_id": "3",
				"job_id": "4", "ref": "main", "ref_type": "branch", "sha": "s", "runner_environment": "self-hosted", "runner_id": 5, "project_visibility": "private",
			},
			san: "https://gitlab.com/g/p//.gitlab-ci.yml@refs/heads/main",
		},
		"buildkite-job": {claims: claims{"organization_slug": "o", "pipeline_slug": "p"}, san: "https://buildkite.com/o/p"},
		"codefresh-workflow": {
			claims: claims{"account_id": "a", "account_name": "n", "pipeline_id": "p", "pipeline_name": "b/p", "workflow_id": "w"},
			san:    "https://g.codefresh.io/n/b/p:a/p",
		},
		"chainguard-identity": {claims: claims{"sub": "org/id", "email": nil}, san: "ISSUER/org/id"},
		"ci-provider":         {fulcio.Issuer{CIProvider: "forge"}, claims{"repository": "g/p", "run": 7, "sha": "abc"}, "https://forge.internal/g/p/run/7"},
	} {
		t.Run(typ, func(t *testing.T) {
			p := newIDP(t, nil)
			i := test.issuer
			i.URL, i.ClientID, i.Type = p.url(), "sigstore", typ
			in := newInstance(t, withIssuers(i), func(c *fulcio.Config) { c.CIProviders = providers })
			cert := in.issue(p.token(test.claims))
			in.verifies(cert)
			want := strings.Replace(test.san, "ISSUER", p.url(), 1)
			if got := cryptoutils.GetSubjectAlternateNames(cert); len(got) != 1 || got[0] != want {
				t.Errorf("names %q, want %q", got, want)
			}
			for _, e := range cert.Extensions {
				//lint:ignore SA1019 clients read it
				if e.Id.Equal(certificate.OIDIssuer) && string(e.Value) != p.url() {
					t.Errorf("issuer %q", e.Value)
				}
			}
			if e := in.audit.last(audit.Issued); e == nil || e.Fields["san"] != want {
				t.Errorf("record: %v", e)
			}
		})
	}
}

// A broker's token names, in a claim, the issuer to certify.
func TestIssuerClaim(t *testing.T) {
	p := newIDP(t, nil)
	i := p.issuer("email")
	i.IssuerClaim = "$.federated_claims.connector_id"
	in := newInstance(t, withIssuers(i))
	in.issue(p.token(claims{"federated_claims": map[string]any{"connector_id": "https://accounts.internal"}}))
	e := in.audit.last(audit.Issued)
	if e.Fields["issuer"] != "https://accounts.internal" || e.Fields["token_issuer"] != p.url() {
		t.Errorf("record: %v", e.Fields)
	}
	in.refused("no claim", p.token(nil), 400, "identity token")
}

func TestKeysThatAreTaken(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := func(bits int) *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token := p.token(nil)
	for name, request := range map[string][]byte{"Ed25519": csr(t, token, ed), "RSA 2048": csr(t, token, rsaKey(2048))} {
		status, out, _ := in.post("/api/v2/signingCert", "", request)
		if status != http.StatusOK {
			t.Errorf("%s: status %d: %s", name, status, out)
			continue
		}
		in.verifies(leaf(t, out))
	}
	for name, request := range map[string][]byte{"P-224": csr(t, token, p224), "RSA 1024": csr(t, token, rsaKey(1024))} {
		if status, out, _ := in.post("/api/v2/signingCert", "", request); status != http.StatusBadRequest {
			t.Errorf("%s: status %d: %s", name, status, out)
		}
	}
}

func TestBadRequests(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	token, key, other := p.token(nil), newKey(t), newKey(t)
	good := csr(t, token, key)

	// A signing request whose signature is another's.
	var tampered map[string]any
	if err := json.Unmarshal(good, &tampered); err != nil {
		t.Fatal(err)
	}
	pemBytes := tampered["certificateSigningRequest"].(string)
	flip := []byte(pemBytes)
	flip[len(flip)/2] ^= 1
	tampered["certificateSigningRequest"] = string(flip)

	for name, test := range map[string]struct {
		body   []byte
		status int
	}{
		"nothing":                      {nil, 400},
		"not JSON":                     {[]byte("hello"), 400},
		"truncated":                    {good[:len(good)/2], 400},
		"null":                         {[]byte("null"), 400},
		"array":                        {[]byte("[]"), 400},
		"deep":                         {[]byte(strings.Repeat(`{"credentials":`, 50000)), 413},
		"oversized":                    {bytes.Repeat([]byte(" "), 300<<10), 413},
		"no key":                       {body(t, map[string]any{"credentials": map[string]any{"oidcIdentityToken": token}}), 400},
		"empty key":                    {body(t, map[string]any{"credentials": map[string]any{"oidcIdentityToken": token}, "publicKeyRequest": map[string]any{}}), 400},
		"garbage for a key":            {body(t, map[string]any{"credentials": map[string]any{"oidcIdentityToken": token}, "publicKeyRequest": map[string]any{"publicKey": map[string]any{"content": "hello"}}}), 400},
		"garbage for a CSR":            {body(t, map[string]any{"credentials": map[string]any{"oidcIdentityToken": token}, "certificateSigningRequest": []byte("hello")}), 400},
		"tampered CSR":                 {body(t, tampered), 400},
		"proof by another key":         {possession(t, token, key, other, "alice@example.com"), 400},
		"proof over another's subject": {possession(t, token, key, key, "mallory@example.com"), 400},
		"no token":                     {csr(t, "", key), 400},
	} {
		status, out, _ := in.post("/api/v2/signingCert", "", test.body)
		if status != test.status || strings.Contains(out, "BEGIN CERTIFICATE") {
			t.Errorf("%s: status %d, want %d: %.200s", name, status, test.status, out)
		}
	}
	if status, out, _ := in.post("/api/v1/signingCert", "Bearer "+token, []byte("{}")); status != 400 {
		t.Errorf("first API without key: status %d: %s", status, out)
	}
	for path, want := range map[string]int{"/api/v2/signingCert": 405, "/api/v2/nothing": 404} {
		resp, err := http.Get(in.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: status %d, want %d", path, resp.StatusCode, want)
		}
	}
	in.issue(token) // and it still works
}

// TestNoRecordNoCertificate: what is not on record does not leave, and what was
// not announced there does not go into the log. (At Certainly, 5,868 certificates
// left without audit records.)
func TestNoRecordNoCertificate(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	logged := func() int { return in.audit.count(audit.Intended) }
	for _, c := range []struct {
		name  string
		typ   string // of the events that fail
		err   error
		known int // announced meanwhile
	}{
		{"fails", "", errDisk, 0},
		{"fails before the log", audit.Intended, errDisk, 0},
		{"fails behind the log", audit.Issued, errDisk, 1},
		{"hangs before the log", audit.Intended, errHangs, 0},
		{"hangs behind the log", audit.Issued, errHangs, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := logged()
			in.audit.fail(c.typ, c.err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if errors.Is(c.err, errHangs) {
				ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
			}
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/api/v2/signingCert", bytes.NewReader(csr(t, p.token(nil), newKey(t))))
			r.Header.Set("Content-Type", "application/json")
			in.handler.ServeHTTP(w, r)
			if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "BEGIN CERTIFICATE") || w.Header().Get("Retry-After") == "" {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), "space") {
				t.Errorf("answer tells of the machine: %s", w.Body)
			}
			in.audit.fail("", nil)
			if n := logged() - before; n != c.known {
				t.Errorf("%d certificates were announced, want %d", n, c.known)
			}
			if e := in.audit.last(audit.Issued); e != nil && c.known == 0 && before == 0 {
				t.Errorf("on record: %+v", e)
			}
			in.issue(p.token(nil))
		})
	}
	// Neither is a refusal answered that is not on record.
	in.audit.fail(audit.Refused, errDisk)
	in.refused("garbage", "a.b.c", http.StatusServiceUnavailable, "on record")
}

// TestRecordOfACertificate tells of it before and after it was logged, in terms
// that the log can be asked in.
func TestRecordOfACertificate(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	cert := in.issue(p.token(nil))
	intended, issued := in.audit.last(audit.Intended), in.audit.last(audit.Issued)
	serial := cert.SerialNumber.Text(16)
	if intended.Fields["serial"] != serial || issued.Fields["serial"] != serial {
		t.Errorf("serial %s: %v, %v", serial, intended.Fields, issued.Fields)
	}
	tbs, err := ctx509.RemoveSCTList(cert.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(tbs); intended.Fields["tbs_sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("tbs: %v, want %x", intended.Fields, sum)
	}
	leafHash, err := hex.DecodeString(issued.Fields["ct_leaf_hash"].(string))
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	query := url.Values{"tree_size": {"1"}, "hash": {base64.StdEncoding.EncodeToString(leafHash)}}
	in.ctLog.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ctlog/ct/v1/get-proof-by-hash?"+query.Encode(), nil))
	if w.Code != http.StatusOK {
		t.Errorf("the log does not know leaf %x: %d %s", leafHash, w.Code, w.Body)
	}
}

// TestRefusalsAreOnRecord: each by itself, or, when there are very many, by
// their number. However often somebody is refused, the record stays small.
func TestRefusalsAreOnRecord(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- in.service.Run(ctx) }()
	in.refused("unknown issuer", sign(t, newKey(t), "k", claims{"iss": "https://" + strings.Repeat("x", 100_000)}), 400, "is not configured")
	e := in.audit.last(audit.Refused)
	if e == nil || e.Fields["reason"] != "token" || len(e.Fields["claimed_issuer"].(string)) > 1100 {
		t.Fatalf("record: %v", e)
	}
	const flood = 300
	for range flood {
		in.refused("garbage", "a.b.c", 400, "identity token")
	}
	// A flood of one kind hides nothing of another.
	if status, _, _ := in.post("/api/v2/signingCert", "", possession(t, p.token(nil), newKey(t), newKey(t), "alice@example.com")); status != 400 {
		t.Errorf("bad proof: %d", status)
	}
	if e := in.audit.last(audit.Refused); e.Fields["reason"] != "key" {
		t.Errorf("record: %v", e)
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	in.audit.mu.Lock()
	defer in.audit.mu.Unlock()
	refused := 0
	for _, e := range in.audit.events {
		n, many := e.Fields["count"].(int)
		if e.Type != audit.Refused {
			continue
		}
		if !many {
			n = 1
		}
		refused += n
	}
	if n := len(in.audit.events); n > 200 || refused != flood+2 {
		t.Errorf("%d refusals in %d records, want %d in few", refused, n, flood+2)
	}
}

// Without the log's word, and in time, there is no certificate.
func TestLogMustAnswer(t *testing.T) {
	p := newIDP(t, nil)
	for name, log := range map[string]http.Handler{
		"away":     http.NotFoundHandler(),
		"failing":  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }),
		"nonsense": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }),
		"panicking": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			panic("log")
		}),
	} {
		in := newInstance(t, withIssuers(p.issuer("email")), func(c *fulcio.Config) { c.CTLog = log })
		status, out := in.sign(p.token(nil))
		if status < 500 || strings.Contains(out, "BEGIN CERTIFICATE") {
			t.Errorf("%s: status %d: %s", name, status, out)
		}
		if in.audit.last(audit.Issued) != nil {
			t.Errorf("%s: certificate on record", name)
		}
	}
	// A log whose signature is not the one that clients trust.
	in := newInstance(t, withIssuers(p.issuer("email")), func(c *fulcio.Config) { c.CTLogKey = newKey(t).Public() })
	if status, out := in.sign(p.token(nil)); status != http.StatusServiceUnavailable || strings.Contains(out, "BEGIN CERTIFICATE") {
		t.Errorf("another's signature: status %d: %s", status, out)
	}
}

// A certificate may not outlive its issuer.
func TestChainNearItsEnd(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")), func(c *fulcio.Config) { c.Signer, c.Chain = newChain(t, 9*time.Minute) })
	if status, out := in.sign(p.token(nil)); status != http.StatusServiceUnavailable {
		t.Errorf("status %d: %s", status, out)
	}
}

func TestBadConfiguration(t *testing.T) {
	p := newIDP(t, nil)
	email := p.issuer("email")
	for name, change := range map[string]option{
		"unknown type":            withIssuers(p.issuer("telepathy")),
		"no type":                 withIssuers(p.issuer("")),
		"no client id":            withIssuers(fulcio.Issuer{URL: p.url(), Type: "email"}),
		"neither URL nor pattern": withIssuers(fulcio.Issuer{ClientID: "s", Type: "email"}),
		"both":                    withIssuers(fulcio.Issuer{URL: p.url(), Pattern: "https://*.example.com", ClientID: "s", Type: "email"}),
		"twice":                   withIssuers(email, email),
		"not a URL":               withIssuers(fulcio.Issuer{URL: "accounts", ClientID: "s", Type: "email"}),
		"plain http":              withIssuers(fulcio.Issuer{URL: "http://accounts.example.com", ClientID: "s", Type: "email"}),
		"star in URL":             withIssuers(fulcio.Issuer{URL: "https://*.example.com", ClientID: "s", Type: "email"}),
		"pattern without star":    withIssuers(fulcio.Issuer{Pattern: "https://example.com", ClientID: "s", Type: "email"}),
		"pattern for anybody":     withIssuers(fulcio.Issuer{Pattern: "https://*.com", ClientID: "s", Type: "email"}),
		"pattern for everybody":   withIssuers(fulcio.Issuer{Pattern: "https://*", ClientID: "s", Type: "email"}),
		"spiffe pattern":          withIssuers(fulcio.Issuer{Pattern: "https://*.example.com", ClientID: "s", Type: "spiffe"}),
		"spiffe without domain":   withIssuers(p.issuer("spiffe")),
		"uri without domain":      withIssuers(p.issuer("uri")),
		"uri of another domain":   withIssuers(fulcio.Issuer{URL: "https://accounts.example.com", ClientID: "s", Type: "uri", SubjectDomain: "https://other.org"}),
		"uri of another scheme":   withIssuers(fulcio.Issuer{URL: "https://accounts.example.com", ClientID: "s", Type: "uri", SubjectDomain: "http://example.com"}),
		"username with scheme":    withIssuers(fulcio.Issuer{URL: "https://accounts.example.com", ClientID: "s", Type: "username", SubjectDomain: "https://example.com"}),
		"issuer claim of a uri":   withIssuers(fulcio.Issuer{URL: "https://accounts.example.com", ClientID: "s", Type: "uri", SubjectDomain: "https://example.com", IssuerClaim: "$.x"}),
		"ci provider unknown":     withIssuers(fulcio.Issuer{URL: p.url(), ClientID: "s", Type: "ci-provider", CIProvider: "forge"}),
		"CA file missing":         withIssuers(fulcio.Issuer{URL: p.url(), ClientID: "s", Type: "email", CAFile: "/nonexistent"}),
		"CA file without CA":      withIssuers(fulcio.Issuer{URL: p.url(), ClientID: "s", Type: "email", CAFile: "fulcio_test.go"}),
		"ci provider: no subject": func(c *fulcio.Config) { c.CIProviders = map[string]fulcio.CIProvider{"x": {}} },
		"ci provider: template": func(c *fulcio.Config) {
			c.CIProviders = map[string]fulcio.CIProvider{"x": {SubjectTemplate: "{{ .a"}}
		},
		"ci provider: extension": func(c *fulcio.Config) {
			c.CIProviders = map[string]fulcio.CIProvider{"x": {SubjectTemplate: "a", Extensions: map[string]string{"nonsense": "a"}}}
		},
		"ci provider: issuer": func(c *fulcio.Config) {
			c.CIProviders = map[string]fulcio.CIProvider{"x": {SubjectTemplate: "a", Extensions: map[string]string{"issuer": "a"}}}
		},
		"key of another chain": func(c *fulcio.Config) { c.Signer = newKey(t) },
		"root only":            func(c *fulcio.Config) { c.Chain = c.Chain[1:] },
		"no log key":           func(c *fulcio.Config) { c.CTLogKey = nil },
		"no record":            func(c *fulcio.Config) { c.Audit = nil },
	} {
		noLog := func(c *fulcio.Config) { c.CTLog = http.NotFoundHandler() }
		if _, err := tryInstance(t, noLog, change); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A panic on the way, even below the signature, is an answer and no more.
func TestPanicIsContained(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")), func(c *fulcio.Config) {
		next := c.Audit
		c.Audit = func(ctx context.Context, e audit.Event) error {
			if e.Type == audit.Issued {
				panic("disk on fire")
			}
			return next(ctx, e)
		}
	})
	if status, out := in.sign(p.token(nil)); status != http.StatusInternalServerError || strings.Contains(out, "fire") {
		t.Errorf("status %d: %s", status, out)
	}
}

func TestManyAtOnce(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	token := p.token(nil)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 4 {
				if status, out := in.sign(token); status != http.StatusOK {
					t.Errorf("status %d: %s", status, out)
				}
			}
		})
	}
	wg.Wait()
	if n := p.count("/keys"); n != 1 {
		t.Errorf("keys were fetched %d times", n)
	}
}
