package issuer_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"io"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sigstore/sigstore/pkg/oauthflow"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/oauth2"

	"github.com/sigbox/sigbox/services/issuer"
)

const (
	alice    = "alice@example.com"
	password = "correct horse"
	oob      = "urn:ietf:wg:oauth:2.0:oob"
	loopback = "http://localhost:54321/auth/callback"
)

var aliceHash = sync.OnceValue(func() string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), 10) // the cheapest allowed
	if err != nil {
		panic(err)
	}
	return string(hash)
})

// peopleConfig has one user and every grant, served at o.
func peopleConfig(t testing.TB, o *origin) issuer.PeopleConfig {
	t.Helper()
	cfg := issuer.PeopleConfig{
		URL:   o.URL + "/oidc",
		Dir:   t.TempDir(),
		Users: []issuer.User{{Email: alice, Username: "Alice", PasswordHash: aliceHash()}},
		Grants: []string{
			issuer.GrantAuthorizationCode, issuer.GrantDeviceCode,
			issuer.GrantPassword, issuer.GrantRefreshToken,
		},
	}
	if err := issuer.CreatePeople(t.Context(), cfg.Dir); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func openPeople(t testing.TB, o *origin, cfg issuer.PeopleConfig) *issuer.People {
	t.Helper()
	p, err := issuer.NewPeople(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // some tests close it earlier
	<-p.Ready()
	o.handler.Store(p.Handler())
	return p
}

// person drives the pages as a browser without scripts would.
type person struct {
	*http.Client
	t testing.TB
}

func newPerson(t testing.TB) person {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return person{t: t, Client: &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host == "localhost:54321" { // where the client program would listen
			return http.ErrUseLastResponse
		}
		return nil
	}}}
}

type page struct {
	*http.Response
	body string
}

const formType = "application/x-www-form-urlencoded"

func (p person) do(method, u, contentType string, body io.Reader) page {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, u, body)
	if err != nil {
		p.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := p.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return page{resp, string(read)}
}

func (p person) get(u string) page {
	p.t.Helper()
	return p.do(http.MethodGet, u, "", nil)
}

func (p person) post(u string, form url.Values) page {
	p.t.Helper()
	return p.do(http.MethodPost, u, formType, strings.NewReader(form.Encode()))
}

var formAction = regexp.MustCompile(`<form[^>]* action="([^"]*)"`)

// submit fills in the page's form.
func (p person) submit(from page, fields url.Values) page {
	p.t.Helper()
	action := formAction.FindStringSubmatch(from.body)
	if action == nil {
		p.t.Fatalf("%s %s has no form: %s", from.Status, from.Request.URL, from.body)
	}
	target, err := from.Request.URL.Parse(html.UnescapeString(action[1]))
	if err != nil {
		p.t.Fatal(err)
	}
	return p.post(target.String(), fields)
}

func (p person) signIn(from page, email, password string) page {
	p.t.Helper()
	return p.submit(from, url.Values{"login": {email}, "password": {password}})
}

func client(t testing.TB, o *origin) (*oidc.Provider, *oauth2.Config) {
	t.Helper()
	provider, err := oidc.NewProvider(t.Context(), o.URL+"/oidc")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := provider.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInParams // or else each failure is tried twice
	return provider, &oauth2.Config{
		ClientID: "sigstore", Endpoint: endpoint, RedirectURL: loopback, Scopes: []string{"openid", "email"},
	}
}

func verify(t testing.TB, p *oidc.Provider, raw string) *oidc.IDToken {
	t.Helper()
	token, err := p.Verifier(&oidc.Config{ClientID: "sigstore"}).Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}
	if err := token.Claims(&c); err != nil {
		t.Fatal(err)
	}
	if c.Email != alice || !c.Verified {
		t.Errorf("the token is for %q, verified %v", c.Email, c.Verified)
	}
	return token
}

func rawIDToken(t testing.TB, token *oauth2.Token, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		t.Fatal("the answer has no id_token")
	}
	return raw
}

