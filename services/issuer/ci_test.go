package issuer_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/asaskevich/govalidator"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/sigstore/fulcio/pkg/config"
	"github.com/sigstore/fulcio/pkg/identity/email"
	"github.com/sigstore/sigstore/pkg/oauthflow"

	"github.com/sigbox/sigbox/services/issuer"
)

// origin is a listening server whose handler comes later: an issuer needs its
// own URL before it can answer.
type origin struct {
	*httptest.Server
	handler atomic.Value
}

func newOrigin(t testing.TB) *origin {
	o := &origin{}
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.handler.Load().(http.Handler).ServeHTTP(w, r)
	}))
	t.Cleanup(o.Close)
	return o
}

func rsa2048(t testing.TB) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// openCI opens an issuer that the test closes.
func openCI(t testing.TB, cfg issuer.CIConfig) *issuer.CI {
	t.Helper()
	c, err := issuer.NewCI(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // some tests close it earlier
	return c
}

func newCI(t testing.TB) (*issuer.CI, issuer.CIConfig) {
	t.Helper()
	cfg := issuer.CIConfig{URL: "http://127.0.0.1:8080/ci", Signer: rsa2048(t), Dir: t.TempDir()}
	if err := issuer.CreateCI(t.Context(), cfg.Dir); err != nil {
		t.Fatal(err)
	}
	return openCI(t, cfg), cfg
}

func mint(t testing.TB, c *issuer.CI) (jti string, token issuer.Token) {
	t.Helper()
	token, err := c.Mint("ci@example.com", 0)
	if err != nil {
		t.Fatal(err)
	}
	return claims(t, token.Raw)["jti"].(string), token
}

// claims decodes a token without verifying it.
func claims(t testing.TB, raw string) map[string]any {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSubjects(t *testing.T) {
	for _, row := range []struct{ subject, identity string }{
		{"ci@example.com", "ci@example.com"},
		{"ci+release@sub.example.com", "ci+release@sub.example.com"},
		{"build/main", "build/main@ci.internal"},
		{"nightly", "nightly@ci.internal"},
		{"v1.2.3", "v1.2.3@ci.internal"},
		{"team=a/job#7", "team=a/job#7@ci.internal"},
		{"", ""},
		{"@example.com", ""},
		{"ci@", ""},
		{"ci@localhost", ""},
		{"ci@127.0.0.1", ""},
		{"ci@example.com@example.org", ""},
		{"a b", ""},
		{".a", ""},
		{"a..b", ""},
		{"a.", ""},
		{"a\x00", ""},
		{"a\n", ""},
		{"ci@example.com\n", ""},
		{"é", ""},
		{".*", ""},
		{"http://example.com/x", ""},
		{"ci@exa_mple.com", ""},
		{strings.Repeat("a", 64), strings.Repeat("a", 64) + "@ci.internal"},
		{strings.Repeat("a", 65), ""},
		{"a@" + strings.Repeat("a.", 100) + "com", ""},
	} {
		got, err := issuer.Identity(row.subject)
		if got != row.identity || (err == nil) != (row.identity != "") {
			t.Errorf("%q: %q, %v; want %q", row.subject, got, err, row.identity)
		}
	}
}

// FuzzIdentity holds that Fulcio, which asks govalidator, accepts every identity
// that is made.
func FuzzIdentity(f *testing.F) {
	for _, s := range []string{"ci@example.com", "build/main", "a..b", "x@y.z", "~=@a-b.cd", "a@b.c-d", "a@b.c0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		identity, err := issuer.Identity(subject)
		if err == nil && !govalidator.IsEmail(identity) {
			t.Errorf("%q became %q, which Fulcio refuses", subject, identity)
		}
	})
}

func TestTokenVerifies(t *testing.T) {
	o := newOrigin(t)
	cfg := issuer.CIConfig{URL: o.URL + "/ci", Signer: rsa2048(t), Dir: t.TempDir()}
	if err := issuer.CreateCI(t.Context(), cfg.Dir); err != nil {
		t.Fatal(err)
	}
	c := openCI(t, cfg)
	o.handler.Store(c.Handler())
	<-c.Ready()
	token, err := c.Mint("build/main", 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}

	provider, err := oidc.NewProvider(t.Context(), cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: "sigstore"}).Verify(t.Context(), token.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if !verified.Expiry.Equal(token.Expiry) || time.Until(token.Expiry) > 2*time.Minute || time.Until(token.Expiry) < time.Minute {
		t.Errorf("expiry %v, token says %v", token.Expiry, verified.Expiry)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "other"}).Verify(t.Context(), token.Raw); err == nil {
		t.Error("a token for another audience was accepted")
	}

	// What Fulcio certifies, and what clients sign as proof of possession.
	ctx := config.With(t.Context(), &config.FulcioConfig{OIDCIssuers: map[string]config.OIDCIssuer{
		cfg.URL: {IssuerURL: cfg.URL, ClientID: "sigstore", Type: config.IssuerTypeEmail},
	}})
	principal, err := email.PrincipalFromIDToken(ctx, verified)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := oauthflow.SubjectFromToken(verified)
	if err != nil {
		t.Fatal(err)
	}
	if got := principal.Name(ctx); got != "build/main@ci.internal" || got != token.Identity || got != proof {
		t.Errorf("fulcio reads %q, clients %q, the token promised %q", got, proof, token.Identity)
	}

	p := newPerson(t)
	if got := p.get(cfg.URL + "/keys").Header.Get("Cache-Control"); got != "public, max-age=600" {
		t.Errorf("keys have Cache-Control %q", got)
	}
	if got := p.post(cfg.URL+"/keys", nil); got.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST to keys: %s", got.Status)
	}
	if text := fmt.Sprint(token.LogValue()); strings.Contains(text, token.Raw) {
		t.Error("a log shows the token")
	}
}

