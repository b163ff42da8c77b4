package fulcio_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/services/fulcio"
)

func raw(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

// Tokens that must get nobody a certificate.
func TestBadTokens(t *testing.T) {
	p, other := newIDP(t, nil), newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email"), other.issuer("email")))
	good := p.token(nil)
	parts := strings.Split(good, ".")
	hs256 := func(key []byte) string {
		input := raw(map[string]any{"alg": "HS256", "kid": p.kid}) + "." + raw(p.claims(nil))
		m := hmac.New(sha256.New, key)
		m.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
	}
	der, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ token, why string }{
		"empty":                       {"", "identity token"},
		"dots":                        {strings.Repeat(".", 200_000), "identity token"},
		"two dots":                    {"..", "identity token"},
		"no base64":                   {parts[0] + ".!!!." + parts[2], "identity token"},
		"no JSON":                     {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("{")) + "." + parts[2], "identity token"},
		"alg none":                    {raw(map[string]any{"alg": "none"}) + "." + parts[1] + ".", "identity token"},
		"alg none with signature":     {raw(map[string]any{"alg": "none"}) + "." + parts[1] + "." + parts[2], "identity token"},
		"alg HS256 with public key":   {hs256(der), "identity token"},
		"alg HS256 with PEM":          {hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "identity token"},
		"wrong audience":              {p.token(claims{"aud": "somebody"}), "audience"},
		"no audience":                 {p.token(claims{"aud": nil}), "audience"},
		"expired":                     {p.token(claims{"exp": time.Now().Add(-time.Minute).Unix()}), "expired"},
		"no expiry":                   {p.token(claims{"exp": nil}), "expired"},
		"not yet valid":               {p.token(claims{"nbf": time.Now().Add(time.Hour).Unix()}), "before"},
		"unverified address":          {p.token(claims{"email_verified": false}), "email_verified"},
		"address of unknown state":    {p.token(claims{"email_verified": nil}), "email_verified"},
		"not an address":              {p.token(claims{"email": "alice"}), "email"},
		"two addresses":               {p.token(claims{"email": "a@example.com,b@example.com"}), "email"},
		"no address":                  {p.token(claims{"email": nil}), "email"},
		"unknown issuer":              {sign(t, p.key, p.kid, p.claims(claims{"iss": "https://evil.example.com"})), "is not configured"},
		"no issuer":                   {p.token(claims{"iss": nil}), "is not configured"},
		"issuer with slash":           {p.token(claims{"iss": p.url() + "/"}), "is not configured"},
		"keys of another issuer":      {sign(t, other.key, other.kid, p.claims(nil)), "signature"},
		"key of nobody":               {sign(t, newKey(t), "k9", p.claims(nil)), "signature"},
		"claims of another token":     {parts[0] + "." + raw(p.claims(claims{"email": "mallory@example.com"})) + "." + parts[2], "signature"},
		"embedded key":                {embedded(t, p), "identity token"},
		"duplicate issuer, last ours": {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://evil.example.com","iss":"`+p.url()+`"}`)) + "." + parts[2], "signature"},
	} {
		in.refused(name, test.token, http.StatusBadRequest, test.why)
	}
	if in.audit.last(audit.Issued) != nil {
		t.Error("a certificate was issued")
	}
	in.issue(good)
}