// passwordToken asks for a token the short way.
func passwordToken(t testing.TB, c *oauth2.Config) string {
	t.Helper()
	token, err := c.PasswordCredentialsToken(t.Context(), alice, password)
	return rawIDToken(t, token, err)
}

func TestCodeFlow(t *testing.T) {
	o := newOrigin(t)
	openPeople(t, o, peopleConfig(t, o))
	provider, c := client(t, o)
	c.Scopes = append(c.Scopes, "offline_access")
	p := newPerson(t)

	verifier := oauth2.GenerateVerifier()
	form := p.get(c.AuthCodeURL("the-state", oauth2.S256ChallengeOption(verifier), oidc.Nonce("the-nonce")))
	if form.StatusCode != http.StatusOK || !strings.Contains(form.body, "<title>Sigstore</title>") {
		t.Fatalf("sign-in page: %s %s", form.Status, form.body)
	}
	if got := form.Header.Get("Content-Security-Policy"); !strings.Contains(got, "frame-ancestors 'none'") || strings.Contains(got, "script-src") {
		t.Errorf("Content-Security-Policy: %s", got)
	}
	for _, link := range regexp.MustCompile(`<link[^>]* href="([^"]*)"`).FindAllStringSubmatch(form.body, -1) {
		u, err := form.Request.URL.Parse(html.UnescapeString(link[1]))
		if err != nil {
			t.Fatal(err)
		}
		if style := p.get(u.String()); style.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", u, style.Status)
		}
	}
	if again := p.signIn(form, alice, "wrong"); again.StatusCode != http.StatusUnauthorized || !strings.Contains(again.body, "Invalid") {
		t.Errorf("wrong password: %s", again.Status)
	}
	if again := p.signIn(form, "mallory@example.com", password); again.StatusCode != http.StatusUnauthorized {
		t.Errorf("unknown user: %s", again.Status)
	}
	done := p.signIn(form, strings.ToUpper(alice), password)
	back, err := done.Location()
	if err != nil {
		t.Fatalf("%s: %s", done.Status, done.body)
	}
	if back.Query().Get("state") != "the-state" {
		t.Errorf("sent back to %s", back)
	}
	code := back.Query().Get("code")

	for name, options := range map[string][]oauth2.AuthCodeOption{
		"no verifier":      nil,
		"another verifier": {oauth2.VerifierOption(oauth2.GenerateVerifier())},
		"the challenge":    {oauth2.VerifierOption(oauth2.S256ChallengeFromVerifier(verifier))},
	} {
		if _, err := c.Exchange(t.Context(), code, options...); err == nil {
			t.Errorf("%s: exchanged", name)
		}
	}
	token, err := c.Exchange(t.Context(), code, oauth2.VerifierOption(verifier))
	idToken := verify(t, provider, rawIDToken(t, token, err))
	if idToken.Nonce != "the-nonce" {
		t.Errorf("nonce %q", idToken.Nonce)
	}
	if life := idToken.Expiry.Sub(idToken.IssuedAt); life != 10*time.Minute {
		t.Errorf("the token lives %s", life)
	}
	if _, err := c.Exchange(t.Context(), code, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code was exchanged twice")
	}

	token.Expiry = time.Now().Add(-time.Second)
	refreshed, err := c.TokenSource(t.Context(), token).Token()
	verify(t, provider, rawIDToken(t, refreshed, err))
}

func TestOutOfBand(t *testing.T) {
	o := newOrigin(t)
	openPeople(t, o, peopleConfig(t, o))
	provider, c := client(t, o)
	c.RedirectURL = oob
	p := newPerson(t)
	verifier := oauth2.GenerateVerifier()
	shown := p.signIn(p.get(c.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier))), alice, password)
	code := regexp.MustCompile(`value="([a-z0-9]{20,})"`).FindStringSubmatch(shown.body)
	if code == nil {
		t.Fatalf("no code shown: %s %s", shown.Status, shown.body)
	}
	token, err := c.Exchange(t.Context(), code[1], oauth2.VerifierOption(verifier))
	verify(t, provider, rawIDToken(t, token, err))
}

