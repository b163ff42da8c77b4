package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/client/clienttest"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/tuf"
)

const alice = "alice@example.com"

func pin(t *testing.T, i *clienttest.Instance) (client.Home, *client.Profile) {
	t.Helper()
	home := client.Home{Dir: t.TempDir()}
	p, err := home.Init(t.Context(), client.InitOptions{URL: i.URL, RootChecksum: i.Repository().RootChecksum()})
	if err != nil {
		t.Fatal(err)
	}
	return home, p
}

func signer(t *testing.T, i *clienttest.Instance, p *client.Profile) *client.Signer {
	t.Helper()
	token, err := client.NewToken(i.Token(alice))
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Signer(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func aliceAt(i *clienttest.Instance) client.Identity {
	return client.Identity{Subject: alice, Issuer: i.Issuer()}
}

func signBlob(t *testing.T, i *clienttest.Instance, p *client.Profile, blob string) []byte {
	t.Helper()
	signed, err := signer(t, i, p).SignBlob(t.Context(), strings.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	return signed.Bundle
}

func TestSignAndVerifyBlob(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	data := signBlob(t, i, p, "hello")
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := client.ParseBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	i.Requests()
	v, err := trust.VerifyBlob(strings.NewReader("hello"), b, aliceAt(i))
	if err != nil {
		t.Fatal(err)
	}
	if v.Subject != alice || v.Issuer != i.Issuer() || len(v.LogEntries) != 1 || len(v.Times) != 2 {
		t.Errorf("verified %+v", v)
	}
	if r := i.Requests(); len(r) > 0 {
		t.Errorf("verification asked for %v", r)
	}
}

func TestVerifyBlobRefuses(t *testing.T) {
	i := clienttest.New(t)
	other := clienttest.New(t)
	_, p := pin(t, i)
	data := signBlob(t, i, p, "hello")
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		blob string
		id   client.Identity
		code int
	}{
		{"another blob", "hallo", aliceAt(i), cli.ExitNo},
		{"another identity", "hello", client.Identity{Subject: "bob@example.com", Issuer: i.Issuer()}, cli.ExitNo},
		{"another issuer", "hello", client.Identity{Subject: alice, Issuer: "https://elsewhere.example"}, cli.ExitNo},
		{"a regexp for a part of the identity", "hello", client.Identity{SubjectRegexp: "alice@example", Issuer: i.Issuer()}, cli.ExitNo},
		{"a regexp with a way out of its anchors", "hello", client.Identity{SubjectRegexp: "bob|alice@example", Issuer: i.Issuer()}, cli.ExitNo},
		{"a regexp for a part of the issuer", "hello", client.Identity{Subject: alice, IssuerRegexp: "http://127.0.0.1"}, cli.ExitNo},
		{"no identity", "hello", client.Identity{Issuer: i.Issuer()}, cli.ExitUsage},
		{"no issuer", "hello", client.Identity{Subject: alice}, cli.ExitUsage},
		{"identity twice", "hello", client.Identity{Subject: alice, SubjectRegexp: ".*", Issuer: i.Issuer()}, cli.ExitUsage},
		{"a regexp that closes the anchor", "hello", client.Identity{SubjectRegexp: "x)|(?:.*", Issuer: i.Issuer()}, cli.ExitUsage},
	} {
		b, err := client.ParseBundle(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trust.VerifyBlob(strings.NewReader(c.blob), b, c.id); cli.Code(err) != c.code {
			t.Errorf("%s: exit code %d: %v", c.name, cli.Code(err), err)
		}
	}
	b, err := client.ParseBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.VerifyBlob(strings.NewReader("hello"), b, client.Identity{SubjectRegexp: `.*@example\.com`, IssuerRegexp: `http://127\.0\.0\.1:\d+/oidc`}); err != nil {
		t.Errorf("regexps for the whole: %v", err)
	}
	if _, err := trust.VerifyBlob(broken{}, b, aliceAt(i)); cli.Code(err) != cli.ExitFailed {
		t.Errorf("an artifact that cannot be read is no verdict: %v", err)
	}
	_, stranger := pin(t, other)
	strangers, err := stranger.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := strangers.VerifyBlob(strings.NewReader("hello"), b, aliceAt(i)); cli.Code(err) != cli.ExitNo {
		t.Errorf("trust of another instance: %v", err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

// TestEveryPartCounts changes each value in a bundle and demands a "no".
func TestEveryPartCounts(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	data := signBlob(t, i, p, "hello")
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	paths := leaves(doc, nil)
	if len(paths) < 15 {
		t.Fatalf("only %d values in a bundle: %v", len(paths), paths)
	}
	for _, path := range paths {
		for _, change := range []struct {
			name string
			to   func(any) (any, bool)
		}{
			{"removed", func(any) (any, bool) { return nil, false }},
			{"changed", func(v any) (any, bool) { return altered(v), true }},
		} {
			var doc any
			if err := json.Unmarshal(data, &doc); err != nil {
				t.Fatal(err)
			}
			edit(doc, path, change.to)
			text, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			b, err := client.ParseBundle(text)
			if err == nil {
				_, err = trust.VerifyBlob(strings.NewReader("hello"), b, aliceAt(i))
			}
			if cli.Code(err) == cli.ExitNo {
				continue
			}
			// The kind of an entry is also in its canonical body, which is signed, and is
			// read from there. One vouched time of the two is enough, so that the other
			// may be missing, but not be wrong.
			last := fmt.Sprint(path[len(path)-1])
			missing := change.name == "removed" && (last == "signedTimestamp" || last == "signedEntryTimestamp")
			if err == nil && (missing || strings.Contains(fmt.Sprint(path), "kindVersion")) {
				continue
			}
			t.Errorf("%v %s: %v", path, change.name, err)
		}
	}
}

func leaves(v any, path []any) [][]any {
	var out [][]any
	switch v := v.(type) {
	case map[string]any:
		for k, c := range v {
			out = append(out, leaves(c, append(slices.Clone(path), k))...)
		}
	case []any:
		for k, c := range v {
			out = append(out, leaves(c, append(slices.Clone(path), k))...)
		}
	default:
		out = append(out, path)
	}
	return out
}

func edit(v any, path []any, to func(any) (any, bool)) {
	for _, step := range path[:len(path)-1] {
		if k, ok := step.(string); ok {
			v = v.(map[string]any)[k]
		} else {
			v = v.([]any)[step.(int)]
		}
	}
	switch k := path[len(path)-1].(type) {
	case string:
		m := v.(map[string]any)
		if n, keep := to(m[k]); keep {
			m[k] = n
		} else {
			delete(m, k)
		}
	case int:
		s := v.([]any)
		s[k], _ = to(s[k])
	}
}

func altered(v any) any {
	switch v := v.(type) {
	case string:
		if n := len(v) / 2; n > 0 {
			c := byte('A')
			if v[n] == 'A' {
				c = 'B'
			}
			return v[:n] + string(c) + v[n+1:]
		}
		return v + "1"
	case float64:
		return v + 1
	case bool:
		return !v
	}
	return "x"
}

func TestStalledLog(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	var certificates atomic.Int32
	i.Handle = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/v2/signingCert" {
			certificates.Add(1)
		}
		return false
	}
	// Late for the first certificate, in time for the second.
	i.Now = func() time.Time {
		if certificates.Load() == 1 {
			return time.Now().Add(10*time.Minute + 3*time.Second)
		}
		return time.Now()
	}
	signBlob(t, i, p, "hello")
	if n := certificates.Load(); n != 2 {
		t.Errorf("%d certificates asked for, want 2", n)
	}
	i.Now = func() time.Time { return time.Now().Add(time.Hour) }
	_, err := signer(t, i, p).SignBlob(t.Context(), strings.NewReader("hello"))
	if cli.Code(err) != cli.ExitFailed || !strings.Contains(err.Error(), "after the certificate's end") {
		t.Errorf("a log that stays behind: %v", err)
	}
}

func TestSigningFails(t *testing.T) {
	for _, c := range []struct {
		name   string
		handle func(w http.ResponseWriter, r *http.Request) bool
		mangle func(path string, body []byte) []byte
		want   string
	}{
		{name: "Fulcio redirects", want: "redirects", handle: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/api/v2/signingCert" {
				return false
			}
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusTemporaryRedirect)
			return true
		}},
		{name: "Fulcio refuses", want: "issuer not known", handle: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/api/v2/signingCert" {
				return false
			}
			http.Error(w, "issuer not known", http.StatusBadRequest)
			return true
		}},
		{name: "the log refuses", want: "kind not known", handle: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/api/v1/log/entries" {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"code":400,"message":"kind not known"}`)
			return true
		}},
		{name: "a proxy refuses", want: "too large", handle: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/api/v1/log/entries" {
				return false
			}
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return true
		}},
		{name: "an endless answer", want: "", handle: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/api/v1/timestamp" {
				return false
			}
			chunk := make([]byte, 1<<20)
			for range 64 {
				if _, err := w.Write(chunk); err != nil {
					return true
				}
			}
			return true
		}},
		{name: "a certificate that another issued", want: "another key", mangle: func(path string, body []byte) []byte {
			if path != "/api/v2/signingCert" {
				return body
			}
			return otherCertificate
		}},
		{name: "a log entry whose proof is wrong", want: "does not verify", mangle: func(path string, body []byte) []byte {
			if path != "/api/v1/log/entries" {
				return body
			}
			return bytes.Replace(body, []byte(`"treeSize":1`), []byte(`"treeSize":2`), 1)
		}},
		{name: "a timestamp that is none", want: "getting a timestamp", mangle: func(path string, body []byte) []byte {
			if path != "/api/v1/timestamp" {
				return body
			}
			return []byte("x")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := clienttest.New(t)
			_, p := pin(t, i)
			i.Handle, i.Mangle = c.handle, c.mangle
			if c.mangle != nil && strings.HasPrefix(c.name, "a certificate") {
				other := clienttest.New(t)
				var body []byte
				other.Mangle = func(path string, b []byte) []byte {
					if path == "/api/v2/signingCert" {
						body = b
					}
					return b
				}
				_, q := pin(t, other)
				signBlob(t, other, q, "hello")
				otherCertificate = body
			}
			_, err := signer(t, i, p).SignBlob(t.Context(), strings.NewReader("hello"))
			if cli.Code(err) != cli.ExitFailed || !strings.Contains(err.Error(), c.want) {
				t.Errorf("exit code %d: %v", cli.Code(err), err)
			}
			if err != nil && strings.Contains(err.Error(), i.Token(alice)[:40]) {
				t.Error("the error shows the token")
			}
		})
	}
}

