package hostile

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

var bigOne = big.NewInt(1)

const person = "alice@example.com"

// giantOIDRequest is a timestamp request whose hash algorithm is an object
// identifier of 64 KiB.
func giantOIDRequest() []byte {
	oid := make([]byte, 64<<10)
	for i := range oid {
		oid[i] = 0x81
	}
	oid[len(oid)-1] = 1
	return der(0x30, append([]byte{2, 1, 1}, der(0x30, append(der(0x30, der(6, oid)), der(4, make([]byte, 32))...))...))
}

func der(tag byte, content []byte) []byte {
	n := len(content)
	return append([]byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, content...)
}

// An issuer is somebody else's OIDC issuer that the instance is told to trust.
type issuer struct {
	*httptest.Server
	key    *ecdsa.PrivateKey
	signer jose.Signer
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, _ := newKey(t)
	is := &issuer{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"authorization_endpoint":%q,"token_endpoint":%q,"response_types_supported":["id_token"],"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["ES256"]}`,
			is.URL, is.URL+"/keys", is.URL+"/auth", is.URL+"/token")
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	})
	is.Server = httptest.NewServer(mux)
	t.Cleanup(is.Close)
	var err error
	is.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

type claims map[string]any

// claims are those of a good token.
func (is *issuer) claims() claims {
	now := time.Now()
	return claims{
		"iss": is.URL, "aud": "sigstore", "sub": person, "email": person, "email_verified": true,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
}

func (is *issuer) token(t *testing.T, c claims) string {
	t.Helper()
	signed, err := is.signer.Sign(jsonBody(t, c))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// trusting is an instance that also trusts an issuer of ours.
func trusting(t *testing.T, is *issuer) *e2etest.Instance {
	t.Helper()
	i := e2etest.Quickstart(t)
	i.Stop(t)
	i.Serve()
	f, err := os.OpenFile(filepath.Join(i.Dir, "sigbox.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "\nfulcio:\n  issuers:\n    - {url: %q, client_id: sigstore, type: email}\n", is.URL); err != nil {
		t.Fatal(err)
	}
	i.Launch(t)
	return i
}

// certificate asks for one, with a proof of possession over the challenge.
func certificate(t *testing.T, i *e2etest.Instance, token, challenge string) answer {
	t.Helper()
	key, public := newKey(t)
	return certificateFor(t, i, token, public, sign(t, key, []byte(challenge)))
}

func certificateFor(t *testing.T, i *e2etest.Instance, token string, public, proof []byte) answer {
	t.Helper()
	return post(t, i.URL+"/api/v2/signingCert", "application/json", jsonBody(t, map[string]any{
		"credentials": map[string]any{"oidcIdentityToken": token},
		"publicKeyRequest": map[string]any{
			"publicKey":         map[string]any{"algorithm": "ECDSA", "content": string(public)},
			"proofOfPossession": proof,
		},
	}))
}

func TestForgedTokens(t *testing.T) {
	is, stranger := newIssuer(t), newIssuer(t)
	i := trusting(t, is)

	good := func(t *testing.T) {
		t.Helper()
		if a := certificate(t, i, is.token(t, is.claims()), person); a.status != http.StatusOK && a.status != http.StatusCreated {
			t.Fatalf("a good token is refused, so the others show nothing: %v", a)
		}
	}
	good(t)

	with := func(change claims) string {
		c := is.claims()
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return is.token(t, c)
	}
	strangers := func(iss string) string {
		c := stranger.claims()
		c["iss"] = iss
		return stranger.token(t, c)
	}
	parts := strings.Split(is.token(t, is.claims()), ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	for name, token := range map[string]string{
		"none at all":                    "",
		"not a token":                    "token",
		"dots":                           strings.Repeat(".", 1<<20),
		"two dots":                       "..",
		"alg none":                       none,
		"alg none with the signature":    none + parts[2],
		"signature cut off":              parts[0] + "." + parts[1] + ".",
		"claims swapped in":              parts[0] + "." + strings.Split(with(claims{"email": "root@example.com"}), ".")[1] + "." + parts[2],
		"HS256 with the public key":      hmacToken(t, is),
		"expired":                        with(claims{"iat": time.Now().Add(-2 * time.Hour).Unix(), "nbf": time.Now().Add(-2 * time.Hour).Unix(), "exp": time.Now().Add(-time.Hour).Unix()}),
		"not yet valid":                  with(claims{"nbf": time.Now().Add(time.Hour).Unix()}),
		"without an end":                 with(claims{"exp": nil}),
		"for another audience":           with(claims{"aud": "somebody-else"}),
		"without an audience":            with(claims{"aud": nil}),
		"of an issuer nobody trusts":     strangers(stranger.URL),
		"another issuer's key":           strangers(is.URL),
		"another issuer's key, for ours": strangers(i.URL + "/ci"),
		"another issuer's key, people":   strangers(i.URL + "/oidc"),
		"issuer with a slash more":       with(claims{"iss": is.URL + "/"}),
		"issuer that only begins alike":  strangers(is.URL + ".example.com"),
		"unverified email":               with(claims{"email_verified": false}),
		"without an email":               with(claims{"email": nil}),
		"an email that is not one":       with(claims{"email": "alice"}),
	} {
		t.Run(name, func(t *testing.T) {
			a := certificate(t, i, token, person)
			a.refused(t)
			if strings.Contains(a.body, "BEGIN CERTIFICATE") {
				t.Errorf("a certificate was issued: %v", a)
			}
		})
	}
	good(t)
	i.Healthy(t)
}

// hmacToken is a token whose "secret" is the issuer's public key.
func hmacToken(t *testing.T, is *issuer) string {
	t.Helper()
	key, err := json.Marshal(jose.JSONWebKey{Key: &is.key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(jsonBody(t, is.claims()))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestProofOfPossession(t *testing.T) {
	is := newIssuer(t)
	i := trusting(t, is)
	key, public := newKey(t)
	other, _ := newKey(t)
	for name, proof := range map[string][]byte{
		"by another key":    sign(t, other, []byte(person)),
		"over another name": sign(t, key, []byte("mallory@example.com")),
		"none":              nil,
		"garbage":           []byte("proof"),
	} {
		t.Run(name, func(t *testing.T) {
			certificateFor(t, i, is.token(t, is.claims()), public, proof).refused(t)
		})
	}
	for name, pub := range map[string][]byte{
		"no key":           nil,
		"not a key":        []byte("key"),
		"an unknown curve": weakKey(t),
		"a private key":    pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}}),
	} {
		t.Run(name, func(t *testing.T) {
			certificateFor(t, i, is.token(t, is.claims()), pub, sign(t, key, []byte(person))).refused(t)
		})
	}
	csr := func(csr []byte) answer {
		return post(t, i.URL+"/api/v2/signingCert", "application/json", jsonBody(t, map[string]any{
			"credentials":               map[string]any{"oidcIdentityToken": is.token(t, is.claims())},
			"certificateSigningRequest": csr,
		}))
	}
	t.Run("request for another key", func(t *testing.T) { csr(requestForAnothersKey(t, key, other)).refused(t) })
	t.Run("request that is none", func(t *testing.T) { csr([]byte("request")).refused(t) })
	i.Healthy(t)
}

// TestOneTimeTokens: a token of the instance's own issuer buys one certificate,
// even when many ask at once.
func TestOneTimeTokens(t *testing.T) {
	i := e2etest.Quickstart(t)
	const subject = "job@example.com"
	token := i.Token(t, subject)
	const askers = 20
	answers := make([]answer, askers)
	var wg sync.WaitGroup
	for n := range answers {
		key, public := newKey(t)
		proof := sign(t, key, []byte(subject))
		wg.Go(func() { answers[n] = certificateFor(t, i, token, public, proof) })
	}
	wg.Wait()
	issued := 0
	for _, a := range answers {
		if a.status == http.StatusOK || a.status == http.StatusCreated {
			issued++
		} else {
			a.refused(t)
		}
	}
	if issued != 1 {
		t.Errorf("%d certificates for one token", issued)
	}
	certificate(t, i, token, subject).refused(t)
	i.Healthy(t)
}

// TestExpiredJobToken waits for a token of a few seconds to run out.
func TestExpiredJobToken(t *testing.T) {
	i := e2etest.Quickstart(t)
	const subject = "job@example.com"
	token := strings.TrimSpace(i.Sigboxd().OK(t, "token", "--dir", i.Dir, "--subject", subject, "--ttl", "1s").Stdout)
	var payload struct {
		Expiry int64 `json:"exp"`
	}
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &payload); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, 10*time.Second, "the token to expire", func() bool { return time.Now().Unix() > payload.Expiry+1 })
	certificate(t, i, token, subject).refused(t)
	i.Healthy(t)
}
