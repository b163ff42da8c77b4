package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/sigbox/sigbox/internal/inproc"
)

// gate stands in front of Dex and lets through what this issuer means to offer:
// only the endpoints listed in routes, only PKCE with S256, only forms of
// bounded size, and only so many guesses.
type gate struct {
	dex      http.Handler
	base     string   // the issuer URL's path
	clients  []string // by id
	remoteIP func(*http.Request) string
	logger   *slog.Logger

	// Failed sign-ins by address and by network, mistyped device codes, and
	// requests that leave a row in the store.
	users, networks, codes, rows *throttle
}

const (
	maxForm = 64 << 10
	maxSAML = 1 << 20 // a signed assertion may be large

	// deviceRedirect is where Dex sends the browser at the end of the device
	// flow. The code stays with the issuer, so there is no PKCE to ask for.
	deviceRedirect = "/device/callback"
)

func newGate(dex http.Handler, base string, cfg PeopleConfig) *gate {
	var clients []string
	for _, c := range cfg.Clients {
		clients = append(clients, c.ID)
	}
	return &gate{
		dex: dex, base: base, clients: clients, remoteIP: cfg.RemoteIP, logger: cfg.Logger,
		users:    newThrottle(10, 10*time.Second, cfg.Now),
		networks: newThrottle(100, time.Second, cfg.Now),
		codes:    newThrottle(20, 10*time.Second, cfg.Now),
		rows:     newThrottle(200, 200*time.Millisecond, cfg.Now),
	}
}

// routes serves what the configured grants and connectors need. Everything else
// of Dex's (token introspection, health, a welcome page) is not found.
func (g *gate) routes(ctx context.Context, cfg PeopleConfig, csp string) (http.Handler, error) {
	discovery, err := g.discovery(ctx, cfg.Grants)
	if err != nil {
		return nil, err
	}
	form := func(h http.HandlerFunc) http.Handler { return readForm(maxForm, h) }

	mux := http.NewServeMux()
	mux.Handle("GET "+g.base+discoveryPath, document(discovery, time.Hour))
	for _, path := range []string{"/keys", "/userinfo", "/static/", "/theme/", "/robots.txt"} {
		mux.Handle("GET "+g.base+path, g.dex)
	}
	mux.Handle("POST "+g.base+"/token", form(g.token))
	signIn := slices.Contains(cfg.Grants, GrantAuthorizationCode)
	device := slices.Contains(cfg.Grants, GrantDeviceCode)
	if signIn || device {
		auth := form(g.auth(signIn))
		mux.Handle("GET "+g.base+"/auth", auth)
		mux.Handle("POST "+g.base+"/auth", auth)
		mux.Handle("GET "+g.base+"/auth/{connector}", auth)
		mux.Handle("GET "+g.base+"/auth/{connector}/login", g.dex)
		mux.Handle("POST "+g.base+"/auth/{connector}/login", form(g.login))
	}
	if device {
		mux.Handle("POST "+g.base+"/device/code", form(g.deviceCode))
		mux.Handle("GET "+g.base+"/device", g.dex)
		mux.Handle("POST "+g.base+"/device/auth/verify_code", form(g.userCode))
		mux.Handle("GET "+g.base+deviceRedirect, g.dex)
	}
	if len(cfg.Connectors) > 0 && (signIn || device) {
		mux.Handle("GET "+g.base+"/callback", g.dex)
		mux.Handle("GET "+g.base+"/callback/{connector}", g.dex)
		mux.Handle("POST "+g.base+"/callback", readForm(maxSAML, g.dex.ServeHTTP))
		mux.Handle("POST "+g.base+"/callback/{connector}", readForm(maxSAML, g.dex.ServeHTTP))
	}
	return g.contain(csp, mux), nil
}

// discovery is Dex's document without what this issuer does not do.
func (g *gate) discovery(ctx context.Context, grants []string) ([]byte, error) {
	client := http.Client{Transport: inproc.Transport{Handler: g.dex}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dex"+g.base+discoveryPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var d map[string]any
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, err
	}
	delete(d, "introspection_endpoint")
	if !slices.Contains(grants, GrantDeviceCode) {
		delete(d, "device_authorization_endpoint")
	}
	d["code_challenge_methods_supported"] = []string{"S256"}
	d["token_endpoint_auth_methods_supported"] = []string{"none", "client_secret_basic", "client_secret_post"}
	return json.Marshal(d)
}

// contain sets the headers every answer needs and keeps a panic from ending the
// connection without an answer.
func (g *gate) contain(csp string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", csp)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer") // codes and states travel in URLs
		seen := &outcome{ResponseWriter: w}
		defer func() {
			switch v := recover(); v {
			case nil:
			case http.ErrAbortHandler:
				panic(v)
			default:
				g.logger.ErrorContext(r.Context(), "panic while serving a sign-in", "panic", v, "stack", string(debug.Stack()))
				if seen.status == 0 {
					http.Error(w, "internal error", http.StatusInternalServerError)
				}
			}
		}()
		next.ServeHTTP(seen, r)
	})
}