var otherCertificate []byte

func TestOverloadedIsAskedAgain(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	var busy atomic.Int32
	i.Handle = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/tuf") || busy.Add(1) > 3 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		http.Error(w, "later", http.StatusServiceUnavailable)
		return true
	}
	signBlob(t, i, p, "hello")

	i.Handle = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/tuf") {
			return false
		}
		w.Header().Set("Retry-After", "0")
		http.Error(w, "later", http.StatusServiceUnavailable)
		return true
	}
	_, err := signer(t, i, p).SignBlob(t.Context(), strings.NewReader("hello"))
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("overloaded for good: %v", err)
	}
}

func TestContextEndsSigning(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	token, err := client.NewToken(i.Token(alice))
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := p.Signer(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	i.Handle = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/v2/signingCert" {
			cancel()
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	}
	if _, err := s.SignBlob(ctx, strings.NewReader("hello")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestInitRefuses(t *testing.T) {
	i := clienttest.New(t)
	other := clienttest.New(t)
	good := i.Repository().RootChecksum()
	for _, c := range []struct {
		name string
		o    client.InitOptions
		code int
	}{
		{"nothing to pin by", client.InitOptions{URL: i.URL}, cli.ExitUsage},
		{"the checksum of another", client.InitOptions{URL: i.URL, RootChecksum: other.Repository().RootChecksum()}, cli.ExitNo},
		{"the root of another", client.InitOptions{URL: i.URL, Root: other.Repository().Root()}, cli.ExitFailed},
		{"root and checksum that differ", client.InitOptions{URL: i.URL, Root: i.Repository().Root(), RootChecksum: other.Repository().RootChecksum()}, cli.ExitNo},
		{"a checksum that is none", client.InitOptions{URL: i.URL, RootChecksum: "abc"}, cli.ExitUsage},
		{"a root that is none", client.InitOptions{URL: i.URL, Root: []byte("{}")}, cli.ExitFailed},
		{"no URL", client.InitOptions{RootChecksum: good}, cli.ExitUsage},
		{"a URL with a path", client.InitOptions{URL: i.URL + "/tuf", RootChecksum: good}, cli.ExitUsage},
		{"a URL with a password", client.InitOptions{URL: "http://a:b@127.0.0.1", RootChecksum: good}, cli.ExitUsage},
		{"plain HTTP beyond this machine", client.InitOptions{URL: "http://sigstore.example", RootChecksum: good}, cli.ExitUsage},
		{"nobody there", client.InitOptions{URL: "http://127.0.0.1:1", RootChecksum: good}, cli.ExitFailed},
		{"a name that climbs", client.InitOptions{URL: i.URL, RootChecksum: good, Name: "../x"}, cli.ExitUsage},
		{"a CA that is none", client.InitOptions{URL: i.URL, RootChecksum: good, CA: []byte("x")}, cli.ExitUsage},
	} {
		home := client.Home{Dir: t.TempDir()}
		if _, err := home.Init(t.Context(), c.o); cli.Code(err) != c.code {
			t.Errorf("%s: exit code %d, want %d: %v", c.name, cli.Code(err), c.code, err)
		}
		if names, err := home.Names(); err != nil || len(names) > 0 {
			t.Errorf("%s: left %v behind, %v", c.name, names, err)
		}
		if left, _ := filepath.Glob(filepath.Join(home.Dir, "profiles", ".*")); len(left) > 0 {
			t.Errorf("%s: left %v behind", c.name, left)
		}
		if _, err := home.Open(""); cli.Code(err) != cli.ExitUsage {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestInitAgain(t *testing.T) {
	i := clienttest.New(t)
	home, p := pin(t, i)
	again := client.InitOptions{URL: i.URL, Root: i.Repository().Root()}
	if _, err := home.Init(t.Context(), again); err != nil {
		t.Errorf("the same root: %v", err)
	}
	other := clienttest.New(t)
	moved := client.InitOptions{URL: other.URL, Root: other.Repository().Root(), Name: p.Name}
	if _, err := home.Init(t.Context(), moved); cli.Code(err) != cli.ExitUsage {
		t.Errorf("another instance under the name: %v", err)
	}
	moved.Replace = true
	if _, err := home.Init(t.Context(), moved); err != nil {
		t.Errorf("replaced: %v", err)
	}
	if q, err := home.Open(""); err != nil || q.URL != other.URL {
		t.Errorf("%+v, %v", q, err)
	}
}

func TestTrustIsKept(t *testing.T) {
	i := clienttest.New(t)
	home, p := pin(t, i)
	i.Requests()
	trust, err := p.Trust(t.Context())
	if err != nil || !trust.Cached {
		t.Fatalf("%+v, %v", trust, err)
	}
	if r := i.Requests(); len(r) > 0 {
		t.Errorf("asked for %v", r)
	}

	// Bytes that were changed on disk are not believed, but fetched anew.
	for _, name := range []string{"timestamp.json", "targets.json", "targets/trusted_root.json"} {
		path := filepath.Join(p.Dir(), "tuf", name)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.Replace(data, []byte("2"), []byte("3"), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		trust, err := p.Trust(t.Context())
		if err != nil || trust.Cached {
			t.Errorf("%s changed: cached %v, %v", name, trust != nil && trust.Cached, err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.Dir(), "1.root.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Trust(t.Context()); err == nil {
		t.Error("another root than the pinned one was used")
	}
	if _, err := home.Open(p.Name); err != nil {
		t.Error(err)
	}
}

func TestTrustExpires(t *testing.T) {
	i := clienttest.New(t)
	i.Publish(time.Now().Add(-8 * 24 * time.Hour))
	home := client.Home{Dir: t.TempDir()}
	// A repository whose timestamp has expired is not pinned at all.
	if _, err := home.Init(t.Context(), client.InitOptions{URL: i.URL, RootChecksum: i.Repository().RootChecksum()}); cli.Code(err) != cli.ExitFailed || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
}

// TestTrustRunsOut: once what is kept has expired, the instance is asked; when
// it is gone too, nothing is verified and the error says both.
func TestTrustRunsOut(t *testing.T) {
	i := clienttest.New(t)
	i.Publish(time.Now().Add(2*time.Second - tuf.DefaultLifetimes().Timestamp))
	_, p := pin(t, i)
	if trust, err := p.Trust(t.Context()); err != nil || !trust.Cached {
		t.Fatalf("while it lasts: %v", err)
	}
	i.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := p.Trust(t.Context())
		if err != nil {
			if cli.Code(err) != cli.ExitFailed || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), "fetching the trust") {
				t.Errorf("%v", err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("expired trust is still used")
		}
	}
}

func TestToken(t *testing.T) {
	i := clienttest.New(t)
	good := i.Token(alice)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(good+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, flag, env, envFile string
		ok                       bool
		code                     int
	}{
		{name: "flag", flag: good, ok: true},
		{name: "flag with a file", flag: file, ok: true},
		{name: "environment", env: good, ok: true},
		{name: "file from the environment", envFile: file, ok: true},
		{name: "flag before environment", flag: good, env: "x", ok: true},
		{name: "none"},
		{name: "no file and no token", flag: "/nowhere", code: cli.ExitUsage},
		{name: "dots", flag: "..", code: cli.ExitUsage},
		{name: "many dots", flag: strings.Repeat(".", 100000), code: cli.ExitUsage},
		{name: "not base64", flag: "a.!.c", code: cli.ExitUsage},
		{name: "empty file", flag: os.DevNull, code: cli.ExitUsage},
		{name: "no such file in the environment", envFile: "/nowhere", code: cli.ExitUsage},
		{name: "expired", flag: "e30.eyJleHAiOjF9.eA", code: cli.ExitFailed},
	} {
		t.Setenv("SIGSTORE_ID_TOKEN", c.env)
		t.Setenv("SIGSTORE_ID_TOKEN_FILE", c.envFile)
		token, ok, err := client.FindToken(c.flag)
		if ok != c.ok || cli.Code(err) != c.code {
			t.Errorf("%s: %v, %v", c.name, ok, err)
		}
		if ok && (token.Reveal() != good || strings.Contains(fmt.Sprintf("%v %+v %#v %s", token, token, token, token), good)) {
			t.Errorf("%s: the token prints itself", c.name)
		}
	}
}

func TestLogin(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	var out bytes.Buffer
	token, err := p.Login(t.Context(), i.Issuer(), client.DefaultClientID, &out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "ABCD-EFGH") || token.Reveal() == "" {
		t.Errorf("%q", out.String())
	}
	discovery := func(doc map[string]string) {
		i.Handle = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "openid-configuration") {
				return false
			}
			_ = json.NewEncoder(w).Encode(doc)
			return true
		}
	}
	for name, doc := range map[string]map[string]string{
		"another issuer":          {"issuer": "https://elsewhere.example", "token_endpoint": i.URL + "/t", "device_authorization_endpoint": i.URL + "/d"},
		"no device flow":          {"issuer": i.Issuer(), "token_endpoint": i.URL + "/t"},
		"endpoints on other host": {"issuer": i.Issuer(), "token_endpoint": "https://elsewhere.example/t", "device_authorization_endpoint": i.URL + "/d"},
	} {
		discovery(doc)
		if _, err := p.Login(t.Context(), i.Issuer(), client.DefaultClientID, io.Discard); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	i := clienttest.New(f)
	home := client.Home{Dir: f.TempDir()}
	p, err := home.Init(f.Context(), client.InitOptions{URL: i.URL, Root: i.Repository().Root()})
	if err != nil {
		f.Fatal(err)
	}
	token, err := client.NewToken(i.Token(alice))
	if err != nil {
		f.Fatal(err)
	}
	s, err := p.Signer(f.Context(), token)
	if err != nil {
		f.Fatal(err)
	}
	signed, err := s.SignBlob(f.Context(), strings.NewReader("hello"))
	if err != nil {
		f.Fatal(err)
	}
	trust, err := p.Trust(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed.Bundle)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"signatures":[]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := client.ParseBundle(data)
		if err == nil {
			_, err = trust.VerifyBlob(strings.NewReader("hallo"), b, aliceAt(i))
		}
		if cli.Code(err) != cli.ExitNo {
			t.Errorf("exit code %d: %v", cli.Code(err), err)
		}
	})
}
