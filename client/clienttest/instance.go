// Package clienttest is an instance for testing clients against servers that
// misbehave: late, overloaded, redirecting, lying. Its certificates,
// timestamps, log entries and TUF repository are genuine, signed with keys of
// its own, until a test says otherwise. What a sound instance does is tested
// against the appliance itself.
package clienttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/google/certificate-transparency-go/x509util"

	"github.com/sigbox/sigbox/tuf"
)

// Instance is a server with one key for everything that an instance signs.
type Instance struct {
	*httptest.Server
	// Now is the clock of the log: what it says is when entries are taken.
	Now func() time.Time
	// Handle may answer in place of the instance: true means that it did.
	Handle func(w http.ResponseWriter, r *http.Request) bool
	// Mangle may change an answer on its way out.
	Mangle func(path string, body []byte) []byte

	tb         testing.TB
	fulcio     authority
	tsa        authority
	ct, rekor  *ecdsa.PrivateKey
	roles      map[string]crypto.Signer
	mu         sync.Mutex
	repository *tuf.Repository
	requests   []string
}

// authority is a root and what it issued.
type authority struct {
	root, leaf *x509.Certificate
	key        *ecdsa.PrivateKey // of the leaf
}

// New starts an instance that is made with the clock of now and lasts as long as
// the test.
func New(tb testing.TB) *Instance {
	tb.Helper()
	i := &Instance{Now: time.Now, tb: tb, ct: newKey(tb), rekor: newKey(tb), roles: map[string]crypto.Signer{}}
	i.fulcio = newAuthority(tb, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	check(tb, err)
	// The extended key usage of a timestamp certificate is critical (RFC 3161 §2.3).
	i.tsa = newAuthority(tb, &x509.Certificate{
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}},
	})
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		i.roles[role] = newKey(tb)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tuf/", i.serveTUF)
	mux.HandleFunc("POST /api/v2/signingCert", i.serveFulcio)
	mux.HandleFunc("POST /api/v1/timestamp", i.serveTSA)
	mux.HandleFunc("POST /api/v1/log/entries", i.serveRekor)
	mux.HandleFunc("GET /oidc/.well-known/openid-configuration", i.serveDiscovery)
	mux.HandleFunc("POST /oidc/device", i.serveDevice)
	mux.HandleFunc("POST /oidc/token", i.serveToken)
	i.Server = httptest.NewServer(i.front(mux))
	tb.Cleanup(i.Close)
	i.Publish(time.Now())
	return i
}

// Publish makes the TUF repository anew, as of a time.
func (i *Instance) Publish(now time.Time) {
	i.tb.Helper()
	start := time.Now().Add(-time.Hour)
	m := &tuf.TrustMaterial{
		Fulcio:      []tuf.Authority{{Chain: []*x509.Certificate{i.fulcio.leaf, i.fulcio.root}, URL: i.URL, Start: start}},
		CTLogs:      []tuf.Log{{PublicKey: i.ct.Public(), URL: i.URL + "/ctlog", Start: start}},
		Rekor:       []tuf.Log{{PublicKey: i.rekor.Public(), URL: i.URL, Start: start}},
		TSAs:        []tuf.Authority{{Chain: []*x509.Certificate{i.tsa.leaf, i.tsa.root}, URL: i.URL + "/api/v1/timestamp", Start: start}},
		OIDCIssuers: []string{i.URL + "/oidc"},
		Operator:    "test",
	}
	targets, err := m.Targets(now)
	check(i.tb, err)
	role := func(name string) tuf.Role { return tuf.Role{Signers: []crypto.Signer{i.roles[name]}, Threshold: 1} }
	r, err := tuf.Create(tuf.Config{Root: role("root"), Targets: role("targets"), Snapshot: role("snapshot"), Timestamp: role("timestamp"), Now: now, Files: targets})
	check(i.tb, err)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.repository = r
}

// Repository is what /tuf serves.
func (i *Instance) Repository() *tuf.Repository {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.repository
}

// Requests are the paths asked for since the last call.
func (i *Instance) Requests() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.requests
	i.requests = nil
	return r
}

// TrustedRoot is the instance's trusted_root.json.
func (i *Instance) TrustedRoot() []byte {
	data, ok := i.Repository().Target(tuf.TrustedRootName)
	if !ok {
		i.tb.Fatal("no trusted root")
	}
	return data
}

// Issuer is what certificates name as their issuer.
func (i *Instance) Issuer() string { return i.URL + "/oidc" }

// Token is an identity token for an e-mail address. Nobody signed it: the
// instance believes every token.
func (i *Instance) Token(email string) string {
	payload, err := json.Marshal(map[string]any{"iss": i.Issuer(), "sub": email, "email": email, "email_verified": true, "exp": time.Now().Add(time.Hour).Unix()})
	check(i.tb, err)
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc(payload) + "." + enc([]byte("x"))
}

func (i *Instance) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.requests = append(i.requests, r.URL.Path)
		i.mu.Unlock()
		if i.Handle != nil && i.Handle(w, r) {
			return
		}
		if i.Mangle == nil {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Del("Content-Length")
		w.WriteHeader(rec.Code)
		_, _ = w.Write(i.Mangle(r.URL.Path, rec.Body.Bytes()))
	})
}