// embedded is a token that brings its own key along in its header.
func embedded(t *testing.T, p *idp) string {
	t.Helper()
	key := newKey(t)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(p.claims(nil))
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

// Forged tokens do not make the issuer's server busy.
func TestForgeriesDoNotReachTheIssuer(t *testing.T) {
	p := newIDP(t, nil)
	in := newInstance(t, withIssuers(p.issuer("email")))
	in.issue(p.token(nil))
	for range 50 {
		in.refused("forged", sign(t, newKey(t), "k9", p.claims(nil)), 400, "signature")
	}
	if n := p.count("/keys"); n > 5 {
		t.Errorf("keys were fetched %d times", n)
	}
}

// A pattern is matched against the whole issuer (CVE-2026-22772).
func TestPatternIsAnchored(t *testing.T) {
	p := newIDP(t, nil)
	port := p.server.Listener.Addr().(*net.TCPAddr).Port
	pattern := fmt.Sprintf("http://127.0.0.1:%d/id/*", port)
	in := newInstance(t, withIssuers(fulcio.Issuer{Pattern: pattern, ClientID: "sigstore", Type: "email"}))

	p.path = "/id/one"
	in.issue(p.token(nil))
	p.path = "/id/two"
	in.issue(p.token(nil))
	before := p.count("/")
	for _, iss := range []string{
		p.server.URL + "/id/", p.server.URL + "/id/a/b", p.server.URL + "/id/a?x", p.server.URL + "/id/a.b",
		"http://evil.example.com?" + p.server.URL + "/id/one", p.server.URL + "/id/one\nhttp://evil.example.com", "x" + p.server.URL + "/id/one",
		strings.Replace(p.server.URL, "127.0.0.1", "127x0x0x1", 1) + "/id/one",
	} {
		in.refused("issuer "+iss, sign(t, p.key, p.kid, p.claims(claims{"iss": iss})), 400, "is not configured")
	}
	if p.count("/") != before {
		t.Error("an issuer that is not configured was asked")
	}
}

// An issuer's words are taken from where it says it is (CVE-2026-49478), and
// only if they are about itself.
func TestDiscoveryStaysWithTheIssuer(t *testing.T) {
	evil := newIDP(t, nil)
	for name, change := range map[string]func(*idp) func(http.ResponseWriter, *http.Request) bool{
		"metadata elsewhere": func(*idp) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, evil.url()+r.URL.Path, http.StatusFound)
				return true
			}
		},
		"keys elsewhere": func(*idp) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/keys" {
					return false
				}
				http.Redirect(w, r, evil.url()+r.URL.Path, http.StatusTemporaryRedirect)
				return true
			}
		},
		"metadata elsewhere on the same host": func(*idp) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(r.URL.Path, "/user") {
					return false
				}
				http.Redirect(w, r, "/user/content"+r.URL.Path, http.StatusFound)
				return true
			}
		},
		"metadata of another": func(*idp) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				_ = json.NewEncoder(w).Encode(map[string]any{"issuer": evil.url(), "jwks_uri": evil.url() + "/keys"})
				return true
			}
		},
		"endless metadata": func(*idp) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				chunk := []byte(strings.Repeat(" ", 1<<16))
				for range 64 {
					if _, err := w.Write(chunk); err != nil {
						break
					}
				}
				return true
			}
		},
		"no metadata": func(*idp) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				http.Error(w, "no", http.StatusTeapot)
				return true
			}
		},
	} {
		p := newIDP(t, nil)
		p.change = change(p)
		in := newInstance(t, withIssuers(p.issuer("email")))
		in.refused(name, sign(t, evil.key, evil.kid, p.claims(nil)), http.StatusServiceUnavailable, "cannot be reached")
	}
	if evil.count("/keys") != 0 || evil.count("/.well-known/openid-configuration") != 0 {
		t.Error("a redirect was followed")
	}
}

// An issuer that is away keeps nobody else from signing, and is found when it
// is back.
func TestIssuerThatIsAway(t *testing.T) {
	here, away := newIDP(t, nil), newIDP(t, nil)
	var mu sync.Mutex
	gone := true
	away.change = func(http.ResponseWriter, *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			panic(http.ErrAbortHandler) // the connection breaks
		}
		return false
	}
	start := time.Now()
	in := newInstance(t, withIssuers(away.issuer("email"), here.issuer("email")))
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("start took %s", d)
	}
	runUntilReady(t, in)
	in.issue(here.token(nil))
	in.refused("away", away.token(nil), http.StatusServiceUnavailable, "cannot be reached")
	mu.Lock()
	gone = false
	mu.Unlock()
	deadline := time.Now().Add(20 * time.Second)
	for {
		status, out := in.sign(away.token(nil))
		if status == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still away: status %d: %s", status, out)
		}
	}
}

func runUntilReady(t *testing.T, in *instance) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- in.service.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-in.service.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
}