// The device flow with the client that cosign uses.
func TestDeviceFlow(t *testing.T) {
	o := newOrigin(t)
	openPeople(t, o, peopleConfig(t, o))
	provider, c := client(t, o)
	getter := oauthflow.NewDeviceFlowTokenGetterForIssuer(o.URL + "/oidc")
	var shown string
	getter.MessagePrinter = func(s string) { shown += s + "\n" }
	approved := false
	getter.Sleeper = func(time.Duration) {
		if approved {
			t.Fatal("still pending after the approval")
		}
		approved = true
		p := newPerson(t)
		link := regexp.MustCompile(`http\S+`).FindString(shown)
		code := regexp.MustCompile(`[A-Z]{4}-[A-Z]{4}`).FindString(shown)
		if wrong := p.submit(p.get(link), url.Values{"user_code": {"AAAA-AAAA"}}); wrong.StatusCode != http.StatusBadRequest {
			t.Errorf("wrong code: %s", wrong.Status)
		}
		done := p.signIn(p.submit(p.get(link), url.Values{"user_code": {strings.ToLower(code)}}), alice, password)
		if done.StatusCode != http.StatusOK || !strings.Contains(done.body, "Login Successful") {
			t.Fatalf("%s %s", done.Status, done.body)
		}
	}
	token, err := getter.GetIDToken(provider, oauth2.Config{ClientID: c.ClientID})
	if err != nil {
		t.Fatal(err)
	}
	if token.Subject != alice {
		t.Errorf("subject %q", token.Subject)
	}
	verify(t, provider, token.RawString)
}

func TestPasswordGrant(t *testing.T) {
	o := newOrigin(t)
	openPeople(t, o, peopleConfig(t, o))
	provider, c := client(t, o)
	verify(t, provider, passwordToken(t, c))
	for name, login := range map[string][2]string{
		"wrong password": {alice, "wrong"}, "no password": {alice, ""}, "unknown user": {"bob@example.com", password}, "nobody": {"", ""},
	} {
		if _, err := c.PasswordCredentialsToken(t.Context(), login[0], login[1]); err == nil {
			t.Errorf("%s: got a token", name)
		}
	}
}