func (i *Instance) serveTUF(w http.ResponseWriter, r *http.Request) {
	data, ok := i.Repository().Files()[strings.TrimPrefix(r.URL.Path, "/tuf/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(data)
}

func (i *Instance) serveFulcio(w http.ResponseWriter, r *http.Request) {
	var req struct {
		PublicKeyRequest struct {
			PublicKey struct{ Content string }
		}
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var claims struct{ Email string }
	parts := strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ".")
	if len(parts) != 3 {
		http.Error(w, "no token", http.StatusUnauthorized)
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	block, _ := pem.Decode([]byte(req.PublicKeyRequest.PublicKey.Content))
	if err != nil || block == nil {
		http.Error(w, "malformed request", http.StatusBadRequest)
		return
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	der, err := i.Certificate(claims.Email, pub)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	type chain struct {
		Certificates []string `json:"certificates"`
	}
	type embedded struct {
		Chain chain `json:"chain"`
	}
	var pems []string
	for _, c := range [][]byte{der, i.fulcio.leaf.Raw, i.fulcio.root.Raw} {
		pems = append(pems, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})))
	}
	writeJSON(w, http.StatusOK, map[string]any{"signedCertificateEmbeddedSct": embedded{chain{pems}}})
}

// Certificate issues a ten-minute certificate with an embedded SCT.
func (i *Instance) Certificate(email string, pub crypto.PublicKey) ([]byte, error) {
	issuer, err := asn1.MarshalWithParams(i.Issuer(), "utf8")
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: now, NotAfter: now.Add(10 * time.Minute), EmailAddresses: []string{email},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	known := []pkix.Extension{
		{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(i.Issuer())},
		{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: issuer},
	}
	poison := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: asn1.NullBytes}
	template.ExtraExtensions = append([]pkix.Extension{poison}, known...)
	pre, err := x509.CreateCertificate(rand.Reader, template, i.fulcio.leaf, pub, i.fulcio.key)
	if err != nil {
		return nil, err
	}
	list, err := i.sct(pre)
	if err != nil {
		return nil, err
	}
	template.ExtraExtensions = append([]pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: list}}, known...)
	return x509.CreateCertificate(rand.Reader, template, i.fulcio.leaf, pub, i.fulcio.key)
}

// sct is the log's promise for a precertificate, as a certificate carries it
// (RFC 6962 §3.3).
func (i *Instance) sct(pre []byte) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(i.ct.Public())
	if err != nil {
		return nil, err
	}
	at := uint64(time.Now().UnixMilli())
	leaf, err := ct.MerkleTreeLeafFromRawChain([]ct.ASN1Cert{{Data: pre}, {Data: i.fulcio.leaf.Raw}}, ct.PrecertLogEntryType, at)
	if err != nil {
		return nil, err
	}
	s := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: sha256.Sum256(der)}, Timestamp: at}
	input, err := ct.SerializeSCTSignatureInput(s, ct.LogEntry{Leaf: *leaf})
	if err != nil {
		return nil, err
	}
	sig, err := cttls.CreateSignature(*i.ct, cttls.SHA256, input)
	if err != nil {
		return nil, err
	}
	s.Signature = ct.DigitallySigned(sig)
	list, err := x509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&s})
	if err != nil {
		return nil, err
	}
	raw, err := cttls.Marshal(*list)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(raw)
}

func (i *Instance) serveTSA(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req, err := timestamp.ParseRequest(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ts := timestamp.Timestamp{HashAlgorithm: req.HashAlgorithm, HashedMessage: req.HashedMessage, Time: time.Now(), Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}}
	answer, err := ts.CreateResponseWithOpts(i.tsa.leaf, i.tsa.key, crypto.SHA256)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/timestamp-reply")
	_, _ = w.Write(answer)
}

func (i *Instance) serveDiscovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{
		"issuer": i.Issuer(), "token_endpoint": i.URL + "/oidc/token", "device_authorization_endpoint": i.URL + "/oidc/device",
	})
}

func (i *Instance) serveDevice(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"device_code": "device", "user_code": "ABCD-EFGH", "verification_uri": i.URL + "/oidc/device", "expires_in": 60, "interval": 1,
	})
}

func (i *Instance) serveToken(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"access_token": "x", "token_type": "bearer", "id_token": i.Token("alice@example.com")})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(tb, err)
	return k
}

func newAuthority(tb testing.TB, leaf *x509.Certificate) authority {
	tb.Helper()
	now := time.Now()
	rootKey, key := newKey(tb), newKey(tb)
	top := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, top, top, rootKey.Public(), rootKey)
	check(tb, err)
	a := authority{key: key}
	a.root, err = x509.ParseCertificate(der)
	check(tb, err)
	leaf.SerialNumber, leaf.Subject = big.NewInt(2), pkix.Name{CommonName: "leaf"}
	leaf.NotBefore, leaf.NotAfter = top.NotBefore, top.NotAfter
	der, err = x509.CreateCertificate(rand.Reader, leaf, a.root, key.Public(), rootKey)
	check(tb, err)
	a.leaf, err = x509.ParseCertificate(der)
	check(tb, err)
	return a
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(fmt.Errorf("test instance: %w", err))
	}
}