func TestMintRefuses(t *testing.T) {
	c, _ := newCI(t)
	for _, ttl := range []time.Duration{-time.Second, time.Millisecond, time.Hour + time.Second} {
		if _, err := c.Mint("ci", ttl); err == nil {
			t.Errorf("a token of %s was minted", ttl)
		}
	}
	if _, err := c.Mint("", 0); err == nil {
		t.Error("a token for nobody was minted")
	}
}

func TestCIConfigRefused(t *testing.T) {
	_, good := newCI(t)
	for name, spoil := range map[string]func(*issuer.CIConfig){
		"no key":           func(c *issuer.CIConfig) { c.Signer = nil },
		"another kind":     func(c *issuer.CIConfig) { c.Signer = p256(t) },
		"no url":           func(c *issuer.CIConfig) { c.URL = "" },
		"url with slash":   func(c *issuer.CIConfig) { c.URL += "/" },
		"url with query":   func(c *issuer.CIConfig) { c.URL += "?a=b" },
		"url of a file":    func(c *issuer.CIConfig) { c.URL = "file:///ci" },
		"default too long": func(c *issuer.CIConfig) { c.DefaultTTL = 2 * time.Hour },
		"no journal":       func(c *issuer.CIConfig) { c.Dir = t.TempDir() },
		"journal in use":   func(*issuer.CIConfig) {},
	} {
		cfg := good
		spoil(&cfg)
		if c, err := issuer.NewCI(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = c.Close()
		}
	}
	if err := issuer.CreateCI(t.Context(), good.Dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating over an existing journal: %v", err)
	}
	empty := t.TempDir()
	good.Dir = empty
	_, err := issuer.NewCI(t.Context(), good)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing journal: %v", err)
	}
	if entries, _ := os.ReadDir(empty); len(entries) > 0 {
		t.Errorf("a refused start left %v", entries)
	}
}

func TestRedeemOnce(t *testing.T) { onEngines(t, testRedeemOnce) }