// Every way around PKCE (CVE-2022-39222), and other requests that a sign-in must
// not start from.
func TestSignInRefused(t *testing.T) {
	o := newOrigin(t)
	openPeople(t, o, peopleConfig(t, o))
	base := o.URL + "/oidc"
	challenge := oauth2.S256ChallengeFromVerifier(oauth2.GenerateVerifier())
	good := url.Values{
		"client_id": {"sigstore"}, "redirect_uri": {loopback}, "response_type": {"code"}, "scope": {"openid email"},
		"state": {"s"}, "code_challenge": {challenge}, "code_challenge_method": {"S256"},
	}
	with := func(key string, values ...string) url.Values {
		v := url.Values{}
		for k := range good {
			v[k] = good[k]
		}
		delete(v, key)
		if values != nil {
			v[key] = values
		}
		return v
	}
	noChallenge := with("code_challenge")
	p := newPerson(t)
	for _, path := range []string{"/auth", "/auth/local"} {
		if got := p.get(base + path + "?" + good.Encode()); !strings.Contains(got.body, `name="password"`) {
			t.Fatalf("%s with everything right: %s %s", path, got.Status, got.body)
		}
		for name, q := range map[string]url.Values{
			"no challenge":                   noChallenge,
			"empty challenge":                with("code_challenge", ""),
			"short challenge":                with("code_challenge", "x"),
			"empty, then right":              with("code_challenge", "", challenge),
			"no method":                      with("code_challenge_method"),
			"plain":                          with("code_challenge_method", "plain"),
			"plain, then S256":               with("code_challenge_method", "plain", "S256"),
			"another redirect":               with("redirect_uri", "https://evil.example.com/"),
			"redirect to loopback lookalike": with("redirect_uri", "http://localhost.evil.example.com/"),
			"redirect by https":              with("redirect_uri", "https://localhost/"),
			"another client":                 with("client_id", "other"),
			"encoded device redirect, no challenge": func() url.Values {
				v := with("redirect_uri", "%2Fdevice%2Fcallback")
				v.Del("code_challenge")
				return v
			}(),
		} {
			got := p.get(base + path + "?" + q.Encode())
			if got.StatusCode < 400 || got.StatusCode >= 500 || strings.Contains(got.body, "<form") {
				t.Errorf("%s: %s: %s", path, name, got.Status)
			}
		}
		for name, q := range map[string]url.Values{
			"implicit flow": with("response_type", "id_token"), "hybrid flow": with("response_type", "code id_token"),
			"no openid": with("scope", "email"), "another audience": with("scope", "openid audience:server:client_id:other"),
		} {
			got := p.get(base + path + "?" + q.Encode())
			if back, err := got.Location(); err != nil || back.Query().Get("error") == "" {
				t.Errorf("%s: %s: %s", path, name, got.Status)
			}
		}
	}
	for name, do := range map[string]func() page{
		"POST without challenge": func() page { return p.post(base+"/auth", noChallenge) },
		"challenge split over body and query": func() page {
			return p.post(base+"/auth?"+noChallenge.Encode(), url.Values{"code_challenge": {""}})
		},
		"escaped path":  func() page { return p.get(base + "/%61uth/local?" + noChallenge.Encode()) },
		"login suffix":  func() page { return p.get(base + "/auth/local%2Flogin?" + noChallenge.Encode()) },
		"doubled slash": func() page { return p.get(base + "//auth/local?" + noChallenge.Encode()) },
		"dots":          func() page { return p.get(base + "/x/../auth/local?" + noChallenge.Encode()) },
		"multipart": func() page {
			return p.do(http.MethodPost, base+"/auth", "multipart/form-data; boundary=x", strings.NewReader("--x--"))
		},
		"device by plain": func() page {
			return p.post(base+"/device/code", url.Values{"client_id": {"sigstore"}, "code_challenge": {"x"}, "code_challenge_method": {"plain"}})
		},
		"device by default method": func() page {
			return p.post(base+"/device/code", url.Values{"client_id": {"sigstore"}, "code_challenge": {challenge}})
		},
		"device for nobody":          func() page { return p.post(base+"/device/code", url.Values{}) },
		"device for another program": func() page { return p.post(base+"/device/code", url.Values{"client_id": {"other"}}) },
		"huge body": func() page {
			return p.do(http.MethodPost, base+"/token", formType, bytes.NewReader(bytes.Repeat([]byte("a"), 1<<20)))
		},
		"broken form": func() page {
			return p.do(http.MethodPost, base+"/token", formType, strings.NewReader("a=%zz"))
		},
		"introspection": func() page {
			return p.post(base+"/token/introspect", url.Values{"token": {"x"}})
		},
		"health":   func() page { return p.get(base + "/healthz") },
		"callback": func() page { return p.get(base + "/callback?state=x") },
		"token exchange": func() page {
			return p.post(base+"/token", url.Values{"client_id": {"sigstore"}, "grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}})
		},
	} {
		got := do()
		if got.StatusCode < 400 || got.StatusCode >= 500 || strings.Contains(got.body, "<form") {
			t.Errorf("%s: %s", name, got.Status)
		}
	}
}

func TestDiscovery(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	cfg.Grants = nil
	openPeople(t, o, cfg)
	provider, c := client(t, o)
	var d struct {
		Methods    []string `json:"code_challenge_methods_supported"`
		Grants     []string `json:"grant_types_supported"`
		Introspect string   `json:"introspection_endpoint"`
	}
	if err := provider.Claims(&d); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(d.Methods) != "[S256]" || d.Introspect != "" ||
		fmt.Sprint(d.Grants) != "[authorization_code urn:ietf:params:oauth:grant-type:device_code]" {
		t.Errorf("%+v", d)
	}
	if _, err := c.PasswordCredentialsToken(t.Context(), alice, password); err == nil {
		t.Error("the password grant is not offered and worked")
	}
	if _, err := oauthflow.NewPKCE(provider); err != nil {
		t.Errorf("cosign's PKCE: %v", err)
	}
}

func TestGrantsDisabled(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	cfg.Grants = []string{issuer.GrantPassword}
	openPeople(t, o, cfg)
	provider, c := client(t, o)
	verify(t, provider, passwordToken(t, c))
	p := newPerson(t)
	for _, path := range []string{"/auth", "/auth/local", "/auth/local/login", "/device", "/device/callback"} {
		if got := p.get(cfg.URL + path); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
	for _, path := range []string{"/device/code", "/device/token", "/device/auth/verify_code"} {
		if got := p.post(cfg.URL+path, nil); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, got.Status)
		}
	}

	// With the device flow alone, a sign-in serves a device or nothing.
	o = newOrigin(t)
	cfg = peopleConfig(t, o)
	cfg.Grants = []string{issuer.GrantDeviceCode}
	openPeople(t, o, cfg)
	_, c = client(t, o)
	if got := p.get(c.AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier()))); got.StatusCode != http.StatusBadRequest {
		t.Errorf("code flow: %s", got.Status)
	}
}

