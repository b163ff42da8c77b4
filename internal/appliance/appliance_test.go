package appliance_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/state"
)

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// initialise makes an instance as of a time, with more lines of configuration.
func initialise(t *testing.T, now time.Time, more string) (dir, url string) {
	t.Helper()
	dir, addr := filepath.Join(t.TempDir(), "instance"), freeAddress(t)
	conf := fmt.Sprintf("url: http://%s\nlisten: %s\n%s", addr, addr, more)
	if _, err := appliance.Init(t.Context(), dir, []byte(conf), now, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return dir, "http://" + addr
}

// serve runs the instance until the test, or stop, ends.
func serve(t *testing.T, dir string) (stop func()) {
	t.Helper()
	a, err := appliance.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func get(t *testing.T, url string) (int, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// TestNothingIsSignedWithoutRoom: a disk that is nearly full is found before a
// promise is made (Mammoth 2024h1 lost two entries to a full disk).
func TestNothingIsSignedWithoutRoom(t *testing.T) {
	dir, url := initialise(t, time.Now(), "limits: {min_free_bytes: 4611686018427387904}\n")
	serve(t, dir)
	if code, body := get(t, url+"/readyz"); code != 503 || !strings.Contains(string(body), "free") {
		t.Errorf("readyz: %d %s", code, body)
	}
	for _, path := range []string{"/api/v2/signingCert", "/api/v1/signingCert", "/api/v1/log/entries", "/ctlog/ct/v1/add-chain"} {
		resp, err := http.Post(url+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d, Retry-After %q", path, resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	}
	// Reading goes on.
	for _, path := range []string{"/healthz", "/api/v1/log", "/ctlog/ct/v1/get-sth", "/tuf/timestamp.json"} {
		if code, _ := get(t, url+path); code != 200 {
			t.Errorf("%s: %d", path, code)
		}
	}
}

func tufVersion(t *testing.T, url string) (version int, expires time.Time) {
	t.Helper()
	_, body := get(t, url+"/tuf/timestamp.json")
	var m struct {
		Signed struct {
			Version int
			Expires time.Time
		}
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return m.Signed.Version, m.Signed.Expires
}

// TestTUFIsRenewed: also after a downtime longer than the metadata lasts
// (cosign#1205), and never back to an older version.
func TestTUFIsRenewed(t *testing.T) {
	for name, age := range map[string]time.Duration{
		"due": 4 * 24 * time.Hour, "after long downtime": 200 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			dir, url := initialise(t, time.Now().Add(-age), "")
			stop := serve(t, dir)
			version, expires := tufVersion(t, url)
			if version != 2 || time.Until(expires) < 6*24*time.Hour {
				t.Errorf("version %d, expires %v", version, expires)
			}
			if code, body := get(t, url+"/readyz"); code != 200 {
				t.Errorf("readyz: %d %s", code, body)
			}
			stop()
			serve(t, dir)
			if again, _ := tufVersion(t, url); again != 2 {
				t.Errorf("after a restart: version %d, want 2", again)
			}
		})
	}
}

// TestExpiredTrustIsNotReady: what only a ceremony can renew is announced.
func TestExpiredTrustIsNotReady(t *testing.T) {
	dir, url := initialise(t, time.Now().Add(-6*365*24*time.Hour), "")
	serve(t, dir)
	code, body := get(t, url+"/readyz")
	for _, want := range []string{"TUF role", "sigbox intermediate", "timestamp authority"} {
		if code != 503 || !strings.Contains(string(body), want) {
			t.Errorf("readyz: %d %s, want something about %q", code, body, want)
		}
	}
}

// TestInitLeavesNothingBehind when it fails half-way.
func TestInitLeavesNothingBehind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "instance")
	// The audit record's folder cannot be made: a file is in its place.
	blocker := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := "url: http://127.0.0.1:1\nlisten: 127.0.0.1:1\naudit_dir: " + blocker + "/audit\n"
	if _, err := appliance.Init(t.Context(), dir, []byte(conf), time.Now(), slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("init passed")
	}
	if err := state.Claim(dir); err != nil {
		t.Errorf("the folder is not free for another try: %v", err)
	}
}

// TestMetricsAndAdministrationAreApart from the origin.
func TestMetricsAndAdministrationAreApart(t *testing.T) {
	metrics := freeAddress(t)
	dir, url := initialise(t, time.Now(), "metrics: "+metrics+"\n")
	serve(t, dir)
	for _, path := range []string{"/metrics", "/status", "/token", "/debug/pprof/"} {
		if code, _ := get(t, url+path); code != 404 {
			t.Errorf("%s on the origin: %d", path, code)
		}
	}
	code, body := get(t, "http://"+metrics+"/metrics")
	for _, want := range []string{"sigbox_http_requests_total", "sigbox_tuf_expires_seconds", "go_goroutines"} {
		if code != 200 || !strings.Contains(string(body), want) {
			t.Errorf("metrics: %d, want %s", code, want)
		}
	}
	st, err := appliance.AskStatus(t.Context(), dir)
	if err != nil || !st.Running || !st.Ready || len(st.Logs) != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestAddressInUse is an error at start, and leaves the instance free.
func TestAddressInUse(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	l, err := net.Listen("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appliance.Open(t.Context(), dir, slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("two listen on one address")
	}
	l.Close()
	serve(t, dir)
	if code, body := get(t, url+"/readyz"); code != 200 {
		t.Errorf("readyz: %d %s", code, body)
	}
}