func testRedeemOnce(t *testing.T, newCI func(testing.TB) (*issuer.CI, issuer.CIConfig)) {
	c, cfg := newCI(t)
	ctx := t.Context()
	jti, token := mint(t, c)
	if err := c.Redeem(ctx, jti, token.Expiry); err != nil {
		t.Fatal(err)
	}
	if err := c.Redeem(ctx, jti, token.Expiry); !errors.Is(err, issuer.ErrReplayed) {
		t.Errorf("second time: %v", err)
	}
	other, otherToken := mint(t, c)
	if err := c.Redeem(ctx, other, otherToken.Expiry); err != nil {
		t.Errorf("another token: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Redeem(ctx, jti, token.Expiry); err == nil {
		t.Error("redeemed after Close")
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}

	c = openCI(t, cfg)
	for _, id := range []string{jti, other} {
		if err := c.Redeem(ctx, id, token.Expiry); !errors.Is(err, issuer.ErrReplayed) {
			t.Errorf("after a restart: %v", err)
		}
	}
}

func TestRedeemRefuses(t *testing.T) { onEngines(t, testRedeemRefuses) }

func testRedeemRefuses(t *testing.T, newCI func(testing.TB) (*issuer.CI, issuer.CIConfig)) {
	c, _ := newCI(t)
	jti, token := mint(t, c)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, redeem := range map[string]func() error{
		"no id":           func() error { return c.Redeem(t.Context(), "", token.Expiry) },
		"short id":        func() error { return c.Redeem(t.Context(), jti[:20], token.Expiry) },
		"long id":         func() error { return c.Redeem(t.Context(), jti+"AAAA", token.Expiry) },
		"not base64":      func() error { return c.Redeem(t.Context(), "!"+jti[1:], token.Expiry) },
		"second spelling": func() error { return c.Redeem(t.Context(), jti[:21]+"_", token.Expiry) },
		"expired":         func() error { return c.Redeem(t.Context(), jti, time.Now()) },
		"too long":        func() error { return c.Redeem(t.Context(), jti, time.Now().Add(2*time.Hour)) },
		"cancelled":       func() error { return c.Redeem(cancelled, jti, token.Expiry) },
	} {
		if err := redeem(); err == nil {
			t.Errorf("%s: redeemed", name)
		}
	}
	if err := c.Redeem(t.Context(), jti, token.Expiry); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

// Of many that redeem the same token at once, one wins; and every token finds
// its winner.
func TestRedeemConcurrently(t *testing.T) { onEngines(t, testRedeemConcurrently) }

func testRedeemConcurrently(t *testing.T, newCI func(testing.TB) (*issuer.CI, issuer.CIConfig)) {
	c, cfg := newCI(t)
	const tokens, rivals = 50, 8
	ids := make([]string, tokens)
	expiry := time.Now().Add(time.Minute)
	won := make([]atomic.Int32, tokens)
	var wg sync.WaitGroup
	for i := range tokens {
		ids[i], _ = mint(t, c)
		for range rivals {
			wg.Go(func() {
				switch err := c.Redeem(t.Context(), ids[i], expiry); {
				case err == nil:
					won[i].Add(1)
				case !errors.Is(err, issuer.ErrReplayed):
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i := range won {
		if n := won[i].Load(); n != 1 {
			t.Errorf("token %d was redeemed %d times", i, n)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openCI(t, cfg)
	for _, id := range ids {
		if err := c.Redeem(t.Context(), id, expiry); !errors.Is(err, issuer.ErrReplayed) {
			t.Errorf("after a restart: %v", err)
		}
	}
}

// TestRedeemSurvivesKill kills a process while it redeems. What it said it had
// redeemed must stay redeemed.
func TestRedeemSurvivesKill(t *testing.T) {
	if dir := os.Getenv("ISSUER_TEST_REDEEM"); dir != "" {
		redeemUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	if err := issuer.CreateCI(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]bool{}
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRedeemSurvivesKill$")
		cmd.Env = append(os.Environ(), "ISSUER_TEST_REDEEM="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if id, ok := strings.CutPrefix(lines.Text(), "redeemed "); ok {
				acknowledged[id] = true
			}
			if n == 300 {
				_ = cmd.Process.Kill() // the loop drains what was said before
			}
		}
		_ = cmd.Wait() // killed
	}
	if len(acknowledged) < 900 {
		t.Fatalf("only %d tokens were redeemed", len(acknowledged))
	}
	c := openCI(t, issuer.CIConfig{URL: "http://127.0.0.1/ci", Signer: rsa2048(t), Dir: dir})
	for id := range acknowledged {
		if err := c.Redeem(t.Context(), id, time.Now().Add(time.Minute)); !errors.Is(err, issuer.ErrReplayed) {
			t.Fatalf("token %s was acknowledged and forgotten: %v", id, err)
		}
	}
}

func redeemUntilKilled(t *testing.T, dir string) {
	c := openCI(t, issuer.CIConfig{URL: "http://127.0.0.1/ci", Signer: rsa2048(t), Dir: dir})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10_000 { // the kill comes long before
				id, token := mint(t, c)
				if err := c.Redeem(t.Context(), id, token.Expiry); err != nil {
					t.Error(err)
					return
				}
				fmt.Println("redeemed " + id)
			}
		})
	}
	wg.Wait()
}

func TestDamagedJournal(t *testing.T) {
	c, cfg := newCI(t)
	for range 3 {
		id, token := mint(t, c)
		if err := c.Redeem(t.Context(), id, token.Expiry); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, "ci.journal")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 5, 16, 24, 31, 32, 48, 56, 64 + 7, 96 + 20} {
		for _, bit := range []byte{1, 0x80} {
			damaged := append([]byte(nil), whole...)
			damaged[at] ^= bit
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if c, err := issuer.NewCI(t.Context(), cfg); err == nil {
				t.Errorf("bit %#x flipped at %d went unnoticed", bit, at)
				_ = c.Close()
			}
		}
	}
	for name, content := range map[string][]byte{"empty": nil, "cut in the header": whole[:20], "another file": []byte(strings.Repeat("x", 64))} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := issuer.NewCI(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened", name)
			_ = c.Close()
		}
	}
	// A crash may leave the file cut anywhere in the space grown ahead.
	if err := os.WriteFile(path, whole[:4*32+17], 0o600); err != nil {
		t.Fatal(err)
	}
	c = openCI(t, cfg)
	id, token := mint(t, c)
	if err := c.Redeem(t.Context(), id, token.Expiry); err != nil {
		t.Error(err)
	}
}

func TestCIRun(t *testing.T) {
	c, _ := newCI(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkMint(b *testing.B) {
	c, _ := newCI(b)
	for b.Loop() {
		if _, err := c.Mint("ci@example.com", 0); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkRedeem(b *testing.B, workers int) {
	c, _ := newCI(b)
	expiry := time.Now().Add(time.Hour)
	before := cpu(b)
	b.SetParallelism(workers)
	b.RunParallel(func(pb *testing.PB) {
		id := make([]byte, 16)
		for pb.Next() {
			rand.Read(id)
			if err := c.Redeem(b.Context(), base64.RawURLEncoding.EncodeToString(id), expiry); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
}

func BenchmarkRedeem(b *testing.B) {
	b.Run("1", func(b *testing.B) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		benchmarkRedeem(b, 1)
	})
	b.Run("64", func(b *testing.B) { benchmarkRedeem(b, 64/runtime.GOMAXPROCS(0)) })
}

// cpu is the processor time this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