// Keys, and with them tokens and refresh tokens, outlive the process.
func TestPeopleRestart(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	first := openPeople(t, o, cfg)
	_, c := client(t, o)
	c.Scopes = append(c.Scopes, "offline_access")
	token, err := c.PasswordCredentialsToken(t.Context(), alice, password)
	raw := rawIDToken(t, token, err)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	openPeople(t, o, cfg)
	provider, c := client(t, o)
	verify(t, provider, raw)
	token.Expiry = time.Now().Add(-time.Second)
	refreshed, err := c.TokenSource(t.Context(), token).Token()
	verify(t, provider, rawIDToken(t, refreshed, err))
}

// A rotated key still verifies what it signed.
func TestKeyRotation(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	cfg.KeyRotation = time.Hour
	first := openPeople(t, o, cfg)
	_, c := client(t, o)
	raw := passwordToken(t, c)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	cfg.Now = func() time.Time { return now.Add(time.Hour + time.Minute) }
	openPeople(t, o, cfg)
	if kid(t, passwordToken(t, c)) == kid(t, raw) {
		t.Error("the key did not change")
	}
	provider, _ := client(t, o)
	verify(t, provider, raw)
}

func kid(t testing.TB, raw string) string {
	t.Helper()
	jws, err := jose.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	return jws.Signatures[0].Header.KeyID
}

func TestGuessing(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	bob := issuer.User{Email: "bob@example.com", PasswordHash: aliceHash()}
	cfg.Users = append(cfg.Users, bob)
	var mu sync.Mutex
	now := time.Now()
	cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	openPeople(t, o, cfg)
	_, c := client(t, o)

	var refused, tried int
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			_, err := c.PasswordCredentialsToken(t.Context(), alice, "guess")
			mu.Lock()
			defer mu.Unlock()
			if status(err) == http.StatusTooManyRequests {
				refused++
			} else {
				tried++
			}
		})
	}
	wg.Wait()
	if tried != 10 || refused != 20 {
		t.Errorf("%d guesses were tried, %d refused", tried, refused)
	}
	_, err := c.PasswordCredentialsToken(t.Context(), alice, password)
	if status(err) != http.StatusTooManyRequests {
		t.Errorf("the right password after too many wrong ones: %v", err)
	}
	p := newPerson(t)
	form := p.get(c.AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier())))
	if got := p.signIn(form, strings.ToUpper(alice), password); got.StatusCode != http.StatusTooManyRequests || got.Header.Get("Retry-After") == "" {
		t.Errorf("the form after too many guesses: %s", got.Status)
	}
	if _, err := c.PasswordCredentialsToken(t.Context(), bob.Email, password); err != nil {
		t.Errorf("another user: %v", err)
	}
	mu.Lock()
	now = now.Add(20 * time.Second)
	mu.Unlock()
	for range 5 { // success costs nothing
		if _, err := c.PasswordCredentialsToken(t.Context(), alice, password); err != nil {
			t.Fatalf("later: %v", err)
		}
	}
}