// readForm bounds the body and parses it once, so that what is checked here is
// what Dex reads later. Multipart bodies are refused: Dex would look into them,
// these checks would not.
func readForm(limit int64, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
				refuse(w, http.StatusUnsupportedMediaType, "invalid_request", "send application/x-www-form-urlencoded")
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		if err := r.ParseForm(); err != nil {
			status := http.StatusBadRequest
			if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
				status = http.StatusRequestEntityTooLarge
			}
			refuse(w, status, "invalid_request", "the form cannot be read")
			return
		}
		next(w, r)
	})
}

// auth starts a sign-in. The code flow without PKCE lets whoever sees the
// redirect take the token (CVE-2022-39222); the plain method protects little.
func (g *gate) auth(codeFlow bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Form.Get("redirect_uri") != deviceRedirect {
			switch {
			case !codeFlow:
				refuse(w, http.StatusBadRequest, "unauthorized_client", "the authorization code flow is not offered")
				return
			case !isS256(r.Form):
				refuse(w, http.StatusBadRequest, "invalid_request", "PKCE is required: send code_challenge with code_challenge_method=S256")
				return
			}
		}
		if g.spend(w, r, g.rows) {
			g.dex.ServeHTTP(w, r)
		}
	}
}

// isS256 tells whether the request has a code challenge of RFC 7636 section 4.2:
// a SHA-256 sum in 43 characters of base64url.
func isS256(form url.Values) bool {
	return form.Get("code_challenge_method") == "S256" && len(form.Get("code_challenge")) == 43
}

// deviceCode starts a device flow. PKCE is no part of RFC 8628, but a client that
// uses it must use it well. Dex hands codes to anyone and asks who it was when a
// person has signed in; RFC 8628 section 3.2 has the client known before.
func (g *gate) deviceCode(w http.ResponseWriter, r *http.Request) {
	if !slices.Contains(g.clients, r.Form.Get("client_id")) {
		refuse(w, http.StatusUnauthorized, "invalid_client", "client_id names no client of this issuer")
		return
	}
	if (r.Form.Has("code_challenge") || r.Form.Has("code_challenge_method")) && !isS256(r.Form) {
		refuse(w, http.StatusBadRequest, "invalid_request", "use PKCE with code_challenge_method=S256 or not at all")
		return
	}
	if g.spend(w, r, g.rows) {
		g.dex.ServeHTTP(w, r)
	}
}

func (g *gate) token(w http.ResponseWriter, r *http.Request) {
	if r.PostForm.Get("grant_type") == GrantPassword {
		g.guess(w, r, r.Form.Get("username"), http.StatusOK)
		return
	}
	g.dex.ServeHTTP(w, r)
}

func (g *gate) login(w http.ResponseWriter, r *http.Request) {
	g.guess(w, r, r.Form.Get("login"), http.StatusSeeOther)
}

// guess passes on a password, counting it against the user and the network
// unless Dex answers with the status that means success.
func (g *gate) guess(w http.ResponseWriter, r *http.Request, user string, success int) {
	byUser, ok := g.users.begin(strings.ToLower(user))
	if !ok {
		tooMany(w)
		return
	}
	byNetwork, ok := g.networks.begin(g.network(r))
	if !ok {
		byUser(true) // not tried
		tooMany(w)
		return
	}
	seen := &outcome{ResponseWriter: w}
	defer func() {
		byUser(seen.status == success)
		byNetwork(seen.status == success)
	}()
	g.dex.ServeHTTP(seen, r)
}

func (g *gate) userCode(w http.ResponseWriter, r *http.Request) {
	done, ok := g.codes.begin(g.network(r))
	if !ok {
		tooMany(w)
		return
	}
	seen := &outcome{ResponseWriter: w}
	defer func() { done(seen.status == http.StatusFound) }()
	g.dex.ServeHTTP(seen, r)
}

// spend counts a request that will leave a row behind.
func (g *gate) spend(w http.ResponseWriter, r *http.Request, t *throttle) bool {
	done, ok := t.begin(g.network(r))
	if !ok {
		tooMany(w)
		return false
	}
	done(false)
	return true
}

// network is the caller's IPv4 address or IPv6 /64, which one host may own whole.
func (g *gate) network(r *http.Request) string {
	var host string
	if g.remoteIP != nil {
		host = g.remoteIP(r)
	} else {
		host, _, _ = net.SplitHostPort(r.RemoteAddr) // "" for a call in process
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		prefix, _ := ip.Prefix(64) // 64 fits
		return prefix.String()
	}
	return ip.String()
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "10")
	refuse(w, http.StatusTooManyRequests, "temporarily_unavailable", "too many attempts, try again later")
}

// refuse answers as RFC 6749 section 5.2 has it; a person can read it too.
func refuse(w http.ResponseWriter, status int, code, description string) {
	body, _ := json.Marshal(map[string]string{"error": code, "error_description": description}) // strings marshal
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have left
}

// outcome remembers the status of an answer.
type outcome struct {
	http.ResponseWriter
	status int
}

func (o *outcome) WriteHeader(status int) {
	if o.status == 0 {
		o.status = status
	}
	o.ResponseWriter.WriteHeader(status)
}

func (o *outcome) Write(p []byte) (int, error) {
	if o.status == 0 {
		o.status = http.StatusOK
	}
	return o.ResponseWriter.Write(p)
}

func (o *outcome) Unwrap() http.ResponseWriter { return o.ResponseWriter }