// The CA file of an issuer is what its server is checked against, alone.
func TestIssuerCAFile(t *testing.T) {
	p := newIDP(t, httptest.NewTLSServer)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	with := p.issuer("email")
	with.CAFile = file
	newInstance(t, withIssuers(with)).issue(p.token(nil))
	newInstance(t, withIssuers(p.issuer("email"))).
		refused("system CAs", p.token(nil), http.StatusServiceUnavailable, "cannot be reached")
}

// An https issuer may not have its keys fetched without TLS.
func TestIssuerKeysNeedTLS(t *testing.T) {
	plain := newIDP(t, nil)
	p := newIDP(t, httptest.NewTLSServer)
	p.change = func(w http.ResponseWriter, r *http.Request) bool {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": p.url(), "jwks_uri": plain.url() + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
		return true
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	i := p.issuer("email")
	i.CAFile = file
	newInstance(t, withIssuers(i)).refused("keys over http", sign(t, plain.key, plain.kid, p.claims(nil)), http.StatusServiceUnavailable, "cannot be reached")
	if plain.count("/keys") != 0 {
		t.Error("keys were fetched over http")
	}
}

func TestTokenFile(t *testing.T) {
	p := newIDP(t, nil)
	p.change = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer letmein" {
			return false
		}
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("letmein\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := p.issuer("email")
	i.TokenFile = file
	newInstance(t, withIssuers(i)).issue(p.token(nil))
}

// An issuer of this process is asked without the network.
func TestLocalIssuer(t *testing.T) {
	p := newIDP(t, nil)
	p.server.Close() // nobody listens there any more
	i := p.issuer("email")
	i.Local = p
	in := newInstance(t, withIssuers(i))
	runUntilReady(t, in)
	in.issue(p.token(nil))
	in.refused("forged", sign(t, newKey(t), p.kid, p.claims(nil)), 400, "signature")

	// Its keys are its own business: new ones are found at once.
	p.mu.Lock()
	p.key, p.kid = newKey(t), "k2"
	p.mu.Unlock()
	in.issue(p.token(nil))

	// Nor may it point anywhere else, or take the process down.
	p.change = func(w http.ResponseWriter, r *http.Request) bool { panic("issuer") }
	in.refused("panicking issuer", sign(t, newKey(t), "k3", p.claims(nil)), http.StatusServiceUnavailable, "cannot be reached")
	in.issue(p.token(nil))
}

func TestOneTimeTokens(t *testing.T) {
	p := newIDP(t, nil)
	used := map[string]time.Time{}
	var mu sync.Mutex
	var broken error
	i := p.issuer("email")
	i.Redeem = func(_ context.Context, jti string, expiry time.Time) error {
		mu.Lock()
		defer mu.Unlock()
		if broken != nil {
			return broken
		}
		if _, again := used[jti]; again {
			return fmt.Errorf("redeeming: %w", fulcio.ErrReplayed)
		}
		used[jti] = expiry
		return nil
	}
	in := newInstance(t, withIssuers(i))
	token := p.token(claims{"jti": "one"})

	// A request that is no good does not use the token up.
	if status, out, _ := in.post("/api/v2/signingCert", "", possession(t, token, newKey(t), newKey(t), "alice@example.com")); status != 400 {
		t.Errorf("bad proof: status %d: %s", status, out)
	}
	in.issue(token)
	in.refused("replay", token, http.StatusBadRequest, "was used before")
	if e := in.audit.last(audit.Refused); e == nil || e.Fields["reason"] != "replay" {
		t.Errorf("record: %v", e)
	}
	if d := time.Until(used["one"]); d < 4*time.Minute || d > 6*time.Minute {
		t.Errorf("expiry is in %s", d)
	}
	in.refused("no jti", p.token(nil), http.StatusBadRequest, "jti")

	mu.Lock()
	broken = errDisk
	mu.Unlock()
	in.refused("store is broken", p.token(claims{"jti": "two"}), http.StatusServiceUnavailable, "could not be redeemed")
	mu.Lock()
	broken = nil
	mu.Unlock()

	// However many race, one wins.
	race := p.token(claims{"jti": "race"})
	var wins int
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if status, _ := in.sign(race); status == http.StatusOK {
				mu.Lock()
				wins++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if wins != 1 {
		t.Errorf("%d certificates for one token", wins)
	}
}