func status(err error) int {
	if failed := new(oauth2.RetrieveError); errors.As(err, &failed) {
		return failed.Response.StatusCode
	}
	return 0
}

// People of another provider sign in through it: here through a second issuer.
func TestUpstreamConnector(t *testing.T) {
	up := newOrigin(t)
	upstream := peopleConfig(t, up)
	o := newOrigin(t)
	secret := "shared secret"
	upstream.Clients = []issuer.Client{{ID: "sigbox", Secret: secret, RedirectURIs: []string{o.URL + "/oidc/callback"}}}
	openPeople(t, up, upstream)

	cfg := peopleConfig(t, o)
	cfg.Users = nil
	cfg.Grants = nil
	cfg.Connectors = []issuer.Connector{{Type: "oidc", ID: "corp", Config: map[string]any{
		"issuer": upstream.URL, "clientID": "sigbox", "clientSecret": secret,
		"redirectURI": o.URL + "/oidc/callback", "scopes": []string{"openid", "email"}, "pkceChallenge": "S256",
		"userNameKey": "email", "insecureSkipEmailVerified": false,
	}}}
	openPeople(t, o, cfg)
	provider, c := client(t, o)
	p := newPerson(t)
	verifier := oauth2.GenerateVerifier()
	form := p.get(c.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)))
	if form.Request.URL.Host != strings.TrimPrefix(up.URL, "http://") {
		t.Fatalf("sign-in starts at %s: %s", form.Request.URL, form.body)
	}
	back, err := p.signIn(form, alice, password).Location()
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Exchange(t.Context(), back.Query().Get("code"), oauth2.VerifierOption(verifier))
	verify(t, provider, rawIDToken(t, token, err))
}

// A provider that is down keeps nobody else from signing in.
func TestUpstreamDown(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	cfg.Connectors = []issuer.Connector{{Type: "oidc", ID: "down", Name: "The other provider", Config: map[string]any{
		"issuer": o.URL + "/nothing-here", "clientID": "x", "clientSecret": "x", "redirectURI": cfg.URL + "/callback",
	}}}
	o.handler.Store(http.NotFoundHandler())
	openPeople(t, o, cfg)
	provider, c := client(t, o)
	verify(t, provider, passwordToken(t, c))
	choice := newPerson(t).get(c.AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier())))
	if !strings.Contains(choice.body, "The other provider") || !strings.Contains(choice.body, "Email") {
		t.Errorf("%s: %s", choice.Status, choice.body)
	}
}

// The page that sends people on to a SAML provider runs one script; the content
// policy has to name exactly that one.
func TestSAMLPage(t *testing.T) {
	o := newOrigin(t)
	cfg := peopleConfig(t, o)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	key := p256(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Users = nil
	cfg.Grants = []string{issuer.GrantAuthorizationCode}
	cfg.Connectors = []issuer.Connector{{Type: "saml", ID: "saml", Config: map[string]any{
		"ssoURL": "https://saml.example.com/sso", "redirectURI": cfg.URL + "/callback", "usernameAttr": "name", "emailAttr": "email",
		"caData": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}}}
	openPeople(t, o, cfg)
	_, c := client(t, o)
	shown := newPerson(t).get(c.AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier())))
	script := regexp.MustCompile(`(?s)<script>(.*?)</script>`).FindStringSubmatch(shown.body)
	if script == nil {
		t.Fatalf("%s: %s", shown.Status, shown.body)
	}
	sum := sha256.Sum256([]byte(script[1]))
	if policy := shown.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "script-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
		t.Errorf("the policy %q does not let the page's script run", policy)
	}
}

func TestPeopleConfigRefused(t *testing.T) {
	o := newOrigin(t)
	good := peopleConfig(t, o)
	cheap, err := bcrypt.GenerateFromPassword([]byte(password), 4)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*issuer.PeopleConfig){
		"cheap hash": func(c *issuer.PeopleConfig) { c.Users = []issuer.User{{Email: alice, PasswordHash: string(cheap)}} },
		"dear hash": func(c *issuer.PeopleConfig) {
			c.Users = []issuer.User{{Email: alice, PasswordHash: "$2a$20$" + strings.Repeat("a", 53)}}
		},
		"plain password": func(c *issuer.PeopleConfig) { c.Users = []issuer.User{{Email: alice, PasswordHash: password}} },
		"no address":     func(c *issuer.PeopleConfig) { c.Users = []issuer.User{{Email: "alice", PasswordHash: aliceHash()}} },
		"no domain": func(c *issuer.PeopleConfig) {
			c.Users = []issuer.User{{Email: "alice@localhost", PasswordHash: aliceHash()}}
		},
		"not ascii": func(c *issuer.PeopleConfig) {
			c.Users = []issuer.User{{Email: "alicé@example.com", PasswordHash: aliceHash()}}
		},
		"user twice": func(c *issuer.PeopleConfig) {
			c.Users = append(c.Users, issuer.User{Email: "Alice@example.com", PasswordHash: aliceHash()})
		},
		"nobody":             func(c *issuer.PeopleConfig) { c.Users = nil },
		"unknown grant":      func(c *issuer.PeopleConfig) { c.Grants = []string{"implicit"} },
		"mock connector":     func(c *issuer.PeopleConfig) { c.Connectors = []issuer.Connector{{Type: "mockCallback", ID: "x"}} },
		"trusting connector": func(c *issuer.PeopleConfig) { c.Connectors = []issuer.Connector{{Type: "authproxy", ID: "x"}} },
		"unknown connector":  func(c *issuer.PeopleConfig) { c.Connectors = []issuer.Connector{{Type: "x", ID: "x"}} },
		"connector key": func(c *issuer.PeopleConfig) {
			c.Connectors = []issuer.Connector{{Type: "github", ID: "x", Config: map[string]any{"cleintID": "x"}}}
		},
		"connector id":    func(c *issuer.PeopleConfig) { c.Connectors = []issuer.Connector{{Type: "github", ID: "a/login"}} },
		"connector local": func(c *issuer.PeopleConfig) { c.Connectors = []issuer.Connector{{Type: "github", ID: "local"}} },
		"client secret":   func(c *issuer.PeopleConfig) { c.Clients = []issuer.Client{{ID: "x", Public: true, Secret: "s"}} },
		"no client secret": func(c *issuer.PeopleConfig) {
			c.Clients = []issuer.Client{{ID: "x", RedirectURIs: []string{"https://x/"}}}
		},
		"url":      func(c *issuer.PeopleConfig) { c.URL += "/" },
		"lifetime": func(c *issuer.PeopleConfig) { c.IDTokenTTL = -time.Minute },
		"no state": func(c *issuer.PeopleConfig) { c.Dir = t.TempDir() },
	} {
		cfg := good
		spoil(&cfg)
		if p, err := issuer.NewPeople(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = p.Close()
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	registry := prometheus.NewRegistry()
	good.Metrics = registry
	openPeople(t, o, good)
	client(t, o)
	if families, err := registry.Gather(); err != nil || len(families) == 0 {
		t.Errorf("metrics: %v, %v", families, err)
	}
	again := peopleConfig(t, o)
	again.Metrics = registry
	if p, err := issuer.NewPeople(t.Context(), again); err == nil {
		t.Error("two issuers share a registry")
		_ = p.Close()
	}
}

func TestHashPassword(t *testing.T) {
	hash, err := issuer.HashPassword([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	if err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", strings.Repeat("x", 73)} {
		if _, err := issuer.HashPassword([]byte(bad)); err == nil {
			t.Errorf("hashed %d bytes", len(bad))
		}
	}
}
